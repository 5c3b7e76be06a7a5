"""Pictures with a captions file: a table of file names and captions, and if it likes, of classes.

In: a tsv, csv, jsonl or Parquet file beside the pictures. Out: items in the order of the table, each with all
captions that the table has of it, in one row or in several.
"""

import posixpath
import re
from dataclasses import replace
from pathlib import Path

from kilopix.data.sources.classes import LabelNames
from kilopix.data.sources.folders import walk
from kilopix.data.sources.items import IMAGE_ENDINGS, Source, SourceItem, describe
from kilopix.data.sources.selection import EVERYTHING, Selection, Tally
from kilopix.data.sources.tables import ENDINGS, path_column, read_table
from kilopix.errors import UserError
from kilopix.values import BadValue

NAMES = ("captions", "metadata")
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
    caption, label = selection.columns_of(table.columns, file)
    spelled, tally = selection.check(table.columns, file), Tally()
    names = LabelNames.of(file, [root])
    unused = [(f"{file.name}, row {number}", why) for number, why in table.wrong]
    items: dict[str, SourceItem] = {}
    known: set[str] = set()
    for number, row in table.rows:
        place = f"{file.name}, row {number}"
        try:
            path = path_below(root, row.get(paths))
        except BadValue as error:
            unused.append((place, str(error)))
            continue
        known.add(path)
        if not tally.takes(selection, row, spelled):
            continue
        item = describe(path, Path(path).name, row.get(caption or ""), row.get(label or ""), names)
        if path not in items:
            items[path] = item
        elif item.error or item.class_name != items[path].class_name:
            why = item.error or f"{path} has another class in a row before, {items[path].class_name!r}"
            unused.append((place, why))
        else:
            both = dict.fromkeys(items[path].captions + item.captions)
            items[path] = replace(items[path], captions=tuple(both))
    below = walk(root, root)
    unused += below.passed + [
        (path, f"not in {file.name}")
        for path in below.files
        if path not in known and Path(path).suffix.lower() in IMAGE_ENDINGS
    ]
    if not known:
        first = f" ({unused[0][1]})" if unused else ""
        raise UserError(f"{file}: names no file{first}.")
    return Source(
        root,
        "captions file",
        list(items.values()),
        unused,
        tally if selection.conditions else None,
        below.hidden,
        table.columns,
    )


def path_below(root: Path, value: object) -> str:
    """The path below `root` that a file name of a table means: `./1.jpg`, `a\\1.jpg`, an absolute one in it.

    Raises `BadValue` for one that leads elsewhere, or is none.
    """
    if isinstance(value, dict):  # an image of the hub's data sets, of which the file's place is kept
        value = value.get("path")
    if not isinstance(value, str) or not value.strip():
        raise BadValue("names no file")
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
    if text == "." or text.split("/")[0] == "..":
        raise BadValue(f"{value} lies outside {root}, the folder of its table")
    return text
