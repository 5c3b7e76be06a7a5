"""Caption, augment and encode, each killed at a random moment and started again: the same bytes."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TRIALS = int(os.environ.get("KILOPIX_KILL_TRIALS", "20"))
PICTURES, FEW = 3000, 480
SETTINGS = ["data.image_size=32", "data.text_storage=int8"]


def draw(folder: Path, count: int) -> None:
    """Small JPEGs of four classes, one of them broken."""
    rng = np.random.default_rng(0)
    for i in range(count):
        file = folder / ["fox", "owl", "car", "cup"][i % 4] / f"{i:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (36, 48, 3), np.uint8)).save(file, quality=80)
    (folder / "fox" / "00004.jpg").write_bytes(b"\xff\xd8\xff broken")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of pictures, and the manifests that uninterrupted commands make of them."""
    world = tmp_path_factory.mktemp("kill")
    draw(world / "many", PICTURES)
    draw(world / "few", FEW)
    for name in ("many", "few"):
        kilopix("caption", world / name, world / f"{name}.parquet", "--workers", 1)
    return world


def arguments(stage: str, world: Path, out: Path) -> list[object]:
    if stage == "caption":
        return ["caption", world / "many", out / "m.parquet", "--workers", 2]
    if stage == "augment":
        return ["augment", world / "many.parquet", out, "--size", 32, "--part-rows", 100, "--workers", 2]
    online = ["--online", "--part-rows", 32, "--workers", 2, "--device", "cpu"]
    return ["encode", world / "few.parquet", out, *SETTINGS, *online]


def command(given: tuple[object, ...] | list[object]) -> list[str]:
    return [sys.executable, "-m", "kilopix.cli", *map(str, given)]


def kilopix(*given: object) -> None:
    done = subprocess.run(command(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert found, "nothing was written"
    return found


def begin(given: list[object], out: Path) -> subprocess.Popen[bytes]:
    """Start a command, and wait until it has written its first file or part."""
    process = subprocess.Popen(command(given), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not any(out.rglob("*.arrow")) and not any(out.rglob("*.jpg")) and process.poll() is None:
        assert time.monotonic() < deadline, "it had written nothing after ten minutes"
        time.sleep(0.02)
    return process


def trial(
    stage: str, world: Path, whole: Path, extra: list[object], rng: random.Random, seconds: float
) -> bool:
    """Kill the stage once and finish it; whether it had begun to write, and was not yet done, when killed."""
    out = whole.with_name(f"{whole.name}-{rng.getrandbits(40)}")
    given = [*arguments(stage, world, out), *extra]
    process = begin(given, out)
    time.sleep(rng.uniform(0, seconds))
    in_the_middle = process.poll() is None
    process.kill()
    process.wait()
    kilopix(*given)
    ours, theirs = contents(out), contents(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    shutil.rmtree(out)  # thousands of files, which pytest would take minutes to delete after a later run
    return in_the_middle


def trials(stage: str, world: Path, extra: list[object], count: int) -> None:
    whole = world / f"{stage}-whole"
    if not whole.exists():
        kilopix(*arguments(stage, world, whole))
    timed = world / f"{stage}-timed-{bool(extra)}"
    process = begin([*arguments(stage, world, timed), *extra], timed)
    started = time.monotonic()
    assert process.wait() == 0
    seconds = time.monotonic() - started
    assert contents(timed) == contents(whole)
    rng = random.Random(f"{stage} {extra}")
    killed = 0
    for number in range(1, count + 1):
        killed += trial(stage, world, whole, extra, rng, seconds)
        print(f"{stage} {extra}: {number} identical, {killed} of them killed in the middle", flush=True)
    assert killed >= count // 3


@pytest.mark.slow
@pytest.mark.timeout(7000)
@pytest.mark.parametrize("stage", ["caption", "augment", "encode"])
def test_killed_and_started_again_on_this_machine(stage: str, world: Path):
    trials(stage, world, [], TRIALS)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of two nodes that outlives the killed drivers."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    yield
    del os.environ["RAY_ADDRESS"]
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(7000)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", ["caption", "augment", "encode"])
def test_killed_and_started_again_on_ray(stage: str, world: Path, ray_cluster: None):
    trials(stage, world, ["--engine", "ray"], TRIALS)
