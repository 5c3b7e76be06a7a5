"""Engines: the same parts from one worker, from many, and from workers that die."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import util
from pathlib import Path

import pyarrow as pa
import pytest

from kilopix.data.engines import MOST_DEATHS
from kilopix.data.parts import Parts, make_parts
from kilopix.errors import UserError
from tiny import temporary_of_dead_process

COUNT = 6


@dataclass(frozen=True)
class Make:
    """Makes a part of its number and a product that depends on how many threads compute it.

    `die_at` kills its worker there, `die_times` times; `seconds` makes a part take its time.
    """

    marks: Path
    die_at: int = -1
    die_times: int = 1
    seconds: float = 0.0

    def __call__(self, part: int) -> pa.Table:
        import torch

        if part == self.die_at:
            died = self.marks / f"died-{len(list(self.marks.glob('died-*')))}"
            if not died.name.endswith(str(self.die_times)):
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        (self.marks / f"worker-{os.getpid()}").touch()
        return pa.table({"part": [part], "threads": [torch.get_num_threads()], "node": [_node()]})


def _node() -> str:
    if "ray" not in sys.modules:
        return ""
    import ray  # pyright: ignore[reportMissingImports]

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


@dataclass(frozen=True)
class Fail:
    """Raises at part 1."""

    error: type[Exception]

    def __call__(self, part: int) -> pa.Table:
        if part == 1:
            raise self.error("cannot make this")
        return pa.table({"part": [part]})


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def contents(parts: Parts) -> list[bytes]:
    files = sorted(parts.folder.iterdir())
    assert [f.name for f in files] == [parts.path(i).name for i in range(parts.count)]
    return [f.read_bytes() for f in files]


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, marks: Path):
    one, three = Parts(tmp_path / "one", COUNT), Parts(tmp_path / "three", COUNT)
    make_parts(one, Make(marks), "test", COUNT, workers=1)
    assert len(list(marks.glob("worker-*"))) == 1
    make_parts(three, Make(marks, seconds=0.2), "test", COUNT, workers=3)
    assert len(list(marks.glob("worker-*"))) > 2
    assert contents(one) == contents(three)
    assert [table["threads"][0].as_py() for table in three.tables()] == [1] * COUNT


def test_a_killed_worker_is_replaced(tmp_path: Path, marks: Path, capsys: pytest.CaptureFixture[str]):
    parts = Parts(tmp_path / "parts", COUNT)
    make_parts(parts, Make(marks, die_at=2), "test", COUNT, workers=2)
    assert [table["part"][0].as_py() for table in parts.tables()] == list(range(COUNT))
    told = capsys.readouterr().out
    assert "was killed by SIGKILL; out of memory is the usual reason; another makes its part 2 again" in told


@dataclass(frozen=True)
class Large:
    """More than a pipe holds; whoever takes it to a worker that is killed at once must not wait for ever."""

    content: bytes

    def __call__(self, part: int) -> pa.Table:
        return pa.table({"part": [part]})


@pytest.mark.timeout(60)
def test_a_worker_that_is_killed_as_it_begins_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    start, killed = util.spawnv_passfds, []

    def kill_the_first(program: bytes, words: list[str], *more: object) -> int:
        pid = start(program, words, *more)
        if "resource_tracker" not in str(words) and not killed:
            killed.append(os.kill(pid, signal.SIGKILL))
        return pid

    monkeypatch.setattr(util, "spawnv_passfds", kill_the_first)
    parts = Parts(tmp_path / "parts", 2)
    make_parts(parts, Large(bytes(2**20)), "test", 2, workers=2)
    assert "was killed by SIGKILL" in capsys.readouterr().out
    assert [table["part"][0].as_py() for table in parts.tables()] == [0, 1]


def test_a_part_that_kills_every_worker_is_an_error(tmp_path: Path, marks: Path):
    parts = Parts(tmp_path / "parts", COUNT)
    with pytest.raises(UserError, match=r"part 2: 3 workers died.*fewer --workers"):
        make_parts(parts, Make(marks, die_at=2, die_times=MOST_DEATHS), "test", COUNT, workers=2)
    assert 2 in parts.missing()


@pytest.mark.parametrize(
    ("error", "raised"), [(UserError, UserError), (OSError, UserError), (KeyError, RuntimeError)]
)
def test_what_a_worker_raises_is_raised(tmp_path: Path, error: type[Exception], raised: type[Exception]):
    parts = Parts(tmp_path / "parts", COUNT)
    with pytest.raises(raised, match="cannot make this"):
        make_parts(parts, Fail(error), "test", COUNT, workers=2)
    assert 1 in parts.missing()


def test_unfinished_files_are_swept(tmp_path: Path, marks: Path):
    parts = Parts(tmp_path / "parts", 2)
    parts.folder.mkdir()
    temporary_of_dead_process(parts.folder / "part-00000.arrow").write_text("half", encoding="utf-8")
    make_parts(parts, Make(marks), "test", 2, workers=1)
    contents(parts)


def test_workers_end_with_their_driver(tmp_path: Path, marks: Path):
    code = (
        "import sys; from pathlib import Path; from test_engines import Make\n"
        "from kilopix.data.parts import Parts, make_parts\n"
        "if __name__ == '__main__':\n"
        f"    make = Make(Path({str(marks)!r}), seconds=0.3)\n"
        f"    make_parts(Parts(Path({str(tmp_path / 'parts')!r}), 500), make, 'test', 500, workers=2)\n"
    )
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    (tmp_path / "drive.py").write_text(code, encoding="utf-8")
    driver = subprocess.Popen(
        [sys.executable, tmp_path / "drive.py"], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while len(workers := list(marks.glob("worker-*"))) < 2:
        assert time.monotonic() < deadline, "no workers began"
        time.sleep(0.05)
    driver.kill()
    driver.communicate()
    pids = [int(worker.name.split("-")[1]) for worker in workers]
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


RAY_WARNINGS = ("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore")


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch):
    """A Ray cluster of two nodes on this machine, with one core each, whose workers find this module."""
    ray = pytest.importorskip("ray")
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    yield cluster, node
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings(*RAY_WARNINGS)
def test_ray_goes_on_when_a_node_is_removed(tmp_path: Path, marks: Path, two_nodes):
    cluster, node = two_nodes
    parts, count = Parts(tmp_path / "parts", 40), 40

    def remove() -> None:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            if len(list(marks.glob("worker-*"))) > 1:
                time.sleep(4)  # so that it finishes some parts before
                cluster.remove_node(node, allow_graceful=False)
                (tmp_path / "removed").touch()
                return
            time.sleep(0.1)

    thread = threading.Thread(target=remove)
    thread.start()
    make_parts(parts, Make(marks, seconds=0.5), "test", count, workers=None, engine="ray")
    thread.join()
    assert (tmp_path / "removed").exists(), "the second node never worked"
    assert [table["part"][0].as_py() for table in parts.tables()] == list(range(count))
    nodes = [table["node"][0].as_py() for table in parts.tables()]
    assert len(set(nodes)) == 2
    assert nodes[-1] == nodes[-10], "the last parts are made by the node that is left"


@pytest.mark.slow
@pytest.mark.filterwarnings(*RAY_WARNINGS)
def test_ray_replaces_a_killed_actor_and_raises_what_parts_raise(tmp_path: Path, marks: Path, two_nodes):
    local, parts = Parts(tmp_path / "local", COUNT), Parts(tmp_path / "parts", COUNT)
    make_parts(local, Make(marks), "test", COUNT, workers=1)
    make_parts(parts, Make(marks, die_at=2), "test", COUNT, workers=2, engine="ray")
    assert [table["part"][0].as_py() for table in parts.tables()] == list(range(COUNT))
    assert [table["threads"][0].as_py() for table in parts.tables()] == [1] * COUNT
    with pytest.raises(UserError, match="cannot make this"):
        make_parts(Parts(tmp_path / "fail", COUNT), Fail(UserError), "test", COUNT, 2, engine="ray")
