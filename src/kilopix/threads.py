"""How threads wait for one another on a CPU, by what else runs on the machine.

In: the machine's load, once a second. Out: threads that look again and again where they have their cores to
themselves, and sleep where other programs want them. How many threads there are never changes, and with it
no result.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

OF_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables by which a user says how threads wait."""
_WATCH = "kilopix-load"
SECONDS = 1.0
"""Between two looks at the load."""
CROWDED, FREE = 0.5, 0.25
"""Missing cores from which threads are taken to be in other programs' way, and up to which not any more."""


def watch_load(environment: Mapping[str, str]) -> None:
    """From now on, let waiting threads sleep while others want their cores, unless a user's variable is set.

    OpenMP by itself looks 300,000 times before a thread sleeps, some milliseconds: best on an idle machine.
    But that is longer than a time slice, so where another program has the core of one thread, the others
    look in vain, through slices in which that one could have worked. Fewer looks cost speed on an idle
    machine (benchmarks/log.md), and OpenMP reads their number once, so it is done while it runs. For GNU's
    OpenMP, which torch has on Linux.
    """
    if sys.platform != "linux" or any(name in environment for name in OF_WAITING):
        return
    if not any(thread.name == _WATCH for thread in threading.enumerate()):  # one is enough for a process
        threading.Thread(target=_watch_where_seen, daemon=True, name=_WATCH).start()


def crowded(missing: float, before: bool) -> bool:
    """Whether threads are in other programs' way where so many cores are missing; `before`: they were."""
    return missing > (FREE if before else CROWDED)


class SparePool:
    """Threads of OpenMP that do nothing, but count.

    With more threads than cores, OpenMP lets those that wait sleep almost at once, whatever its setting;
    there is no other way to tell it so while it runs. Each thread of the program that computes in parallel
    has a pool of its own, so one that does nothing else has one to spare.
    """

    def __init__(self, openmp: Any) -> None:
        self._openmp = openmp
        self.threads: int = openmp.omp_get_max_threads()
        # With those of the program's own pool one more than there are cores.
        self.size = max(2, openmp.omp_get_num_procs() - self.threads + 2)
        self._ended: threading.Event | None = None

    @property
    def is_open(self) -> bool:
        """Whether the pool is there, or about to be."""
        return self._ended is not None

    def open(self) -> None:
        """Have the pool, unless it is there."""
        if self._ended is None:
            self._ended = threading.Event()
            threading.Thread(target=self._hold, args=(self._ended,), daemon=True, name="spare").start()

    def close(self) -> None:
        """End the pool, with the thread that it belongs to."""
        if self._ended is not None:
            self._ended.set()
            self._ended = None

    def _hold(self, ended: threading.Event) -> None:
        # A parallel region as compilers write it, in which each thread asks for the number of cores.
        nothing = self._openmp.omp_get_num_procs
        self._openmp.GOMP_parallel(nothing, None, self.size, 0)
        ended.wait()


def loaded_openmp() -> Any:
    """GNU's OpenMP that torch has loaded; None before that, and where it has another."""
    if "torch" not in sys.modules:
        return None
    import ctypes

    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        path = line.split(maxsplit=5)[-1]
        if "/libgomp" in path and "/torch" in path:
            return ctypes.CDLL(path)
    return None


def _watch_where_seen() -> None:
    with suppress(OSError):  # a container may hide /proc; then waiting is left as it is
        _watch()


def _watch() -> None:
    """Have a spare pool while other programs want the cores of this one's threads."""
    pool, last = None, _seconds()
    while True:
        _pause()
        if pool is None and (openmp := loaded_openmp()):
            pool = SparePool(openmp)
        now = _seconds()
        used, mine, elapsed = (later - earlier for later, earlier in zip(now, last, strict=True))
        last = now
        if pool is None or elapsed > 2 * SECONDS:
            continue  # nothing to watch yet, or this process was stopped for a while
        missing = (used - mine) / elapsed + pool.threads - (os.cpu_count() or 1)
        if crowded(missing, pool.is_open):
            pool.open()
        else:
            pool.close()


def _pause() -> None:
    time.sleep(SECONDS)


def _seconds() -> tuple[float, float, float]:
    """Seconds of all cores that anyone used, that this process used, and of the clock."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text("utf-8").split("\n", 1)[0].split()[1:])
    mine = os.times()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK"), mine.user + mine.system, mine.elapsed
