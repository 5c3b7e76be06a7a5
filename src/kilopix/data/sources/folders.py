"""Folders of images: one with a sub-folder per class, or a flat one, with or without captions beside them.

In: such a folder. Out: items in a fixed order, each with its class and captions, and what was passed over.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from kilopix.data.manifest import is_manifest
from kilopix.data.sources.classes import CLASS_TABLES, LabelNames, is_wordnet_id, name_folders
from kilopix.data.sources.columns import CAPTION_COLUMNS, CLASS_COLUMNS, find_columns
from kilopix.data.sources.items import Source, SourceItem, describe
from kilopix.data.sources.selection import EVERYTHING, Selection
from kilopix.errors import UserError
from kilopix.values import BadValue, first_present, texts_of

TEXTS = (".txt", ".caption")
RECORD = ".json"
SIDE_FILES = {".json", ".jsonl", ".csv", ".tsv", ".md", ".rst", ".html", ".xml", ".yaml", ".yml", ".toml"}
SIDE_FILES |= {".npz", ".npy", ".log", ".py", ".sh", ".pdf", ".txt", ".caption"}
"""Endings of files that are no images; what ends otherwise is tried, and named if it is none."""
OURS = {*CLASS_TABLES, "scenes.jsonl"}
_HIDDEN = {"__MACOSX", "Thumbs.db", "desktop.ini"}
"""What systems put beside files unasked, hidden there or not."""
LONGEST_TEXT = 1 << 20
"""Bytes of a caption or record; what is longer is something else."""


@dataclass
class Walk:
    """The files below a folder, as sorted paths; what cannot be followed or read; how many are hidden."""

    files: list[str] = field(default_factory=list)
    passed: list[tuple[str, str]] = field(default_factory=list)
    hidden: int = 0


def walk(folder: Path, root: Path) -> Walk:
    """All files below `folder`, as paths below `root`, through links; none that begins with a dot.

    A link whose target is missing, or that leads back to a folder above it, is passed over by name.
    """
    found = Walk()
    _descend(folder, root, (os.path.realpath(folder),), found)
    found.files.sort(key=lambda path: path.split("/"))
    found.passed.sort()
    return found


def _descend(folder: Path, root: Path, above: tuple[str, ...], found: Walk) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        found.passed.append((_below(folder, root), f"a folder that cannot be read ({error.strerror})"))
        return
    prefix = "" if folder == root else f"{_below(folder, root)}/"
    if not entries and folder != root:
        found.passed.append((_below(folder, root), "an empty folder"))
    for entry in entries:
        path = f"{prefix}{entry.name}"
        kind = _kind(entry)
        if entry.name.startswith(".") or entry.name in _HIDDEN:
            found.hidden += 1
        elif kind == "folder":
            real = os.path.realpath(entry.path)
            if entry.is_symlink() and real in above:
                found.passed.append((path, "a link to a folder above it"))
            else:
                _descend(Path(entry.path), root, (*above, real), found)
        elif kind == "file":
            found.files.append(path)
        else:
            found.passed.append((path, kind))


def _kind(entry: os.DirEntry[str]) -> str:
    """`folder` or `file`, through links, or why it is neither."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not entry.is_symlink():
        return "no regular file"
    return f"a link to {os.readlink(entry.path)}, which is not there (git-annex: `git annex get` brings it)"


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def split_ending(path: str) -> tuple[str, str]:
    """A path without the ending of its name, and the ending in small letters; it is faster than `Path`."""
    stem, dot, ending = path.rpartition(".")
    if not dot or "/" in ending or not stem or stem.endswith("/"):
        return path, ""
    return stem, f".{ending.lower()}"


def is_ours(root: Path, path: str) -> bool:
    """Whether a file is one that kilopix reads beside images, or writes."""
    name = PurePosixPath(path).name
    if name in OURS or name.endswith((".failures.jsonl", ".quality.json")):
        return True
    return name.endswith(".parquet") and is_manifest(root / path)


def class_folders(root: Path, selection: Selection = EVERYTHING, below: Walk | None = None) -> Source:
    """All files below the class folders of `root`, sorted by path.

    Every file is listed, whatever its ending, so that a file that is no picture is reported rather than
    overlooked; texts beside images are their captions. A folder's name is its class, with underscores as
    spaces, unless it is one of ImageNet's WordNet ids or a table of classes gives another.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images.")
    everything = below or walk(root, root)
    inside = [path for path in everything.files if "/" in path]
    folders = sorted({path.partition("/")[0] for path in inside})
    if not folders:
        if any(why == "an empty folder" for _, why in everything.passed):
            raise UserError(f"{root}: its class folders are empty.")
        raise UserError(
            f"{root}: no class folders in it; put the images of each class in a folder of its name, or a "
            "file captions.tsv beside them."
        )
    _refuse_levels_above(root, inside, folders)
    names, notes = dict.fromkeys(folders, ""), []
    if selection.label_column is None:
        names, notes = name_folders(root, folders)
    images, unused = images_and_texts(root, inside, selection.caption_lines)
    items = [
        SourceItem(image.path, names[image.path.partition("/")[0]], image.captions, image.error)
        for image in images
    ]
    loose = [
        (path, "not in a class folder")
        for path in everything.files
        if "/" not in path and not is_ours(root, path)
    ]
    unused = loose + everything.passed + unused
    return Source(root, "class folders", items, unused, None, everything.hidden, (), tuple(notes))


def flat_folder(root: Path, selection: Selection = EVERYTHING, below: Walk | None = None) -> Source:
    """The images of a folder without folders in it; their classes where their names or records say them."""
    everything = below or walk(root, root)
    files = [path for path in everything.files if not is_ours(root, path)]
    images, unused = images_and_texts(root, files, selection.caption_lines)
    items: list[SourceItem] = []
    names = LabelNames.of(root / CLASS_TABLES[0], [root])
    for image in images:
        if PurePosixPath(image.path).suffix.lower() in SIDE_FILES:
            unused.append((image.path, "no image by its ending; a table of images can be given itself"))
            continue
        label = image.label if selection.label_column is None else None
        item = describe(image.path, image.path, None, label, names)
        items.append(SourceItem(image.path, item.class_name, image.captions, image.error or item.error))
    return Source(root, "loose images", items, everything.passed + unused, None, everything.hidden)


def _refuse_levels_above(root: Path, files: Sequence[str], folders: Sequence[str]) -> None:
    """Refuse a folder whose class folders lie further down: ImageNet's, or all in one that holds no image."""
    for path in files:
        parts = path.split("/")[:-1]
        deep = next((i for i, part in enumerate(parts[1:], 1) if is_wordnet_id(part)), None)
        if deep and not is_wordnet_id(parts[0]):
            inside = "/".join(parts[:deep])
            raise UserError(f"{root}: its class folders are in {inside}; give {root / inside}.")
    below = {path.split("/")[1] for path in files if path.count("/") > 1}
    if len(folders) == 1 and len(below) > 1 and all(path.count("/") > 1 for path in files):
        raise UserError(f"{root}: its class folders are in {folders[0]}; give {root / folders[0]}.")


