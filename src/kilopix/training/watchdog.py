"""The watchdog: a run that hangs says so, and says which process waits for what.

In: the phases that a process goes through. Out: a line in a file for every process, and, when a step takes
much longer than usual, on standard error what each of them is doing, and where in the code this one is.
"""

import faulthandler
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from kilopix.config import Config
from kilopix.runtime import atomic_path

FIRST_STEPS, PATIENCE = 3, 10
"""So many steps at the start of a run that compiles may take so many times as long: they compile."""


class WatchdogConfig(Config):
    """A step is slow when it takes `factor` times the usual, and at least `seconds`."""

    factor: float = Field(default=10.0, gt=1)
    seconds: float = Field(default=120.0, gt=0)
    timeout_minutes: float = Field(default=20.0, gt=0, description="until waiting for others is an error")


class Watchdog:
    """Watches one process of a run; `folder` is shared by all of them."""

    def __init__(
        self, config: WatchdogConfig, folder: Path, rank: int = 0, count: int = 1, compiles: bool = False
    ):
        self.config = config
        self.folder = folder
        self.rank = rank
        self.count = count
        self.compiles = compiles
        self._phase, self._since, self._step = "starting", time.monotonic(), 0
        self._step_since: float | None = None
        self._times: deque[float] = deque(maxlen=50)
        self._ended = threading.Event()
        self._reported = -1
        self._interval = min(10.0, config.seconds / 4)

    def enter(self, phase: str) -> None:
        """Say what the process does from now on."""
        self._phase, self._since = phase, time.monotonic()

    def step(self, number: int) -> None:
        """A step begins; the one before has ended."""
        now = time.monotonic()
        if self._step_since is not None:
            self._times.append(now - self._step_since)
        self._step, self._step_since = number, now

    def aside(self, phase: str) -> None:
        """What takes as long as it takes begins, such as scoring; it counts as no step."""
        self.enter(phase)
        self._step_since = None

    @property
    def limit(self) -> float:
        """Seconds after which a step is slow."""
        if self.compiles and len(self._times) < FIRST_STEPS:
            return PATIENCE * self.config.seconds
        usual = statistics.median(self._times) if self._times else 0.0
        return max(self.config.seconds, self.config.factor * usual)

    @contextmanager
    def watching(self) -> Iterator["Watchdog"]:
        """Watch while inside, from a thread."""
        thread = threading.Thread(target=self._watch, name="kilopix-watchdog", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()
            self._file(self.rank).unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            if self.count > 1:
                self._tell()
            begun = self._step_since
            if begun is not None and time.monotonic() - begun > self.limit and self._reported != self._step:
                self._reported = self._step
                self._ended.wait(self._interval)  # so that the others have told, too
                print(self.report(), file=sys.stderr, flush=True)
                faulthandler.dump_traceback(all_threads=True)

    def _file(self, rank: int) -> Path:
        return self.folder / f"process-{rank:05d}.json"

    def _tell(self) -> None:
        line = {
            "phase": self._phase,
            "seconds": time.monotonic() - self._since,
            "step": self._step,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        try:
            with atomic_path(self._file(self.rank)) as temporary:
                temporary.write_text(json.dumps(line), encoding="utf-8")
        except OSError as error:  # to watch must not end a run
            print(f"{self.folder}: could not be written ({error}).", file=sys.stderr)

    def report(self) -> str:
        """What every process is doing, the ones that all others wait for first.

        How long a process has been silent is told by the times of files on the shared disk, which has one
        clock, while nodes have several.
        """
        lines = [f"This step takes longer than {self.limit:.0f} s, which is unusual. Process by process:"]
        if self.count == 1:
            lines.append(
                f"  process 0: {self._phase} for {time.monotonic() - self._since:.0f} s, at step {self._step}"
            )
            return "\n".join(lines)
        told: list[tuple[int, str]] = []
        self._tell()
        own = self._file(self.rank)
        now = own.stat().st_mtime if own.exists() else time.time()
        for rank in range(self.count):
            try:
                line = json.loads(self._file(rank).read_text(encoding="utf-8"))
                silent = max(0.0, now - self._file(rank).stat().st_mtime)
            except (OSError, ValueError):
                told.append((-2, f"  process {rank}: no sign at all: it has not begun, or has ended"))
                continue
            where = f"process {rank} ({line['host']}, pid {line['pid']})"
            if silent > 3 * self._interval + 5:
                told.append(
                    (
                        -1,
                        f"  {where}: no sign for {silent:.0f} s, last {line['phase']}: it has ended or hangs",
                    )
                )
            else:
                doing = f"{line['phase']} for {line['seconds'] + silent:.0f} s, at step {line['step']}"
                told.append((line["step"], f"  {where}: {doing}"))
        return "\n".join(lines + [text for _, text in sorted(told)])
