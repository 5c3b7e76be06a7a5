"""Tables of texts: csv, tsv, JSON lines and Parquet, read in one way.

In: a file. Out: its columns, its rows by number, and the rows that cannot be read with the reason, so that
nothing in it is taken for something else. A csv or tsv may be written by a program, with quotation marks, or
by hand, without.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kilopix.data.sources.columns import CAPTION_COLUMNS, CLASS_COLUMNS, PATH_COLUMNS, find_columns
from kilopix.data.sources.items import IMAGE_ENDINGS
from kilopix.errors import UserError
from kilopix.faults import first_line
from kilopix.runtime import lines_or_faults

DELIMITERS = {".tsv": "\t", ".csv": ","}
ENDINGS = (".tsv", ".csv", ".jsonl", ".parquet")
_LONGEST_FIELD = 1 << 24


@dataclass(frozen=True)
class Table:
    """The columns of a table, in small letters, its rows by number from 1 on, and those that are wrong."""

    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, Any]]]
    wrong: list[tuple[int, str]] = field(default_factory=list)


def read_table(file: Path) -> Table:
    """Read a table by the ending of its name, whatever its capitals; one that is none is a `UserError`."""
    ending = file.suffix.lower()
    if ending in DELIMITERS:
        return _separated(file, DELIMITERS[ending])
    if ending == ".jsonl":
        _refuse_array(file)
    table = Table((), [])
    for number, row in enumerate(lines_or_faults(file) if ending == ".jsonl" else _parquet(file), 1):
        if isinstance(row, str):
            table.wrong.append((number, row))
        else:
            table.rows.append((number, _lowered(row)))
    if table.wrong and not table.rows:
        raise UserError(f"{file}, {table.wrong[0][1]}.")
    columns = dict.fromkeys(name for _, row in table.rows for name in row)
    return replace(table, columns=tuple(columns))


def _lowered(row: dict[str, Any]) -> dict[str, Any]:
    """A row by names in small letters; of names that differ in capitals alone, the one without any counts."""
    return {name.lower(): value for name, value in row.items()} | {
        name: value for name, value in row.items() if name == name.lower()
    }


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file}: not a Parquet file ({first_line(error)}).") from None
    _refuse_doubles([name.lower() for name in columns if name == name.lower()], file)
    try:
        yield from pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}).") from None


def _refuse_array(file: Path) -> None:
    """Refuse JSON that is one list, which is no JSON lines, with what to do."""
    try:
        with open(file, encoding="utf-8-sig") as opened:
            begins = opened.read(1000).lstrip()
    except (OSError, UnicodeDecodeError):
        return
    if begins.startswith("["):
        raise UserError(f"{file}: one JSON list; write its records as JSON lines, one object in each line.")


def _refuse_doubles(columns: Sequence[str], file: Path) -> None:
    wanted = {*PATH_COLUMNS, *CAPTION_COLUMNS, *CLASS_COLUMNS}
    for name in columns:
        if name in wanted and columns.count(name) > 1:
            raise UserError(f"{file}: has {columns.count(name)} columns called {name!r}; rename or drop one.")


def _separated(file: Path, delimiter: str) -> Table:
    """A csv or tsv; one of two columns needs no header.

    A row with another number of fields than the header is wrong, since nobody knows which field is which. But
    with two columns, a file name and a text, what follows the first delimiter is the text, commas and all.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file}: not a text in UTF-8; save it as CSV UTF-8.") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error}).") from None
    text = text.lstrip("\ufeff\r\n ")
    if declared := re.match(r"sep=(.)\r?\n", text):  # so Excel writes and reads it
        text, delimiter = text[declared.end() :], declared[1]
    delimiter = _delimiter(text.partition("\n")[0], delimiter)
    records = _records(text, delimiter, file)
    if not records:
        return Table((), [])
    _, header, _ = records[0]
    columns = [name.strip().lower() for name in header]
    _refuse_doubles(columns, file)
    unnamed = not set(columns) & {*PATH_COLUMNS, *CAPTION_COLUMNS}
    if unnamed and len(columns) >= 2 and any(len(fields) == 2 for _, fields, _ in records):
        columns = [PATH_COLUMNS[0], CAPTION_COLUMNS[0]]
    else:
        records = records[1:]
    open_end = len(columns) == 2 and columns[0] in PATH_COLUMNS and columns[1] not in CLASS_COLUMNS
    table = Table(tuple(columns), [])
    for number, (line, fields, error) in enumerate(records, 1):
        if len(fields) > len(columns) and not any(fields[len(columns) :]):
            fields = fields[: len(columns)]
        if len(fields) > 2 and open_end and not error:
            fields = [fields[0], delimiter.join(fields[1:])]
        if error or len(fields) != len(columns):
            found = f"{len(fields)} fields, and the header names {len(columns)} columns"
            hint = f"; a text with {delimiter!r} in it needs quotation marks around it"
            more = hint if len(fields) > len(columns) else ""
            table.wrong.append((number, error or f"line {line} has {found}{more}"))
        else:
            table.rows.append((number, dict(zip(columns, fields, strict=True))))
    return table


