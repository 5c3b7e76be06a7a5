"""Work in parts: what makes a long command restartable.

In: a job (its arguments and what it reads), a number of parts and a function that makes one part as an
Arrow table. Out: one whole file per part in a folder. A part that exists is not made again, so that the
same command goes on after any interruption; other arguments on the same folder are an error.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilopix.runtime import atomic_path, progress_bar, read_json, write_json
from kilopix.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa

JOB = "job.json"
MakePart = Callable[[int], "pa.Table"]


@dataclass(frozen=True)
class Parts:
    """Numbered Arrow files of one job in a folder (`part-00000.arrow`, ...)."""

    folder: Path
    count: int
    name: str = "part"

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"{self.name}-{part:05d}.arrow"

    def missing(self) -> list[int]:
        """The parts still to be made."""
        return [i for i in range(self.count) if not self.path(i).exists()]

    def tables(self) -> "Iterator[pa.Table]":
        """All parts in order."""
        for i in range(self.count):
            yield read_table(self.path(i))


def open_job(folder: Path, job: dict[str, Any]) -> None:
    """Record the job of a folder; a folder of another job is a `UserError` that names what differs."""
    record = folder / JOB
    if record.exists():
        check_same_job(read_json(record), job, folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty, and not the work of this command; choose another folder.")
    else:
        write_json(record, job)


def check_same_job(before: dict[str, Any], now: dict[str, Any], place: Path) -> None:
    """Refuse to go on with work that was begun with other arguments."""
    different = [_difference(key, before.get(key), now[key]) for key in now if before.get(key) != now[key]]
    if different:
        what = ", ".join(different[:3])
        raise UserError(f"{place} was made by another job: {what}. Choose another place, or delete it.")


def _difference(key: str, before: Any, now: Any) -> str:
    hashes = all(isinstance(value, str) and len(value) == 64 for value in (before, now))
    return f"{key} has changed since" if hashes else f"{key} was {before!r} and is now {now!r}"


def make_parts(parts: Parts, make: MakePart, title: str, rows: int, workers: int | None) -> None:
    """Make all missing parts, in `workers` processes; `make` must be picklable where that is above 1."""
    missing = parts.missing()
    workers = min(workers or os.cpu_count() or 1, len(missing))
    with progress_bar() as bar:
        rows_per_part = rows / parts.count
        task = bar.add_task(title, total=rows, note="")
        bar.advance(task, (parts.count - len(missing)) * rows_per_part)
        if workers <= 1:
            for part in missing:
                write_table(parts.path(part), make(part))
                bar.advance(task, rows_per_part)
            return
        with ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_set_make, initargs=(make,)
        ) as pool:
            try:
                for done in as_completed(
                    [pool.submit(_make_one, part, parts.path(part)) for part in missing]
                ):
                    done.result()
                    bar.advance(task, rows_per_part)
            finally:
                pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, begin no other part


_make: MakePart | None = None
"""In a worker process, the function sent to it once, at its start."""


def _set_make(make: MakePart) -> None:
    global _make
    _make = make


def _make_one(part: int, path: Path) -> None:
    assert _make is not None
    write_table(path, _make(part))


def write_table(path: Path, table: "pa.Table") -> None:
    """Write an Arrow table whole to one IPC file, which can be memory-mapped."""
    import pyarrow as pa

    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table)


def read_table(path: Path) -> "pa.Table":
    """Memory-map an Arrow IPC file; a damaged one is a `UserError` that names it."""
    import pyarrow as pa

    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: not a whole Arrow file ({error}); delete it and run the command again."
        ) from None
