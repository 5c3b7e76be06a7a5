"""Are shards whole? Hashes, counts and sizes of every file, and whether every number is finite.

In: a folder of shards. Out: a list of faults, each naming its file; none if the shards can be trained on.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kilopix.data.columns import Blobs, ListedBlobs, check_columns
from kilopix.data.parts import open_table
from kilopix.data.shards import ShardIndex, read_index
from kilopix.data.text_storage import is_finite, tokens_in, view
from kilopix.english import counted
from kilopix.runtime import is_whole, sha256_of_file
from kilopix.types import UserError


@dataclass(frozen=True)
class Findings:
    """What a verification saw: rows of each kind, and the faults."""

    rows: dict[str, int]
    faults: list[str]


def verify(folder: Path, on_file: Callable[[], None] = lambda: None) -> Findings:
    """Check every file of the shards; `on_file` is called after each.

    Files are checked in threads, which hash at the speed of the disk.
    """
    index = read_index(folder)
    rows: dict[str, int] = {"plain": 0, "augmented": 0}
    faults: list[str] = []

    def check(name: str) -> tuple[int, list[str]]:
        found = _check_file(folder / name, index)
        on_file()
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, (count, found) in zip(index.files, pool.map(check, index.files), strict=True):
            faults += found
            kind = name.split("-")[0]
            if kind in rows:
                rows[kind] += count
    for kind, expected in (("plain", index.plain), ("augmented", index.augmented)):
        if rows[kind] != expected and not faults:
            faults.append(f"index.json: says {expected} {kind} pictures, but the files hold {rows[kind]}")
    statistics = index.latent_statistics
    if not np.isfinite([*statistics.mean, *statistics.std]).all() or min(statistics.std) <= 0:
        faults.append("index.json: the statistics of the latents are not finite and positive")
    return Findings(rows, faults)


def lost_files(folder: Path, index: ShardIndex) -> list[str]:
    """The files of finished shards that are missing or cut short; of small ones, the hash is compared."""
    return [
        name
        for name, sha256 in index.files.items()
        if not is_whole(folder / name)
        or (not name.endswith(".arrow") and sha256_of_file(folder / name) != sha256)
    ]


def check_shards_are_whole(folder: Path) -> None:
    """Raise a `UserError` that names the first faults, if there are any."""
    if faults := verify(folder).faults:
        raise UserError(f"{folder}: {counted(len(faults), 'fault')}: {'; '.join(faults[:3])}")


def _check_file(path: Path, index: ShardIndex) -> tuple[int, list[str]]:
    """How many rows a file holds, and its faults."""
    if not path.is_file():
        return 0, [f"{path.name}: missing"]
    if sha256_of_file(path) != index.files[path.name]:
        return 0, [f"{path.name}: damaged; its SHA-256 is not the one in index.json"]
    if path.suffix != ".arrow":
        return 0, []
    try:
        table = open_table(path)
        check_columns(table, path)
    except UserError as error:
        return 0, [str(error)]
    faults: list[str] = []

    def look(column: str, blobs: Blobs, row: Callable[[int], int]) -> None:
        wrong = [i for i, bad in enumerate(_bad_rows(blobs, column, index)) if bad]
        if wrong:
            faults.append(
                f"{path.name}: {column} of {counted(len(wrong), 'row')} is of the wrong size or not "
                f"finite, first of {table.column('path')[row(wrong[0])].as_py()}"
            )

    for column in ("mean", "std", "text", "short_text"):
        look(column, Blobs(table.column(column)), lambda i: i)
    if more := ListedBlobs.of(table, "more_text"):
        starts = more.starts
        look("more_text", more.blobs, lambda i: int(np.searchsorted(starts, i, "right")) - 1)
    return table.num_rows, faults


def _bad_rows(blobs: Blobs, column: str, index: ShardIndex) -> Iterator[bool]:
    latent_bytes = 2 * int(np.prod(index.latent_shape))
    for i, size in enumerate(blobs.sizes().tolist()):
        if size == 0 and column in ("std", "short_text"):
            yield False
        elif column in ("mean", "std"):
            values = blobs[i].view(np.float16) if size == latent_bytes else None
            negative = column == "std" and values is not None and bool((values < 0).any())
            yield values is None or negative or not np.isfinite(values).all()
        else:
            whole = tokens_in(size, index.text_storage, index.text_width) > 0
            storage = index.text_storage
            yield not whole or not is_finite(view(blobs[i], storage, index.text_width), storage)
