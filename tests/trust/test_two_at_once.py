"""Every command that writes, twice at once into one place, and interrupted at random moments.

What is left must be what one uninterrupted command leaves. `KILOPIX_TRIALS` is how often each pair is tried,
`KILOPIX_SIGNALS` how many signals are sent over all commands.
"""

import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import Door, Ended, Running, build, chat_server, contents

TRIALS = int(os.environ.get("KILOPIX_TRIALS", "20"))
SIGNALS = int(os.environ.get("KILOPIX_SIGNALS", "100"))
NAMES = (
    *("mini", "caption", "captions", "augment", "encode", "inspect", "train", "average", "sample", "export"),
    *("evaluate", "fidelity", "geneval", "dpg", "sample-benchmark", "lengthen", "fetch-dpg", "compare"),
    *("report", "demo"),
)
KINDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Door]]:
    """Every command on its inputs."""
    import torch

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("doors")
    os.environ["KILOPIX_CACHE"] = str(root / "cache")
    said = root / "said.txt"

    def kilopix(*arguments: object) -> None:
        ended = Running(list(arguments), said).wait()
        assert ended.code == 0, f"{arguments}: {ended.said}"

    with chat_server():
        yield build(root, kilopix)


def remove(place: Path) -> None:
    """Remove what a command wrote, and what it keeps beside a file."""
    shutil.rmtree(os.environ["KILOPIX_CACHE"], ignore_errors=True)
    shutil.rmtree(place.parent)
    place.parent.mkdir()


@pytest.fixture
def alone(doors: dict[str, Door], tmp_path: Path):
    """Runs a door's command alone: the place it wrote to, what is there, and how long it took."""

    def run(name: str) -> tuple[Path, dict[str, str], float]:
        place = tmp_path / "out" / f"place{doors[name].ending}"
        place.parent.mkdir()
        began = time.monotonic()
        ended = Running(doors[name].arguments(place), tmp_path / "alone.txt").wait()
        seconds = time.monotonic() - began
        assert ended.code == 0, ended.said
        whole = contents(place.parent)
        assert not [name for name in whole if name.endswith((".tmp", ".lock"))], "something was left"
        remove(place)
        return place, whole, seconds

    return run


def outcome(ended: Ended) -> str:
    """In one word how a command ended; what must not be is an error."""
    assert "Traceback" not in ended.said, ended.said
    if ended.code == 0:
        return "already complete" if "already complete" in ended.said else "made it"
    assert ended.code == 2, (ended.code, ended.said)
    assert re.search(r"in use by `kilopix [a-z-]+` \(process \d+, since ", ended.said), ended.said
    return "refused"


@pytest.mark.parametrize("name", NAMES)
def test_two_at_once_are_one(name: str, doors: dict[str, Door], alone, tmp_path: Path):
    place, whole, seconds = alone(name)
    rng = random.Random(name)
    counts: Counter[str] = Counter()
    for _ in range(TRIALS):
        delays = [0.0, rng.choice([0.0, rng.uniform(0, 0.05), rng.uniform(0, seconds)])]
        several = [
            Running(doors[name].arguments(place), tmp_path / f"{i}.txt", delay)
            for i, delay in enumerate(delays)
        ]
        counts.update([" and ".join(sorted(outcome(one.wait()) for one in several))])
        assert contents(place.parent) == whole
        remove(place)
    print(f"\n| {name} | {dict(counts)} |", flush=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_at_any_moment_costs_nothing(name: str, doors: dict[str, Door], alone, tmp_path: Path):
    place, whole, seconds = alone(name)
    rng = random.Random(f"signal {name}")
    counts: Counter[str] = Counter()
    for i in range(-(-SIGNALS // len(NAMES))):
        running = Running(doors[name].arguments(place), tmp_path / "cut.txt")
        time.sleep(rng.uniform(0, seconds))
        kind = KINDS[(i + len(name)) % len(KINDS)]
        middle = running.signal(kind)
        ended = running.wait()
        assert "Traceback" not in ended.said, ended.said
        assert ended.code in (0, 129, 130, 143, -kind), (kind, ended)
        again = Running(doors[name].arguments(place), tmp_path / "again.txt").wait()
        assert again.code == 0, again.said
        assert contents(place.parent) == whole
        counts[f"{kind.name} {'in the middle' if middle else 'after the end'}"] += 1
        remove(place)
    print(f"\n| {name} | {dict(counts)} |", flush=True)
