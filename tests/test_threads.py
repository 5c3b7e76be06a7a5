"""How threads wait: watched by the command line from its start, and left to the user otherwise."""

import os
import subprocess
import sys
import threading

import pytest

from kilopix import threads
from kilopix.threads import CROWDED, FREE, OF_WAITING, crowded

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux alone")
UNSET = {name: value for name, value in os.environ.items() if name not in OF_WAITING}
COMMAND = """
import contextlib, os, sys, threading
from kilopix.cli import main

before = dict(os.environ)
sys.argv = ["kilopix", "--help"]
for _ in range(3):  # as a test of one's own may, in one process
    with contextlib.suppress(SystemExit):
        main()
assert "torch" not in sys.modules
before["PYTHONIOENCODING"] = ":backslashreplace"  # that workers print any name, as this process does
assert dict(os.environ) == before, "workers inherit it"
print({1: "left alone", 2: "watched"}[threading.active_count()])
"""


def after_a_command(**settings: str) -> str:
    command = [sys.executable, "-c", COMMAND]
    environment = {**UNSET, **settings}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    return done.stdout.splitlines()[-1]


@ON_LINUX
def test_the_command_line_watches_the_load_before_torch_is_loaded():
    assert after_a_command() == "watched"
    assert after_a_command(OMP_NUM_THREADS="2") == "watched"


@ON_LINUX
@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "77"), ("OMP_WAIT_POLICY", "active")])
def test_a_users_own_setting_is_left_alone(name: str, value: str):
    assert after_a_command(**{name: value}) == "left alone"


def test_importing_kilopix_changes_nothing_in_a_users_process():
    code = (
        "import os, threading; before = dict(os.environ); import kilopix.cli, kilopix.threads; "
        "from kilopix import Generator; "
        "assert dict(os.environ) == before; assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=UNSET, timeout=300)


def test_a_core_that_is_mostly_taken_is_missed_and_noise_is_not():
    assert crowded(0.7, before=False)
    assert not crowded(0.1, before=True)
    between = (CROWDED + FREE) / 2
    assert crowded(between, before=True)
    assert not crowded(between, before=False)


SPARE = """
import os, time, torch
from kilopix.threads import SparePool, loaded_openmp

def threads_come_to(number):
    end = time.monotonic() + 60
    while (found := len(os.listdir("/proc/self/task"))) != number:
        assert time.monotonic() < end, (found, number)
        time.sleep(0.01)

openmp = loaded_openmp()
torch.set_num_threads(2)
result = torch.ones(1 << 17).cumsum(0).sum()
pool = SparePool(openmp)
before = len(os.listdir("/proc/self/task"))
for _ in range(3):
    pool.open()
    pool.open()
    threads_come_to(before + pool.size)
    assert torch.equal(torch.ones(1 << 17).cumsum(0).sum(), result)
    assert torch.get_num_threads() == 2
    pool.close()
    threads_come_to(before)
pool.open()
"""


@ON_LINUX
def test_a_spare_pool_comes_and_goes_and_may_be_there_at_the_end():
    subprocess.run([sys.executable, "-c", SPARE], check=True, env=UNSET, timeout=300)


class OpenMP:
    """Two threads on two cores, of which only the numbers are asked."""

    def omp_get_max_threads(self) -> int:
        return 2

    def omp_get_num_procs(self) -> int:
        return 2


@ON_LINUX
def test_the_pool_is_there_while_other_programs_want_the_cores(monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []
    looks = iter(
        [
            *((0.0, 0.0, 0.0), (2.0, 2.0, 1.0)),  # this process has both cores
            (4.0, 3.0, 2.0),  # another program has one
            (54.0, 3.0, 30.0),  # stopped for a while, in which others had both: says nothing
            (56.0, 4.0, 31.0),
            (58.0, 6.0, 32.0),  # it has ended
        ]
    )

    class Over(BaseException):
        """No more looks."""

    def look() -> tuple[float, float, float]:
        for found in looks:
            return found
        raise Over

    class Pool(threads.SparePool):
        def open(self) -> None:
            events.append("open")
            self._ended = threading.Event()

        def close(self) -> None:
            events.append("closed")
            self._ended = None

    monkeypatch.setattr(threads, "SECONDS", 0.6)
    monkeypatch.setattr(threads, "_seconds", look)
    monkeypatch.setattr(threads, "_pause", lambda: None)
    monkeypatch.setattr(threads, "SparePool", Pool)
    monkeypatch.setattr(threads, "loaded_openmp", OpenMP)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(Over):
        threads._watch()
    assert events == ["closed", "open", "open", "closed"]