@dataclass(frozen=True)
class Image:
    """A file that may be an image, with the captions and the label beside it, and why it cannot be used."""

    path: str
    captions: tuple[str, ...] = ()
    label: Any = None
    error: str = ""


def images_and_texts(
    root: Path, files: Sequence[str], by_line: bool = False
) -> tuple[list[Image], list[tuple[str, str]]]:
    """The files that are no texts of others, each with the captions beside it; texts that belong to none.

    `1.txt` is the caption of `1.jpg`, or `1.caption`, or what `1.json` says under `caption` or `text`; the
    first that is not empty counts.
    """
    beside: dict[str, dict[str, str]] = {}
    for path in files:
        key, ending = split_ending(path)
        if ending in (*TEXTS, RECORD):
            beside.setdefault(key, {})[ending] = path
    texts = {path for group in beside.values() for path in group.values()}
    images: list[Image] = []
    unused: list[tuple[str, str]] = []
    used: set[str] = set()
    for path in files:
        if path in texts:
            continue
        group = beside.get(split_ending(path)[0]) if beside else None
        if group is None:
            images.append(Image(path))
            continue
        image, taken = _with_texts(root, path, group, by_line)
        images.append(image)
        for ending, text in group.items():
            if text not in used and taken and ending in TEXTS and text != taken:
                unused.append((text, f"the caption is taken from {PurePosixPath(taken).name}"))
            used.add(text)
    for path in sorted(texts - used):
        what = "a record" if path.lower().endswith(RECORD) else "a text"
        hint = ""
        if PurePosixPath(path).stem.lower() in ("captions", "metadata"):
            hint = (
                "; as a captions file, write it as jsonl, csv or tsv with the columns file_name and caption"
            )
        unused.append((path, f"{what}, and no image of its name is beside it{hint}"))
    return images, unused


def _with_texts(root: Path, path: str, group: dict[str, str], by_line: bool) -> tuple[Image, str | None]:
    """An image with what the files beside it say, and the one of them that its captions come from."""
    captions: tuple[str, ...] = ()
    taken: str | None = None
    label: Any = None
    for ending in (*TEXTS, RECORD):
        if ending not in group or (captions and ending != RECORD):
            continue
        name = PurePosixPath(group[ending]).name
        try:
            content = (root / group[ending]).read_bytes()
            if len(content) > LONGEST_TEXT:
                return Image(path, error=f"its text {name} is of {len(content):,} bytes, no caption"), None
            if ending == RECORD:
                record = read_record(content)
                label = first_present(record[key] for key in find_columns(record, CLASS_COLUMNS))
                found = captions or texts_of(caption_of_record(record))
            else:
                found = captions_of_text(content, by_line)
        except BadValue as error:
            return Image(path, error=str(error)), None
        except OSError as error:
            return Image(path, error=f"its text {name} cannot be read ({error.strerror})"), None
        except (ValueError, RecursionError) as error:
            return Image(path, error=f"its text {name} is damaged ({error})"), None
        if found and not captions:
            captions, taken = found, group[ending]
    return Image(path, captions, label), taken


def captions_of_text(content: bytes, by_line: bool = False) -> tuple[str, ...]:
    """The captions in a text file: its whole text as one, or with `by_line` one for every line."""
    text = content.decode("utf-8-sig")
    return texts_of(text.replace("\r\n", "\n").split("\n") if by_line else text)


def read_record(content: bytes) -> dict[str, Any]:
    """What a JSON file beside an image says; a list or a text alone is its captions.

    Raises `ValueError` or `RecursionError` for what is no JSON.
    """
    found = json.loads(content.decode("utf-8-sig"))
    if isinstance(found, str | list):
        return {CAPTION_COLUMNS[0]: found}
    return found if isinstance(found, dict) else {}


def caption_of_record(record: dict[str, Any], columns: Sequence[str] | None = None) -> Any:
    """The value of a record's captions, in any capitals, of the first of several fields that is filled."""
    names = find_columns(record, CAPTION_COLUMNS) if columns is None else columns
    return first_present(record.get(name) for name in names)
