"""Class folders: a folder with one sub-folder per class.

In: such a folder. Out: items in a fixed order, each with the name of its class.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from kilopix.errors import UserError

CLASS_TABLE = "classes.txt"
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class SourceItem:
    """One file of a source: its path below the root, which is its id, and the name of its class."""

    path: str
    class_name: str


def class_folders(root: Path) -> list[SourceItem]:
    """All files below the class folders of `root`, sorted by path.

    Every file is listed, whatever its ending, so that a file that is no picture is reported rather than
    overlooked; hidden files and side files at the top (such as scenes.jsonl) are not items. A folder's
    name is its class, with underscores as spaces, unless a table `classes.txt` gives another.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images.")
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise UserError(
            f"{root}: no class folders in it; put the images of each class in a folder of its name."
        )
    names = _class_names(root, [folder.name for folder in folders])
    items = [
        SourceItem(str(file.relative_to(root)), names[folder.name])
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    if not items:
        raise UserError(f"{root}: its class folders are empty.")
    return items


def loose_images(root: Path) -> list[str]:
    """Images that lie beside the class folders instead of in one, so that a stage can report them."""
    return sorted(f.name for f in root.iterdir() if f.is_file() and f.suffix.lower() in IMAGE_ENDINGS)


def _class_names(root: Path, folders: list[str]) -> dict[str, str]:
    """The class name of every folder: from `classes.txt` if it is there, else from the folder's own name."""
    table = _read_names(root / CLASS_TABLE)
    names = {folder: table.get(folder, class_name_of(folder)) for folder in folders}
    for folder, name in names.items():
        if re.fullmatch(r"n\d{8}", name):
            raise UserError(
                f"{root / folder}: named by a WordNet id, which says nothing in a caption. Put a file "
                f"{CLASS_TABLE} into {root}, with a line '{folder} NAME' for every folder, as ImageNet's "
                "LOC_synset_mapping.txt has them."
            )
        if not name:
            raise UserError(f"{root / folder}: gives no class name; rename the folder.")
    return names


def _read_names(path: Path) -> dict[str, str]:
    """Lines of a folder and its class name; of several names with commas between, the first is taken."""
    if not path.is_file():
        return {}
    lines = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
    wrong = [i for i, line in enumerate(lines, 1) if len(line) < 2]
    if wrong:
        raise UserError(f"{path}: line {wrong[0]} is not a folder and its class name.")
    return {folder: names.split(",")[0].strip() for folder, names in lines}


def class_name_of(folder: str) -> str:
    """The class name that a folder's name stands for."""
    return " ".join(folder.replace("_", " ").split())
