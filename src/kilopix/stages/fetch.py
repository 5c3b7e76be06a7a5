"""A hub data set to pictures on disk: streamed row by row into Parquet files.

In: the name of a data set, or a folder of one. Out: a folder of Parquet files with the pictures' own bytes
and all other columns, which is a source for `kilopix caption`. Work that was interrupted goes on at the
first file that is missing.
"""

from collections.abc import Iterable, Iterator
from itertools import count, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilopix.artefacts.locks import owns
from kilopix.data.sources.listing import SAVED
from kilopix.english import counted
from kilopix.faults import first_line
from kilopix.jobs import JOB, Folder, open_job
from kilopix.progress import Progress, working
from kilopix.runtime import atomic_path, is_whole, name_some, read_json, say, write_json
from kilopix.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_FILE = 2048
ROWS_PER_GROUP = 16
"""A picture at random costs reading one row group, as when CutMix looks for a partner."""
DONE = "fetched.json"
FOLDER = Folder(("*.parquet",), (DONE,))


@owns("out")
def run(
    name: str,
    out: Path,
    split: str = "train",
    config: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> int:
    """Stream a split into Parquet files; the same command again goes on, or says that it is done."""
    import pyarrow.parquet as pq

    job = {"stage": "fetch", "name": name, "split": split, "config": config, "limit": limit}
    open_job(out, FOLDER, job, overwrite)
    if (out / DONE).exists():
        rows = read_json(out / DONE)["rows"]
        files = [_file(out, split, number) for number in range(-(-rows // ROWS_PER_FILE))]
        lost = [number for number, file in enumerate(files) if not is_whole(file)]
        if not lost:
            say(f"{out}: already complete, {counted(rows, 'row')}.")
            return rows
        names = name_some(files[number].name for number in lost)
        say(f"{out}: was complete, but these are missing or cut short, and fetched anew: {names}.")
        stream, schema, image = _open_stream(name, split, config)
        for number in lost:
            start = number * ROWS_PER_FILE
            some = islice(stream.skip(start), min(ROWS_PER_FILE, rows - start))
            for table in _tables(some, schema, image):
                _write(files[number], table)
        say(f"{out}: {counted(rows, 'row')} of {name}.")
        return rows
    stream, schema, image = _open_stream(name, split, config)
    files = list(takewhile(is_whole, (_file(out, split, i) for i in count())))
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    with Progress("fetch", limit, rows, "row") as shown:
        coming = iter(islice(stream.skip(rows), None if limit is None else max(0, limit - rows)))
        for number, table in enumerate(_tables(coming, schema, image), len(files)):
            _write(_file(out, split, number), table)
            rows += len(table)
            shown.advance(len(table))
    if not rows:
        raise UserError(f"{name}: its split {split} holds no row.")
    write_json(out / DONE, {"rows": rows} | read_json(out / JOB))
    say(f"{out}: {counted(rows, 'row')} of {name}.")
    return rows


def _file(out: Path, split: str, number: int) -> Path:
    return out / f"{split}-{number:05d}.parquet"


@working("open the data set")
def _open_stream(name: str, split: str, config: str | None) -> tuple[Any, "pa.Schema", str]:
    """The rows as they come, their columns, and the name of the column of pictures."""
    try:
        from datasets import Image, load_dataset  # pyright: ignore[reportMissingImports]
        from datasets.exceptions import DatasetNotFoundError  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise UserError("fetching from the hub needs `pip install 'kilopix[hub]'`.") from None
    try:
        stream = _saved(Path(name), split, config) or load_dataset(name, config, split=split, streaming=True)
    except (DatasetNotFoundError, FileNotFoundError, ValueError, OSError) as error:
        raise UserError(f"data set {name!r}: {first_line(error)}") from None
    features = stream.features
    if features is None:
        raise UserError(f"data set {name!r}: does not say its columns, so it cannot be streamed.")
    images = [column for column, kind in features.items() if isinstance(kind, Image)]
    if len(images) != 1:
        raise UserError(f"data set {name!r}: has {len(images)} columns of images, and one is needed.")
    stream = stream.cast_column(images[0], Image(decode=False))
    assert stream.features is not None
    return stream, stream.features.arrow_schema, images[0]


def _saved(folder: Path, split: str, config: str | None) -> Any:
    """The rows of a folder that `save_to_disk` wrote, as a stream; None if it is none."""
    from datasets import DatasetDict, load_from_disk  # pyright: ignore[reportMissingImports]

    if not any((folder / name).is_file() for name in SAVED):
        return None
    found = load_from_disk(str(folder))
    if isinstance(found, DatasetDict):
        if split not in found:
            raise UserError(f"{folder}: has no split {split!r}; it has {', '.join(map(str, found))}.")
        found = found[split]
    elif split != str(found.split or "train"):
        raise UserError(f"{folder}: holds no split {split!r}, but {found.split or 'rows of no split'}.")
    if config is not None:
        raise UserError(f"{folder}: was saved to disk, and has no configurations; leave out --config.")
    return found.to_iterable_dataset()


def _tables(rows: Iterable[dict[str, Any]], schema: "pa.Schema", image: str) -> "Iterator[pa.Table]":
    import pyarrow as pa

    rows = iter(rows)
    while some := [_with_bytes(row, image) for row in islice(rows, ROWS_PER_FILE)]:
        yield pa.Table.from_pylist(some, schema=schema)


def _with_bytes(row: dict[str, Any], image: str) -> dict[str, Any]:
    """A row whose picture is there as bytes; data sets of loose files say only where it is.

    A row whose picture cannot be had stays without bytes, so that `kilopix caption` names it.
    """
    import fsspec

    picture = row[image] or {}
    if picture.get("bytes") is not None or not picture.get("path"):
        return row
    filesystem, path = fsspec.url_to_fs(picture["path"])
    content = filesystem.cat_file(path) if filesystem.exists(path) else None
    return row | {image: {"bytes": content, "path": Path(path).name}}


def _write(path: Path, table: "pa.Table") -> None:
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        # Not compressed: pictures are already, and undoing it takes as long as decoding a small one.
        pq.write_table(
            table,
            temporary,
            row_group_size=ROWS_PER_GROUP,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
        )
