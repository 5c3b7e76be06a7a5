"""How threads wait: settled by the command line before torch is loaded, and left to the user otherwise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kilopix.data.parts import Parts
from kilopix.threads import CROWDED, FREE, OF_WAITING, SPINS, crowded, settle_waiting

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux alone")
UNSET = {name: value for name, value in os.environ.items() if name not in OF_WAITING}
COMMAND = """
import contextlib, multiprocessing, sys
from dataclasses import dataclass
from pathlib import Path

@dataclass(frozen=True)
class Make:
    def __call__(self, part):
        import os
        import pyarrow as pa
        inherited = multiprocessing.parent_process() is not None
        return pa.table({"spins": [os.environ["GOMP_SPINCOUNT"] if inherited else "made here"]})

if __name__ == "__main__":
    from kilopix.cli import main
    out, workers = Path(sys.argv[1]), int(sys.argv[2])
    sys.argv = ["kilopix", "--help"]
    with contextlib.suppress(SystemExit):
        main()
    assert "torch" not in sys.modules
    from kilopix.data.parts import Parts, make_parts
    make_parts(Parts(out, workers), Make(), "making", workers, workers)
"""
"""The command line, and then, in its process, a job of the data engine."""


def as_openmp_read_it(folder: Path, workers: int, **settings: str) -> list[dict[str, str]]:
    """The settings of every process that loaded OpenMP, as OpenMP prints them; of several, they may mix."""
    (folder / "command.py").write_text(COMMAND)
    command = [sys.executable, str(folder / "command.py"), str(folder / "parts"), str(workers)]
    environment = {**UNSET, "OMP_DISPLAY_ENV": "verbose", **settings}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"ENVIRONMENT BEGIN(.*?)OPENMP DISPLAY ENVIRONMENT END", done.stderr, re.DOTALL)
    return [dict(re.findall(r"(\w+) = '(.*?)'", text)) for text in printed]


@ON_LINUX
def test_openmp_reads_the_command_lines_setting(tmp_path: Path):
    (settings,) = as_openmp_read_it(tmp_path, workers=1)
    assert settings["GOMP_SPINCOUNT"] == str(SPINS)


def test_workers_of_the_data_engine_see_the_command_lines_setting(tmp_path: Path):
    as_openmp_read_it(tmp_path, workers=2)
    made = [table["spins"].to_pylist() for table in Parts(tmp_path / "parts", 2).tables()]
    assert made == [[str(SPINS)]] * 2


@ON_LINUX
@pytest.mark.parametrize(
    ("name", "value", "spins"), [("GOMP_SPINCOUNT", "77", "77"), ("OMP_WAIT_POLICY", "PASSIVE", "0")]
)
def test_a_users_own_setting_is_left_alone(tmp_path: Path, name: str, value: str, spins: str):
    (settings,) = as_openmp_read_it(tmp_path, 1, **{name: value})
    assert settings[name] == value
    assert settings["GOMP_SPINCOUNT"] == spins


def test_an_environment_gets_one_setting_where_it_has_none_of_its_kind():
    plain = {"PATH": "/bin", "OMP_NUM_THREADS": "2"}
    assert settle_waiting(plain)
    assert plain == {"PATH": "/bin", "OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": str(SPINS)}
    for own in ({"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "active"}):
        kept = dict(own)
        assert not settle_waiting(kept)
        assert kept == own


def test_importing_kilopix_changes_nothing_in_a_users_process():
    code = (
        "import os, threading; before = dict(os.environ); import kilopix.cli, kilopix.threads; "
        "from kilopix import Generator; "
        "assert dict(os.environ) == before; assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=UNSET, timeout=300)


def test_a_core_that_is_half_taken_is_missed_and_noise_is_not():
    assert crowded(0.5, before=False)
    assert not crowded(0.05, before=True)
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
