"""Pictures with a captions file: a table of file names and captions, and if it likes, of classes.

In: a tsv, csv, jsonl or Parquet file beside the pictures. Out: items in the order of the table.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kilopix.data.sources.classes import class_name_of, class_of_file
from kilopix.data.sources.folders import files_below
from kilopix.data.sources.items import IMAGE_ENDINGS, Source, SourceItem
from kilopix.data.sources.selection import EVERYTHING, Selection, Tally
from kilopix.errors import UserError
from kilopix.runtime import iterate_lines

NAMES = ("captions", "metadata")
ENDINGS = (".tsv", ".csv", ".jsonl", ".parquet")
PATH_COLUMNS = ("file_name", "path", "file", "image", "image_path", "filename")
CAPTION_COLUMNS = ("caption", "text")
CLASS_COLUMNS = ("class_name", "class", "label")


def captions_files(folder: Path) -> list[Path]:
    """The captions files of a folder, by their names: `captions` or `metadata`, of any of the four kinds."""
    return [path for name in NAMES for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()]


def captioned_pictures(table: Path, selection: Selection = EVERYTHING) -> Source:
    """The wanted pictures that a captions file names, which lie below its folder."""
    rows = list(_rows(table))
    if not rows:
        raise UserError(f"{table}: holds no row.")
    path_column = _column(rows[0], PATH_COLUMNS, table, "file names")
    spelled, tally = selection.check(rows[0], table), Tally()
    caption_column = (
        spelled[selection.caption_column]
        if selection.caption_column
        else _column(rows[0], CAPTION_COLUMNS, table, "captions")
    )
    class_column = next((name for name in CLASS_COLUMNS if name in rows[0]), None)
    items: list[SourceItem] = []
    unused: list[tuple[str, str]] = []
    known: set[str] = set()
    for line, row in enumerate(rows, 1):
        path, caption = row.get(path_column), row.get(caption_column)
        if not isinstance(path, str) or not path:
            unused.append((f"{table.name}, row {line}", "names no file"))
            continue
        if path in known:
            unused.append((f"{table.name}, row {line}", f"{path} has a caption already"))
            continue
        known.add(path)
        if not tally.takes(selection, row, spelled):
            continue
        label = row.get(class_column) if class_column else None
        class_name = class_name_of(label) if isinstance(label, str) else class_of_file(Path(path).name)
        items.append(SourceItem(path, class_name, " ".join(str(caption or "").split())))
    unused += [
        (path, f"not in {table.name}")
        for path in files_below(table.parent, table.parent)
        if path not in known and Path(path).suffix.lower() in IMAGE_ENDINGS
    ]
    if not known:
        raise UserError(f"{table}: names no file.")
    return Source(table.parent, "captions file", items, unused, tally if selection.conditions else None)


def _column(row: dict[str, Any], names: tuple[str, ...], table: Path, what: str) -> str:
    for name in names:
        if name in row:
            return name
    raise UserError(f"{table}: needs a column of {what}, called {names[0]}; it has {', '.join(row)}.")


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table by the names of its columns, in small letters."""
    readers = {".tsv": _separated, ".csv": _separated, ".jsonl": iterate_lines, ".parquet": _parquet}
    try:
        for row in readers[table.suffix](table):
            yield {str(name).lower(): value for name, value in row.items() if name is not None}
    except UnicodeDecodeError:
        raise UserError(f"{table}: not a text in UTF-8.") from None
    except csv.Error as error:
        raise UserError(f"{table}: {error}.") from None


def _separated(table: Path) -> Iterator[dict[str, Any]]:
    """Rows of a csv or tsv; one of two columns needs no header."""
    tabs = table.suffix == ".tsv"
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if tabs else ",", quoting=quoting)
        header = next(reader, [])
        names = [name.strip().lower() for name in header]
        if len(header) == 2 and not set(names) & {*PATH_COLUMNS, *CAPTION_COLUMNS}:
            names = [PATH_COLUMNS[0], CAPTION_COLUMNS[0]]
            yield dict(zip(names, header, strict=True))
        for row in reader:
            if row:
                yield dict(zip(names, row, strict=False))


def _parquet(table: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from pq.read_table(table).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{table}: not a Parquet file ({str(error).splitlines()[0]}).") from None