_Record = tuple[int, Sequence[str], str]
"""The line that a record begins on, its fields, and what is wrong with it."""


def _records(text: str, delimiter: str, file: Path) -> list[_Record]:
    """The records of a file, without empty ones, with quotation marks read as programs write them.

    Of a tsv, whose texts are often written as they are, marks that do not fit are part of the text, and so
    are all others of the file.
    """
    quoted = _parse(text, delimiter)
    if delimiter == "\t":
        raw: list[_Record] = [
            (i, line.split("\t"), "") for i, line in enumerate(_lines(text), 1) if line.strip()
        ]
        wrong = [_wrong(records) for records in (raw, quoted)]
        if wrong[0] < wrong[1] or (wrong[0] == wrong[1] == 0 and len(raw) != len(quoted)):
            return raw
    for line, _, error in quoted:
        if error == _UNCLOSED:
            raise UserError(f"{file}: the quotation mark in line {line} is never closed; close or double it.")
    return quoted


def _wrong(records: Sequence[_Record]) -> int:
    """How many records are no csv, or of another length than the first."""
    return sum(bool(error) or len(fields) != len(records[0][1]) for _, fields, error in records)


def _delimiter(first: str, usual: str) -> str:
    """What stands between the fields of a table whose first line is this: a header, or a name and a text."""
    for delimiter in dict.fromkeys((usual, ",", ";", "\t")):
        fields = [field.strip().strip('"').lower() for field in first.split(delimiter)]
        names_files = set(fields) & {*PATH_COLUMNS} or Path(fields[0]).suffix in IMAGE_ENDINGS
        if names_files and len(fields) > 1:
            return delimiter
    return usual


_UNCLOSED = "unexpected end of data"  # what the csv module calls it


def _parse(text: str, delimiter: str) -> list[_Record]:
    csv.field_size_limit(_LONGEST_FIELD)
    lines = (line + "\n" for line in _lines(text))  # not splitlines: a text may hold U+2028
    spaced = delimiter != "\t" and re.search(rf'{re.escape(delimiter)} +"', text) is not None
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    records: list[_Record] = []
    while True:
        begins = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return records
        except csv.Error as error:
            why = str(error)
            wrong = why if why == _UNCLOSED else f"line {reader.line_num} is not valid csv ({why})"
            records.append((begins, [], wrong))
            continue
        if any(fields):
            records.append((begins, fields, ""))


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def path_column(table: Table, file: Path) -> str:
    """The column of file names of a table; `UserError` if it has none."""
    found = find_columns(table.columns, PATH_COLUMNS)
    if not found:
        has = ", ".join(table.columns)
        raise UserError(f"{file}: needs a column of file names, called {PATH_COLUMNS[0]}; it has {has}.")
    return found[0]
