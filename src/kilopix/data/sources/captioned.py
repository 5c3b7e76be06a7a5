"""Pictures with a captions file: a table of file names and captions, and if it likes, of classes.

In: a tsv, csv, jsonl or Parquet file beside the pictures. Out: items in the order of the table, each with all
captions that the table has of it, in one row or in several.
"""

import os
import posixpath
import re
import unicodedata
from dataclasses import replace
from pathlib import Path, PurePosixPath

from kilopix.data.sources.classes import LabelNames
from kilopix.data.sources.folders import is_ours, walk
from kilopix.data.sources.items import IMAGE_ENDINGS, Source, SourceItem, describe
from kilopix.data.sources.selection import EVERYTHING, Selection, Tally
from kilopix.data.sources.splits import take_split_of_paths
from kilopix.data.sources.tables import ENDINGS, path_column, read_table
from kilopix.errors import UserError
from kilopix.values import BadValue, first_present

NAMES = ("captions", "metadata")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST = 255  # bytes of a file's name
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


def captions_files(folder: Path) -> list[Path]:
    """The captions files of a folder, by their names: `captions` or `metadata`, of any of the four kinds."""
    wanted = [name + ending for name in NAMES for ending in ENDINGS]
    found = [file for file in folder.iterdir() if file.name.lower() in wanted and file.is_file()]
    return sorted(found, key=lambda file: (wanted.index(file.name.lower()), file.name))


def captioned_pictures(file: Path, selection: Selection = EVERYTHING) -> Source:
    """The wanted pictures that a captions file names, which lie below its folder."""
    root, table = file.parent, read_table(file)
    if not table.rows and not table.wrong:
        raise UserError(f"{file}: holds no row.")
    paths = path_column(table, file)
    captions, labels = selection.columns_of(table.columns, file)
    spelled, tally = selection.check(table.columns, file), Tally()
    names = LabelNames.of(file, [root])
    below = walk(root, root)
    there = _Names(below.files)
    unused = [(f"{file.name}, row {number}", why) for number, why in table.wrong]
    items: dict[str, SourceItem] = {}
    known: set[str] = set()
    for number, row in table.rows:
        place = f"{file.name}, row {number}"
        try:
            path = there.find(path_below(root, row.get(paths)))
        except BadValue as error:
            unused.append((place, str(error)))
            continue
        known.add(path)
        if not tally.takes(selection, row, spelled):
            continue
        text, label = (first_present(row.get(name) for name in some) for some in (captions, labels))
        item = describe(path, PurePosixPath(path).name, text, label, names)
        if path not in items:
            items[path] = item
        elif item.error or not _one_class(item, items[path]):
            why = item.error or f"{path} has another class in a row before, {items[path].class_name!r}"
            unused.append((place, why))
        else:
            before = items[path]
            both = tuple(dict.fromkeys(before.captions + item.captions))
            items[path] = replace(before, captions=both, class_name=before.class_name or item.class_name)
    unused += below.passed + [
        (path, f"not in {file.name}")
        for path in below.files
        if path not in known and path != file.name and not is_ours(root, path)
    ]
    if not known:
        first = f" ({unused[0][0]}: {unused[0][1]})" if unused else ""
        raise UserError(f"{file}: names no file{first}.")
    chosen, notes = take_split_of_paths(root, list(items), selection.split)
    return Source(
        root,
        "captions file",
        [items[path] for path in chosen],
        unused,
        tally if selection.conditions else None,
        below.hidden,
        table.columns,
        tuple(notes),
    )


def _one_class(item: SourceItem, other: SourceItem) -> bool:
    names = {name.lower() for name in (item.class_name, other.class_name) if name}
    return len(names) < 2


class _Names:
    """The files of a folder by what a table may call them: in other capitals or forms of letters, or bare."""

    def __init__(self, files: list[str]):
        self._files = set(files)
        self._loose: dict[str, list[str]] = {}
        for path in files:
            if PurePosixPath(path).suffix.lower() in IMAGE_ENDINGS:
                for name in {_folded(path), _folded(str(PurePosixPath(path).with_suffix("")))}:
                    self._loose.setdefault(name, []).append(path)

    def find(self, path: str) -> str:
        """The file that is meant, if there is just one; else the path as it is."""
        if path in self._files:
            return path
        found = self._loose.get(_folded(path), [])
        return found[0] if len(found) == 1 else path


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def path_below(root: Path, value: object) -> str:
    """The path below `root` that a file name of a table means: `./1.jpg`, `a\\1.jpg`, an absolute one in it.

    Raises `BadValue` for one that leads elsewhere, or is none.
    """
    if isinstance(value, dict):  # an image of the hub's data sets, of which the file's place is kept
        value = value.get("path")
    if not isinstance(value, str) or not value.strip():
        raise BadValue("names no file")
    if (
        "\0" in value
        or _SURROGATE.search(value)
        or any(len(os.fsencode(part)) > _LONGEST for part in value.split("/"))
    ):
        raise BadValue(f"{value[:60]!a} is no name that a file can have")
    text = value if (root / value).is_file() else value.strip()
    if _ADDRESS.match(text):
        raise BadValue(f"{text} is an address; bring the file here and name it")
    if "\\" in text and not (root / text).is_file():
        text = text.replace("\\", "/")
    if posixpath.isabs(text):
        roots = [folder for folder in (root.absolute(), root.resolve()) if Path(text).is_relative_to(folder)]
        if not roots:
            raise BadValue(f"{text} lies outside {root}, the folder of its table")
        text = Path(text).relative_to(roots[0]).as_posix()
    text = posixpath.normpath(text)
    if text == ".":
        raise BadValue("names a folder, no file")
    if text.split("/")[0] == "..":
        raise BadValue(f"{value} lies outside {root}, the folder of its table")
    return text
