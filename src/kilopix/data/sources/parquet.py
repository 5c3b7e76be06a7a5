"""Parquet files that hold the bytes of pictures, as the hub's data sets have them.

In: Parquet files with a column of pictures, and if they like, of labels and captions. Out: items that
point to their rows; the pictures themselves are not read.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kilopix.data.sources.captioned import path_below
from kilopix.data.sources.classes import LabelNames
from kilopix.data.sources.containers import image_column, reference
from kilopix.data.sources.items import SourceItem, describe
from kilopix.data.sources.selection import EVERYTHING, Selection, Tally
from kilopix.errors import UserError
from kilopix.faults import first_line
from kilopix.values import BadValue, first_present

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def parquet_pictures(
    root: Path, files: list[Path], selection: Selection = EVERYTHING, tally: Tally | None = None
) -> list[SourceItem]:
    """The wanted pictures of Parquet files below `root`, file by file and row by row."""
    tally = tally or Tally()
    return [item for file in files for item in _pictures_of(root, file, selection, tally)]


def _pictures_of(root: Path, file: Path, selection: Selection, tally: Tally) -> list[SourceItem]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = parquet_schema(file)
    image = image_column(schema, file)
    captions, labels = selection.columns_of(schema.names, file)
    spelled = selection.check(schema.names, file)
    numbers = [names for label in labels if (names := _label_names(schema, label))]
    names = LabelNames.of(file, [root, file.parent], numbers[0] if numbers else None)
    wanted = sorted({*labels, *captions, *spelled.values()})
    doubled = [name for name in wanted if schema.names.count(name) > 1]
    if doubled:
        raise UserError(f"{file}: has several columns called {doubled[0]!r}; rename or drop one.")
    container = file.relative_to(root).as_posix()
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            count = opened.metadata.num_rows
            columns = opened.read(columns=wanted).to_pydict() if wanted else {}
            outside = _rows_outside(opened, image, root, file)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        what = ", ".join(wanted) or "image"
        raise UserError(f"{file}: its columns {what} cannot be read ({first_line(error)}).") from None
    items: list[SourceItem] = []
    known: dict[str, int] = {}
    for row in range(count):
        if tally.takes(selection, {name: columns[name][row] for name in spelled.values()}, spelled):
            place = reference(container, row)
            path, why = outside.get(row, (place, ""))
            if not why and known.setdefault(path, row) != row:
                why = f"its file {path} is that of row {known[path]}, too"
            text, label = (first_present(columns[name][row] for name in some) for some in (captions, labels))
            item = describe(path, Path(path).name, text, label, names)
            items.append(replace(item, path=place, error=why) if why else item)
    return items


def _rows_outside(opened: "pq.ParquetFile", image: str, root: Path, file: Path) -> dict[int, tuple[str, str]]:
    """The rows without an image's bytes of which the place of its file is known: that place, or why not.

    So `Dataset.to_parquet` of the hub's library leaves images that are given by their paths.
    """
    schema = opened.schema_arrow
    column = image.removesuffix(".bytes")
    if image in schema.names or schema.field(column).type.get_field_index("path") < 0:
        return {}
    if not _may_lack_bytes(opened, image):
        return {}
    found: dict[int, tuple[str, str]] = {}
    start = 0
    for batch in opened.iter_batches(256, columns=[image, f"{column}.path"], use_threads=False):
        rows = batch.column(0)
        lacking, paths = rows.field("bytes").is_null().to_pylist(), rows.field("path").to_pylist()
        for row, path in enumerate(paths):
            if lacking[row] and path:
                found[start + row] = _place_of(path, root, file)
        start += len(batch)
    return found


def _may_lack_bytes(opened: "pq.ParquetFile", image: str) -> bool:
    """Whether a row may have no bytes, by what the file says of itself; a file that says nothing may."""
    metadata = opened.metadata
    number = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == image)
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(number).statistics
        if statistics is None or not statistics.has_null_count or statistics.null_count:
            return True
    return False


def _place_of(path: str, root: Path, file: Path) -> tuple[str, str]:
    """The path below `root` of an image that a row names by its place, or why it cannot be read."""
    for folder in (file.parent, root):
        try:
            inside = path_below(folder, path)
        except BadValue:
            continue
        if (folder / inside).is_file():
            return (folder / inside).relative_to(root).as_posix(), ""
    return path, f"the row holds no bytes of a picture, and its file {path} is not below {root}"


def parquet_schema(file: Path) -> "pa.Schema":
    """The columns of a Parquet file; anything else is a `UserError` that names it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file}: not a Parquet file ({first_line(error)}).") from None


def holds_pictures(file: Path) -> bool:
    """Whether a Parquet file has a column of pictures; one without may be a captions file."""
    try:
        image_column(parquet_schema(file), file)
    except UserError:
        return False
    return True


def _label_names(schema: "pa.Schema", column: str) -> list[str] | None:
    """The names that the hub's data sets keep for their numbered labels, also for lists of one label."""
    record = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(record)["info"]["features"] if record else {}
        feature = features[column]
        feature = feature.get("feature", feature) if isinstance(feature, dict) else feature[0]
        names = feature["names"]
    except (json.JSONDecodeError, KeyError, TypeError, IndexError):
        return None
    return names if isinstance(names, list) else None
