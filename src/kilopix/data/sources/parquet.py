"""Parquet files that hold the bytes of pictures, as the hub's data sets have them.

In: Parquet files with a column of pictures, and if they like, of labels and captions. Out: items that
point to their rows; the pictures themselves are not read.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kilopix.data.sources.captioned import CAPTION_COLUMNS, CLASS_COLUMNS
from kilopix.data.sources.classes import name_label, read_class_table
from kilopix.data.sources.containers import image_column, reference
from kilopix.data.sources.items import SourceItem
from kilopix.data.sources.selection import EVERYTHING, Selection, Tally
from kilopix.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


def parquet_pictures(
    root: Path, files: list[Path], selection: Selection = EVERYTHING, tally: Tally | None = None
) -> list[SourceItem]:
    """The wanted pictures of Parquet files below `root`, file by file and row by row."""
    tally = tally or Tally()
    return [item for file in files for item in _pictures_of(root, file, selection, tally)]


def _pictures_of(root: Path, file: Path, selection: Selection, tally: Tally) -> list[SourceItem]:
    import pyarrow.parquet as pq

    schema = parquet_schema(file)
    image_column(schema, file)
    label = next((name for name in (*CLASS_COLUMNS, "cls") if name in schema.names), None)
    spelled = selection.check(schema.names, file)
    caption = next((name for name in CAPTION_COLUMNS if name in schema.names), None)
    caption = spelled[selection.caption_column] if selection.caption_column else caption
    wanted = sorted({name for name in (label, caption) if name} | set(spelled.values()))
    names = _label_names(schema, label) if label else None
    table = read_class_table(root) or read_class_table(file.parent)
    container = str(file.relative_to(root))
    with pq.ParquetFile(file) as opened:
        count = opened.metadata.num_rows
        columns = opened.read(columns=wanted).to_pydict() if wanted else {}
    labels = columns[label] if label else [None] * count
    captions = columns[caption] if caption else [""] * count
    return [
        SourceItem(
            reference(container, row), name_label(labels[row], names, table, file), _text(captions[row])
        )
        for row in range(count)
        if tally.takes(selection, {name: columns[name][row] for name in spelled.values()}, spelled)
    ]


def parquet_schema(file: Path) -> "pa.Schema":
    """The columns of a Parquet file; anything else is a `UserError` that names it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file}: not a Parquet file ({str(error).splitlines()[0]}).") from None


def holds_pictures(file: Path) -> bool:
    """Whether a Parquet file has a column of pictures; one without may be a captions file."""
    try:
        image_column(parquet_schema(file), file)
    except UserError:
        return False
    return True


def _label_names(schema: "pa.Schema", column: str) -> list[str] | None:
    """The names that the hub's data sets keep for their numbered labels."""
    record = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(record)["info"]["features"] if record else {}
        names = features[column]["names"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
    return names if isinstance(names, list) else None


def _text(caption: object) -> str:
    """A caption, or the first of several."""
    if isinstance(caption, list):
        caption = caption[0] if caption else ""
    return " ".join(str(caption or "").split())
