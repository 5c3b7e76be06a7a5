"""Folders of images: one with a sub-folder per class, or a flat one, with or without captions beside them.

In: such a folder. Out: items in a fixed order, each with its class and captions, and what was passed over.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from kilopix.data.sources.classes import CLASS_TABLES, class_of_file, is_wordnet_id, name_folders
from kilopix.data.sources.columns import CAPTION_COLUMNS, find_column
from kilopix.data.sources.items import Source, SourceItem
from kilopix.data.sources.selection import EVERYTHING, Selection
from kilopix.errors import UserError
from kilopix.values import BadValue, texts_of

TEXTS = (".txt", ".caption")
RECORD = ".json"
SIDE_FILES = {".json", ".jsonl", ".csv", ".tsv", ".md", ".rst", ".html", ".xml", ".yaml", ".yml", ".toml"}
SIDE_FILES |= {".npz", ".npy", ".log", ".py", ".sh", ".pdf", ".ds_store", ".txt", ".caption"}
"""Endings of files that are no images; what ends otherwise is tried, and named if it is none."""
_OURS = {*CLASS_TABLES, "scenes.jsonl"}
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
    found.files.sort(key=lambda path: PurePosixPath(path).parts)
    found.passed.sort()
    return found


def _descend(folder: Path, root: Path, above: tuple[str, ...], found: Walk) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        found.passed.append((_below(folder, root), f"a folder that cannot be read ({error.strerror})"))
        return
    for entry in entries:
        path = _below(Path(entry.path), root)
        if entry.name.startswith("."):
            found.hidden += 1
        elif entry.is_dir():
            real = os.path.realpath(entry.path)
            if entry.is_symlink() and real in above:
                found.passed.append((path, "a link to a folder above it"))
            else:
                _descend(Path(entry.path), root, (*above, real), found)
        elif entry.is_file():
            found.files.append(path)
        else:
            found.passed.append((path, _broken(entry)))


def _broken(entry: os.DirEntry[str]) -> str:
    if not entry.is_symlink():
        return "no regular file"
    return f"a link to {os.readlink(entry.path)}, which is not there (git-annex: `git annex get` brings it)"


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def class_folders(root: Path, selection: Selection = EVERYTHING) -> Source:
    """All files below the class folders of `root`, sorted by path.

    Every file is listed, whatever its ending, so that a file that is no picture is reported rather than
    overlooked; texts beside images are their captions. A folder's name is its class, with underscores as
    spaces, unless it is one of ImageNet's WordNet ids or a table of classes gives another.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images.")
    everything = walk(root, root)
    folders = sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise UserError(
            f"{root}: no class folders in it; put the images of each class in a folder of its name, or a "
            "file captions.tsv beside them."
        )
    _refuse_levels_above(root, everything.files)
    names, notes = name_folders(root, folders)
    inside = [path for path in everything.files if "/" in path]
    if not inside:
        raise UserError(f"{root}: its class folders are empty.")
    images, unused = images_and_texts(root, inside, selection.caption_lines)
    items = [SourceItem(path, names[path.partition("/")[0]], texts, error) for path, texts, error in images]
    full = {path.partition("/")[0] for path in inside}
    passed = everything.passed + [(folder, "an empty folder") for folder in folders if folder not in full]
    loose = [
        (path, "not in a class folder")
        for path in everything.files
        if "/" not in path and PurePosixPath(path).suffix.lower() not in SIDE_FILES
    ]
    return Source(
        root, "class folders", items, loose + passed + unused, None, everything.hidden, (), tuple(notes)
    )


def flat_folder(root: Path, selection: Selection = EVERYTHING) -> Source:
    """The images of a folder without folders in it; their classes where their names are as ImageNet's."""
    everything = walk(root, root)
    images, unused = images_and_texts(root, everything.files, selection.caption_lines)
    items: list[SourceItem] = []
    for path, texts, error in images:
        if path in _OURS:
            continue
        if PurePosixPath(path).suffix.lower() in SIDE_FILES:
            unused.append((path, "no image by its ending"))
        else:
            items.append(SourceItem(path, class_of_file(path), texts, error))
    return Source(root, "loose images", items, everything.passed + unused, None, everything.hidden)


