"""Work in parts that are JSON lines, on several devices: what makes hours of scoring restartable.

In: a number of parts and a `Work`, which loads its networks once for a device and then makes one part after
another. Out: one whole `part-00000.jsonl` a part. A part that exists is not made again. What a part holds
does not depend on how many processes there are, since every part is made by itself, with a number of threads
that is the machine's: on one machine, devices of one kind give the same bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kilopix.artefacts.digests import Damaged
from kilopix.data.engines import run_local
from kilopix.data.parts import Parts, missing_parts, network_threads, threads_here
from kilopix.jobs import OPTION, check_same_job
from kilopix.runtime import Line, lines_or_faults, read_lines, say, write_lines
from kilopix.types import UserError

MakeLines = Callable[[int], list[Line]]


@runtime_checkable
class Work(Protocol):
    """What is to be done: a value that can be sent to another process."""

    def load(self, device: str) -> MakeLines:
        """Load what the work needs on a device; the function returned makes the lines of one part."""
        ...


@dataclass(frozen=True)
class LineParts(Parts):
    """Numbered files of JSON lines in a folder."""

    ending: str = "jsonl"

    def lines(self) -> Iterator[Line]:
        """The lines of all parts, in order."""
        for i in range(self.count):
            yield from read_lines(self.path(i), sealed=True)

    def check(self, part: int) -> bool:
        """Whether it is there; raises `Damaged` if a part is not what was written."""
        for _ in lines_or_faults(self.path(part), sealed=True):
            pass
        return True


def finished_lines(
    path: Path, job: dict[str, Any], count: int, overwrite: bool = False, instead: str = OPTION
) -> tuple[Line, list[Line]] | None:
    """The first line of a finished file, which holds its job, and the `count` others; else None.

    A file that was cut short is as good as none, which the user is told. Raises `UserError` if the file is of
    another job, and is not to be replaced.
    """
    if not path.exists():
        return None
    try:
        first, *others = list(lines_or_faults(path, sealed=True)) or [""]
    except Damaged:
        say(f"{path}: was complete, but is cut short or damaged; its lines are made anew.")
        return None
    if isinstance(first, str) or "job" not in first:
        raise UserError(f"{path}: its first line does not say how it was made; choose another place.")
    if not check_same_job(first["job"], job, path, overwrite, instead):
        return None
    lines = [line for line in others if not isinstance(line, str)]
    if not len(lines) == len(others) == count:
        say(f"{path}: was complete, but holds {len(lines)} of its {count} lines now; they are made anew.")
        return None
    return first, lines


@dataclass(frozen=True)
class LineJob:
    """Makes parts that are JSON lines, each worker on a device of its own."""

    parts: LineParts
    work: Work
    devices: tuple[str, ...]

    def start(self, worker: int) -> Callable[[int], None]:
        """Load the work on the worker's device; every worker has the same number of threads."""
        import torch

        torch.set_num_threads(network_threads())
        make = self.work.load(self.devices[worker])
        return lambda part: write_lines(self.parts.path(part), make(part))


def make_lines(
    parts: LineParts, work: Work, title: str, total: int, devices: Sequence[str], unit: str = "image"
) -> None:
    """Make all missing parts: in this process on one device, else in one process for every device named.

    A device may be named more than once; on a CPU that is of use where it has several times the cores of
    `MOST_THREADS`. The progress bar counts up to `total`, spread evenly over parts.
    """
    with missing_parts(parts, title, total, unit) as (missing, done):
        devices = devices[: max(len(missing), 1)]
        with threads_here(network_threads()):
            run_local(LineJob(parts, work, tuple(devices)), missing, len(devices), done)
