"""Work in parts that are JSON lines, on several devices: what makes hours of scoring restartable.

In: a number of parts and a `Work`, which loads its networks once for a device and then makes one part after
another. Out: one whole `part-00000.jsonl` a part. A part that exists is not made again. What a part holds
does not depend on how many processes there are, since every part is made by itself.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kilopix.data.parts import check_same_job
from kilopix.runtime import atomic_path, progress_bar
from kilopix.types import UserError

Line = dict[str, Any]
MakeLines = Callable[[int], list[Line]]


@runtime_checkable
class Work(Protocol):
    """What is to be done: a value that can be sent to another process."""

    def load(self, device: str) -> MakeLines:
        """Load what the work needs on a device; the function returned makes the lines of one part."""
        ...


@dataclass(frozen=True)
class LineParts:
    """Numbered files of JSON lines in a folder."""

    folder: Path
    count: int

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{part:05d}.jsonl"

    def missing(self) -> list[int]:
        """The parts still to be made."""
        return [i for i in range(self.count) if not self.path(i).exists()]

    def lines(self) -> Iterator[Line]:
        """The lines of all parts, in order."""
        for i in range(self.count):
            yield from read_lines(self.path(i))


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """Write JSON lines whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_lines(path: Path) -> list[Line]:
    """Read JSON lines; a missing file or a line that is no JSON object is a `UserError` that names it."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from None
    lines = []
    for number, one in enumerate(text.split("\n"), start=1):  # not splitlines: JSON may hold U+2028
        if not one.strip():
            continue
        try:
            line = json.loads(one)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid JSON: {error}.") from None
        if not isinstance(line, dict):
            raise UserError(f"{path}, line {number}: not a JSON object.")
        lines.append(line)
    return lines


def finished_lines(path: Path, job: dict[str, Any]) -> tuple[Line, list[Line]] | None:
    """The first line of a finished file, which holds its job, and the others; None if it is not there.

    Raises `UserError` if the file is of another job.
    """
    if not path.exists():
        return None
    lines = read_lines(path)
    if not lines or "job" not in lines[0]:
        raise UserError(f"{path}: its first line does not say how it was made; choose another place.")
    check_same_job(lines[0]["job"], job, path)
    return lines[0], lines[1:]


def make_lines(parts: LineParts, work: Work, title: str, total: int, devices: Sequence[str]) -> None:
    """Make all missing parts: in this process on one device, else in one process for every device named.

    A device may be named more than once. The progress bar counts up to `total`, spread evenly over parts.
    """
    missing = parts.missing()
    if not missing:
        return
    with progress_bar() as bar:
        each = total / parts.count
        task = bar.add_task(title, total=total, note="")
        bar.advance(task, (parts.count - len(missing)) * each)

        def done() -> None:
            bar.advance(task, each)

        if len(devices) == 1 or len(missing) == 1:
            make = work.load(devices[0])
            for part in missing:
                write_lines(parts.path(part), make(part))
                done()
        else:
            _Crew(parts, work, missing, done).run(devices[: len(missing)])


@dataclass
class _Crew:
    """One process for every device; each takes the next part that nobody has begun."""

    parts: LineParts
    work: Work
    waiting: list[int]
    done: Callable[[], None]
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self, devices: Sequence[str]) -> None:
        on_cpu = max(1, sum(device == "cpu" for device in devices))
        threads = max(1, (os.cpu_count() or 1) // on_cpu)
        hands = [threading.Thread(target=self._serve, args=(device, threads)) for device in devices]
        for hand in hands:
            hand.start()
        try:
            for hand in hands:
                hand.join()
        finally:
            self._stop.set()  # after Ctrl-C, begin no other part
        if self.errors:
            raise self.errors[0]

    def _next(self) -> int | None:
        with self._lock:
            return self.waiting.pop(0) if self.waiting and not self._stop.is_set() else None

    def _serve(self, device: str, threads: int) -> None:
        arguments = (self.work, device, threads)
        try:
            with ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=arguments) as pool:
                while (part := self._next()) is not None:
                    pool.submit(_make_one, part, self.parts.path(part)).result()
                    self.done()
        except BrokenProcessPool:
            self.errors.append(
                UserError(
                    f"the process on {device} ended without a word, perhaps for want of memory; the same "
                    "command goes on from here, with fewer --device if need be."
                )
            )
            self._stop.set()
        except BaseException as error:  # noqa: BLE001  it is raised again in the main thread
            self.errors.append(error)
            self._stop.set()


_work: tuple[Work, str] | None = None
_make: MakeLines | None = None
"""In a worker process: what was sent to it at its start, and the function that it loaded."""


def _start(work: Work, device: str, threads: int) -> None:
    global _work
    _work = work, device
    _end_with_parent()
    if device == "cpu":
        import torch

        torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make_one(part: int, path: Path) -> None:
    global _make
    if _make is None:  # not at the start, where an error could not be told apart from a crash
        assert _work is not None
        _make = _work[0].load(_work[1])
    write_lines(path, _make(part))