def is_flat(root: Path) -> bool:
    """Whether a folder holds images and no folders."""
    visible = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    if any(entry.is_dir() for entry in visible):
        return False
    return any(entry.suffix.lower() not in SIDE_FILES for entry in visible)


def _refuse_levels_above(root: Path, files: Iterable[str]) -> None:
    """Refuse a folder in whose folders lie those of ImageNet's classes: they are what is meant."""
    for path in files:
        parts = path.split("/")[:-1]
        deep = next((i for i, part in enumerate(parts) if i and is_wordnet_id(part)), None)
        if deep and not is_wordnet_id(parts[0]):
            inside = "/".join(parts[:deep])
            raise UserError(f"{root}: its class folders are in {inside}; give {root / inside}.")


_Image = tuple[str, tuple[str, ...], str]
"""A path, its captions, and why it cannot be used, if so."""


def images_and_texts(
    root: Path, files: list[str], by_line: bool = False
) -> tuple[list[_Image], list[tuple[str, str]]]:
    """The files that are no texts of others, each with the captions beside it; texts that belong to none.

    `1.txt` is the caption of `1.jpg`, or `1.caption`, or what `1.json` says under `caption` or `text`; each
    counts before the next.
    """
    beside: dict[str, dict[str, str]] = {}
    for path in files:
        pure = PurePosixPath(path)
        if pure.suffix.lower() in (*TEXTS, RECORD):
            beside.setdefault(str(pure.with_suffix("")), {})[pure.suffix.lower()] = path
    texts = {path for group in beside.values() for path in group.values()}
    images: list[_Image] = []
    used: set[str] = set()
    for path in files:
        if path in texts:
            continue
        group = beside.get(str(PurePosixPath(path).with_suffix("")), {})
        captions, error = _captions(root, group, by_line)
        images.append((path, captions, error))
        used |= set(group.values())
    unused: list[tuple[str, str]] = []
    for key, group in beside.items():
        taken = next((group[ending] for ending in TEXTS if ending in group), None)
        for ending, path in group.items():
            if path in used and ending in TEXTS and path != taken:
                unused.append((path, f"the caption is taken from {PurePosixPath(taken or key).name}"))
            elif path not in used and path not in _OURS:
                what = "a record" if ending == RECORD else "a text"
                unused.append((path, f"{what}, and no image of its name is beside it"))
    return images, unused


def _captions(root: Path, group: dict[str, str], by_line: bool) -> tuple[tuple[str, ...], str]:
    """The captions that the files beside an image hold, and why they cannot be read, if so."""
    path = next((group[ending] for ending in (*TEXTS, RECORD) if ending in group), None)
    if path is None:
        return (), ""
    try:
        content = (root / path).read_bytes()
        if len(content) > LONGEST_TEXT:
            return (), f"its text {PurePosixPath(path).name} is of {len(content):,} bytes, no caption"
        if path.lower().endswith(RECORD):
            return texts_of(caption_of_record(read_record(content))), ""
        return captions_of_text(content, by_line), ""
    except BadValue as error:
        return (), str(error)
    except (UnicodeDecodeError, json.JSONDecodeError, OSError) as error:
        return (), f"its text {PurePosixPath(path).name} is damaged ({error})"


def captions_of_text(content: bytes, by_line: bool = False) -> tuple[str, ...]:
    """The captions in a text file: its whole text as one, or with `by_line` one for every line."""
    text = content.decode("utf-8-sig")
    return texts_of(text.replace("\r\n", "\n").split("\n") if by_line else text)


def read_record(content: bytes) -> dict[str, Any]:
    """What a JSON file beside an image says; nothing if it holds no object."""
    found = json.loads(content.decode("utf-8-sig"))
    return found if isinstance(found, dict) else {}


def caption_of_record(record: dict[str, Any], column: str | None = None) -> Any:
    """The value of a record's captions, in any capitals; None if it has none."""
    name = column or find_column(record, CAPTION_COLUMNS)
    return record.get(name) if name else None
