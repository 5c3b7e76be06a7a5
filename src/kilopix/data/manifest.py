"""Manifests: one Parquet file with a row per picture, its caption and its geometry.

In: rows of Arrow tables, failed files included. Out: `manifest.parquet` of the rows that can be used,
and beside it `<name>.failures.jsonl` that names every file left out, and why. A manifest that another program
has edited and saved is read too.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from kilopix.artefacts.digests import check_table, seal_table
from kilopix.config import Config, parse
from kilopix.data.cutmix import SETTINGS
from kilopix.data.manifest_table import to_columns
from kilopix.faults import first_line
from kilopix.jobs import check_same_job
from kilopix.runtime import atomic_path, not_below, report_left_out
from kilopix.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa


MANIFEST_FORMAT = "kilopix manifest 1"
ROOT = "root"
_OF_PANDAS = "PANDAS_ATTRS"
"""Where pandas keeps what it knows of a table beside its columns, from reading it to saving it."""
_SAID = (ROOT, "job", "failed", "format", _OF_PANDAS)
_KINDS = ("plain", "cutmix", "crop")
_ROWS_PER_BYTE = 4
_SHOWN = 80
_LEAST, _ROUNDED = 1e-3, 1e-6
"""Of the sides of a box: more than the one lies between them, and the other is what rounding may add."""


def _from_json(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except RecursionError:
        raise ValueError("nested too deep") from None


@dataclass(frozen=True)
class Row:
    """One picture: `path` is below the manifest's root and is its id, `short` a caption of few words.

    `more` are further captions of the same picture, of which training draws one in every epoch. A picture
    in a container has a path such as `train-0.parquet#17` or `shard.tar#0001.jpg`.

    kind is plain, cutmix or crop; of the last two, `base` names the plain picture, `setting` and
    `partner` the paste, and `box` (x0, y0, x1, y1 in fractions of the side) where it lies. A row with an
    `error` is a file that could not be used. `made_from` is a hash of what the caption was made from, the
    image's bytes among it: as long as it stays, the caption holds.
    """

    path: str
    class_name: str
    caption: str = ""
    short: str = ""
    width: int = 0
    height: int = 0
    kind: str = "plain"
    base: str = ""
    setting: str = ""
    partner: str = ""
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    error: str = ""
    more: tuple[str, ...] = ()
    made_from: str = ""


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read: the folder its paths start from, its rows, the job that made it, and the
    rows that were left out of it."""

    root: Path
    rows: list[Row]
    job: dict[str, Any]
    failed: list[Row] = field(default_factory=list)

    def file(self, row: Row) -> Path:
        """The picture of a row."""
        return self.root / row.path


def schema() -> "pa.Schema":
    """The columns of a manifest."""
    import pyarrow as pa

    kinds = {str: pa.string(), int: pa.int32(), tuple[str, ...]: pa.list_(pa.string())}
    columns = [(f.name, kinds.get(f.type, pa.list_(pa.float64(), 4))) for f in fields(Row)]  # pyright: ignore[reportArgumentType, reportCallIssue]
    return pa.schema(columns)


def to_table(rows: Iterable[Row]) -> "pa.Table":
    """Rows as an Arrow table."""
    import pyarrow as pa

    rows = list(rows)
    columns = [[getattr(row, name) for row in rows] for name in schema().names]
    return pa.Table.from_arrays(
        [pa.array(values, column.type) for values, column in zip(columns, schema(), strict=True)],
        schema=schema(),
    )


def from_table(table: "pa.Table") -> list[Row]:
    """The rows of an Arrow table; what is null is as if it were not given."""
    return [_row(values) for values in table.to_pylist()]


def _row(values: dict[str, Any]) -> Row:
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if value is not None
    }
    return Row(**{"class_name": "", **given})


