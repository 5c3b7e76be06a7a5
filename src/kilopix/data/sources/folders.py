"""Class folders: a folder with one sub-folder per class.

In: such a folder. Out: items in a fixed order, each with the name of its class.
"""

from pathlib import Path

from kilopix.data.sources.classes import name_folders
from kilopix.data.sources.items import IMAGE_ENDINGS, SourceItem
from kilopix.errors import UserError


def class_folders(root: Path) -> list[SourceItem]:
    """All files below the class folders of `root`, sorted by path.

    Every file is listed, whatever its ending, so that a file that is no picture is reported rather than
    overlooked; hidden files and side files at the top (such as scenes.jsonl) are not items. A folder's
    name is its class, with underscores as spaces, unless it is one of ImageNet's WordNet ids or a table
    `classes.txt` gives another.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images.")
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise UserError(
            f"{root}: no class folders in it; put the images of each class in a folder of its name, or a "
            "file captions.tsv beside them."
        )
    names = name_folders(root, [folder.name for folder in folders])
    items = [SourceItem(path, names[folder.name]) for folder in folders for path in files_below(folder, root)]
    if not items:
        raise UserError(f"{root}: its class folders are empty.")
    return items


def files_below(folder: Path, root: Path) -> list[str]:
    """The paths below `root` of all files in a folder and its sub-folders, sorted, without hidden ones."""
    return [
        str(file.relative_to(root))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]


def loose_images(root: Path) -> list[str]:
    """Images that lie beside the class folders instead of in one, so that a stage can report them."""
    return sorted(f.name for f in root.iterdir() if f.is_file() and f.suffix.lower() in IMAGE_ENDINGS)
