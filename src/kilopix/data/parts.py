"""Work in parts: what makes a long command restartable.

In: a job (its arguments and what it reads), a number of parts and a function that makes one part as an
Arrow table. Out: one whole file per part in a folder. A part that exists is not made again, so that the
same command goes on after any interruption; whose the folder is, `kilopix.jobs` decides.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kilopix.artefacts.digests import Damaged, check_table, seal_table
from kilopix.artefacts.locks import delete_temporary
from kilopix.data.engines import Engine, run_local, run_ray
from kilopix.progress import Progress
from kilopix.runtime import atomic_path, is_whole, say
from kilopix.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_WORTH_PROCESSES = 1000
MOST_THREADS = 8
"""Threads from which on one network gains little; with more cores, more processes do."""
MakePart = Callable[[int], "pa.Table"]


@dataclass(frozen=True)
class Parts:
    """Numbered files of one job in a folder, Arrow files if nothing is said (`part-00000.arrow`, ...)."""

    folder: Path
    count: int
    ending: str = "arrow"
    job: str = ""
    """A name of the job that parts carry, so that one of another job is not taken for it; none if empty."""

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{part:05d}.{self.ending}"

    def missing(self) -> list[int]:
        """The parts still to be made: those that are not there, were cut short or damaged, which is said."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            whole = list(pool.map(self._is_whole, range(self.count)))
        return [i for i, one in enumerate(whole) if not one]

    def _is_whole(self, part: int) -> bool:
        path = self.path(part)
        if not path.exists():
            return False
        try:
            if is_whole(path) and self.check(part):
                return True
        except Damaged:
            pass
        say(f"{path}: damaged, or of another job, and made anew.")
        return False

    def check(self, part: int) -> bool:
        """Whether a part is of this job; raises `Damaged` if it is not what was written."""
        path = self.path(part)
        check_table(path, required=True)
        return not self.job or read_table(path, check=False).schema.metadata == self.told(part)

    def told(self, part: int) -> dict[bytes, bytes]:
        """What a part says of itself."""
        return {b"part": f"{self.job}/{part}".encode()}

    def tables(self) -> "Iterator[pa.Table]":
        """All parts in order."""
        for i in range(self.count):
            yield read_table(self.path(i))


@dataclass(frozen=True)
class TableJob:
    """Makes parts that are Arrow tables, with one thread, so that any number of workers gives the same."""

    make: MakePart
    parts: Parts
    wants_gpu: bool = False

    def start(self, worker: int) -> Callable[[int], None]:
        """Settle a worker: one thread, and one GPU of those that it sees."""
        import torch

        torch.set_num_threads(1)
        if self.wants_gpu and torch.cuda.is_available():
            torch.cuda.set_device(worker % torch.cuda.device_count())
        return self._write

    def _write(self, part: int) -> None:
        table = self.make(part)
        if self.parts.job:
            table = table.replace_schema_metadata(self.parts.told(part))
        write_table(self.parts.path(part), table)


def make_parts(
    parts: Parts,
    make: MakePart,
    title: str,
    rows: int,
    workers: int | None,
    engine: Engine = "local",
    wants_gpu: bool = False,
) -> None:
    """Make all missing parts with an engine, `make` being a value that can be sent to another process.

    `workers` are all cores if not given; work for less than a few seconds is then done in this process.
    """
    job = TableJob(make, parts, wants_gpu)
    with missing_parts(parts, title, rows) as (missing, done):
        if engine == "ray":
            run_ray(job, missing, workers, wants_gpu, done)
        else:
            with threads_here(1):
                run_local(job, missing, _local_workers(workers, rows), done)


@contextmanager
def missing_parts(
    parts: Parts, title: str, total: int, unit: str = "image"
) -> Iterator[tuple[list[int], Callable[[int], None]]]:
    """The parts still to be made, and a function that tells the progress bar of one that is.

    The bar counts up to `total`, spread evenly over the parts. What a killed worker left behind is deleted.
    """
    delete_temporary(parts.folder)
    missing = parts.missing()
    each = total / max(parts.count, 1)
    begun = (parts.count - len(missing)) * each
    with Progress(title, total, begun, unit, quiet=not missing) as shown:
        yield missing, lambda _: shown.advance(each)
    delete_temporary(parts.folder)


def _local_workers(asked: int | None, rows: int) -> int:
    if asked is None and rows < ROWS_WORTH_PROCESSES:
        return 1
    return asked or os.cpu_count() or 1


def network_threads() -> int:
    """Threads of each process that runs a network, however many there are and however busy the machine is.

    Sums in another order differ in their last digits, so that the numbers would else depend on the number of
    processes. `OMP_NUM_THREADS` if it is set, else as many as there are cores, up to `MOST_THREADS`: all of a
    laptop's, since a process holds a network of its own, for which there is no memory on every core.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if given.isdigit() and int(given):
        return int(given)
    return min(os.cpu_count() or 1, MOST_THREADS)


@contextmanager
def threads_here(count: int) -> Iterator[None]:
    """Inside, this process computes with so many threads, as workers do, so that it gets their results."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_table(path: Path, table: "pa.Table") -> None:
    """Write an Arrow table whole to one IPC file, which can be memory-mapped."""
    import pyarrow as pa

    with atomic_path(path) as temporary:
        with pa.ipc.new_file(str(temporary), table.schema) as writer:
            writer.write_table(table)
        seal_table(temporary)


def read_table(path: Path, check: bool = True) -> "pa.Table":
    """Memory-map an Arrow IPC file; a damaged one is a `UserError` that names it.

    Without `check` what lies between its ends is believed, for shards that are hashed as training starts.
    """
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if check:
            check_table(path, required=True)
        return table
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not a whole Arrow file ({error}); delete it and run the command again."
        ) from None


def open_table(path: Path) -> "pa.RecordBatch":
    """Memory-map an Arrow file that was written whole, as its one batch; nothing is copied."""
    import pyarrow as pa

    table = read_table(path, check=False)
    batches = table.to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    if len(batches) != 1:
        raise UserError(f"{path}: written in several batches, so not by kilopix.")
    return batches[0]