def write_manifest(path: Path, root: Path, rows: list[Row], job: dict[str, Any]) -> list[Row]:
    """Write the usable rows and the failures; return the failed rows.

    The root is kept relative to the manifest, so that both can be moved together; in a column too, which no
    program drops that edits the captions. pandas keeps all of what is said beside the columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    failed = [row for row in rows if row.error]
    report_left_out([(row.path, row.error) for row in failed], failures_path(path))
    good = [row for row in rows if not row.error]
    if not good:
        raise UserError(f"{root}: no picture in it could be used; {failures_path(path)} says why for each.")
    relative = os.path.relpath(root.resolve(), path.resolve().parent)
    metadata = {ROOT: relative, "job": json.dumps(job), "format": MANIFEST_FORMAT}
    metadata["failed"] = json.dumps([[row.path, row.class_name, row.error] for row in failed])
    table = to_table(good).append_column(ROOT, pa.array([relative] * len(good), pa.string()))
    table = table.replace_schema_metadata({**metadata, _OF_PANDAS: json.dumps(metadata)})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
        seal_table(temporary)
    return failed


def failures_path(manifest: Path) -> Path:
    """The list of files left out of a manifest."""
    return manifest.with_name(manifest.stem + ".failures.jsonl")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; anything else is a `UserError` that names the file."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if path.is_dir():
        raise UserError(f"{path}: a folder, not a manifest; `kilopix caption` writes one from its images.")
    if not path.is_file():
        raise UserError(f"{path}: no such manifest file; `kilopix caption` and `kilopix augment` write one.")
    try:
        check_table(path)
        rows = pq.read_metadata(path).num_rows
        if rows > _ROWS_PER_BYTE * path.stat().st_size:
            raise UserError(f"{path}: says that it has {rows:,} rows, more than a file of its size can hold.")
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({first_line(error)}).") from None
    record = _record(table.schema, path)
    if record.format not in ("", MANIFEST_FORMAT):
        raise UserError(f"{path}: a Parquet file, but not a manifest of this version of kilopix.")
    columns = to_columns(table, schema(), path)
    for name in ("box", "more"):
        if pc.list_flatten(columns.column(name)).null_count:  # pyright: ignore[reportAttributeAccessIssue]
            raise UserError(f"{path}: the column {name!r} has lists with nulls in them.")
    try:
        rows = from_table(columns)
    except UnicodeDecodeError:
        raise UserError(f"{path}: holds text that is not UTF-8.") from None
    for number, row in enumerate(rows):
        if why := _fault(row):
            raise UserError(f"{path}: row {number} ({row.path[:_SHOWN]!r}): {why}.")
    root = (path.resolve().parent / _root(table, record, path)).resolve()
    if not record.format and rows and not (root / rows[0].path.split("#")[0]).exists():
        raise UserError(
            f"{path}: its first image is {rows[0].path}, and there is no such file below {root}. Another "
            f"program saved the manifest without its folder of images; name that in a column {ROOT!r}."
        )
    return Manifest(root, rows, record.job, [Row(p, name, error=why) for p, name, why in record.failed])


class _Record(Config):
    """What is said of a manifest beside its columns."""

    model_config = ConfigDict(extra="ignore")

    format: str = ""
    root: str = "."
    job: Annotated[dict[str, Any], BeforeValidator(_from_json)] = Field(default_factory=dict)
    failed: Annotated[list[tuple[str, str, str]], BeforeValidator(_from_json)] = Field(default_factory=list)


def _record(schema: "pa.Schema", path: Path) -> _Record:
    """What is said of a manifest beside its columns; nothing if the program that saved it dropped it."""
    said = {k: v for k, v in (schema.metadata or {}).items() if k.decode(errors="replace") in _SAID}
    try:
        metadata: Any = {k.decode(): v.decode() for k, v in said.items()}
        if "format" not in metadata:
            metadata = json.loads(metadata.get(_OF_PANDAS, "{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: what is said beside its columns cannot be read ({error}).") from None
    return parse(_Record, metadata, f"{path}: beside its columns") if "format" in metadata else _Record()


def _fault(row: Row) -> str:
    """What is wrong with a row that cannot be one of a manifest's, whatever its images are."""
    for name in (row.path, row.base, row.partner):
        if why := not_below(name):
            return why
    x0, y0, x1, y1 = row.box
    sides = (-_ROUNDED <= low < high - _LEAST and high <= 1 + _ROUNDED for low, high in ((x0, x1), (y0, y1)))
    if not all(sides):  # as of a NaN
        return f"its box {row.box} is no part of an image; the sides of one go from 0 to 1"
    if row.kind not in _KINDS:
        return f"its kind is {row.kind[:_SHOWN]!r}, which is none of {', '.join(_KINDS)}"
    if row.kind == "cutmix" and row.setting not in SETTINGS:
        return f"its setting is {row.setting[:_SHOWN]!r}, which is none of {', '.join(SETTINGS)}"
    return "its size is below 0" if min(row.width, row.height) < 0 else ""


def _root(table: "pa.Table", record: _Record, path: Path) -> str:
    """The folder of the images, from that of the manifest."""
    column = table.column(ROOT).to_pylist() if ROOT in table.schema.names else []
    if not all(isinstance(root, str) or root is None for root in column):
        raise UserError(f"{path}: its {ROOT!r} must be a folder's path; it is {column[0]!r}.")
    said = list(dict.fromkeys(column))
    if len(said) > 1:
        raise UserError(f"{path}: the column {ROOT!r} must be the same in all rows; it has {said[:3]}.")
    root = said[0] if said and said[0] else record.root
    if "\0" in root:
        raise UserError(f"{path}: its {ROOT!r} must be a folder's path; it is {root!r}.")
    return root


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest, of any version, rather than another Parquet file or a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix != ".parquet" or not path.is_file():
        return False
    try:
        found = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return False
    known = {field.name for field in fields(Row)} - {"error", "more", "made_from"}
    return _record(found, path).format.startswith("kilopix manifest") or known <= set(found.names)


def finished(path: Path, job: dict[str, Any], overwrite: bool = False) -> Manifest | None:
    """The manifest at `path` if the same job made it already; another job's is a `UserError`."""
    return earlier(path, job, overwrite=overwrite)


def earlier(path: Path, job: dict[str, Any], *inputs: str, overwrite: bool = False) -> Manifest | None:
    """The manifest at `path` if the same job made it, but for the `inputs` that may have changed since.

    None if there is none, or that of another job is to be replaced; else that is a `UserError`, and so is
    one whose rows do not say what they are made from.

    With `overwrite` it is None too, for a manifest that is to be replaced.
    """
    if not path.exists():
        return None
    manifest = read_manifest(path)
    if not manifest.job and not overwrite:
        raise UserError(
            f"{path}: was saved by another program, without the record of how it was made, so it cannot be "
            "gone on with. Choose another place for the new manifest."
        )
    if all(row.made_from for row in manifest.rows):
        job = job | {key: manifest.job[key] for key in inputs if key in manifest.job}
    return manifest if check_same_job(manifest.job, job, path, overwrite) else None
