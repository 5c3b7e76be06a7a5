"""Manifests: one Parquet file with a row per picture, its caption and its geometry.

In: rows of Arrow tables, failed files included. Out: `manifest.parquet` of the rows that can be used,
and beside it `<name>.failures.jsonl` that names every file left out, and why.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilopix.jobs import check_same_job
from kilopix.runtime import atomic_path, report_left_out
from kilopix.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa


MANIFEST_FORMAT = "kilopix manifest 1"


@dataclass(frozen=True)
class Row:
    """One picture: `path` is below the manifest's root and is its id, `short` a caption of few words.

    `more` are further captions of the same picture, of which training draws one in every epoch. A picture
    in a container has a path such as `train-0.parquet#17` or `shard.tar#0001.jpg`.

    kind is plain, cutmix or crop; of the last two, `base` names the plain picture, `setting` and
    `partner` the paste, and `box` (x0, y0, x1, y1 in fractions of the side) where it lies. A row with an
    `error` is a file that could not be used.
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
    """The rows of an Arrow table."""
    return [
        Row(**{**row, "box": tuple(row["box"]), "more": tuple(row["more"] or ())})
        for row in table.to_pylist()
    ]


def write_manifest(path: Path, root: Path, rows: list[Row], job: dict[str, Any]) -> list[Row]:
    """Write the usable rows and the failures; return the failed rows.

    The root is kept relative to the manifest, so that both can be moved together.
    """
    import pyarrow.parquet as pq

    failed = [row for row in rows if row.error]
    report_left_out([(row.path, row.error) for row in failed], failures_path(path))
    good = [row for row in rows if not row.error]
    if not good:
        raise UserError(f"{root}: no picture in it could be used; {failures_path(path)} says why for each.")
    relative = os.path.relpath(root.resolve(), path.resolve().parent)
    metadata = {"root": relative, "job": json.dumps(job), "format": MANIFEST_FORMAT}
    metadata["failed"] = json.dumps([[row.path, row.class_name, row.error] for row in failed])
    table = to_table(good).replace_schema_metadata(metadata)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
    return failed


def failures_path(manifest: Path) -> Path:
    """The list of files left out of a manifest."""
    return manifest.with_name(manifest.stem + ".failures.jsonl")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; anything else is a `UserError` that names the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.is_dir():
        raise UserError(f"{path}: a folder, not a manifest; `kilopix caption` writes one from its images.")
    if not path.is_file():
        raise UserError(f"{path}: no such manifest file; `kilopix caption` and `kilopix augment` write one.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({str(error).splitlines()[0]}).") from None
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    if "more" not in table.schema.names:  # one that was written before pictures had several captions
        table = table.append_column("more", pa.nulls(len(table), pa.list_(pa.string())))
    if metadata.get("format") != MANIFEST_FORMAT or not table.schema.equals(schema()):
        raise UserError(f"{path}: a Parquet file, but not a manifest of this version of kilopix.")
    root = (path.resolve().parent / metadata["root"]).resolve()
    failed = [Row(path, name, error=why) for path, name, why in json.loads(metadata.get("failed", "[]"))]
    return Manifest(root, from_table(table), json.loads(metadata["job"]), failed)


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest, of any version, rather than another Parquet file or a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix != ".parquet" or not path.is_file():
        return False
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, OSError):
        return False
    return metadata.get(b"format", b"").startswith(b"kilopix manifest")


def finished(path: Path, job: dict[str, Any], overwrite: bool = False) -> Manifest | None:
    """The manifest at `path` if the same job made it already; another job's is a `UserError`.

    With `overwrite` it is None too, for a manifest that is to be replaced.
    """
    if not path.exists():
        return None
    manifest = read_manifest(path)
    return manifest if check_same_job(manifest.job, job, path, overwrite) else None
