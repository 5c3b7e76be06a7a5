"""A run that is killed and started again is the run that was not, to the last bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import engine_worker
from engine_worker import Job
from kilopix.recipe import load_recipe
from kilopix.stages.train import run
from kilopix.training.checkpoint import checkpoints, read_weights
from tiny import TINY

LONG = [*TINY, "training.images=3200", "training.checkpoint_every=160"]


def command(demo: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "kilopix.cli", "train", str(demo / "shards"), str(out), *LONG]


@pytest.fixture(scope="module")
def uninterrupted(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(tiny_demo / "shards", out, load_recipe("mini", LONG), "cpu")
    return out


def assert_same(a: Path, b: Path) -> None:
    first, second = read_weights(a / "model.safetensors")[0], read_weights(b / "model.safetensors")[0]
    assert first.keys() == second.keys()
    assert len(first) > 10
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    logs = [
        [
            (line["images"], line["loss"])
            for line in map(json.loads, (f / "log.jsonl").read_text(encoding="utf-8").splitlines())
        ]
        for f in (a, b)
    ]
    assert logs[0] == logs[1]


def stop_at_a_checkpoint(demo: Path, out: Path, number: int) -> tuple[int, str]:
    """Start the command, send a signal when the first checkpoint is there; exit code and what it printed."""
    log = out.with_name("printed.txt")
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command(demo, out), stdout=file, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while not checkpoints(out / "checkpoints") and process.poll() is None:
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.02)
        os.kill(process.pid, number)
        return process.wait(60), log.read_text(encoding="utf-8")


def test_killed_and_started_again(tiny_demo: Path, uninterrupted: Path, tmp_path: Path):
    out = tmp_path / "run"
    code, _ = stop_at_a_checkpoint(tiny_demo, out, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    run(tiny_demo / "shards", out, load_recipe("mini", LONG), "cpu")
    assert_same(out, uninterrupted)


def test_sigterm_saves_and_says_so(tiny_demo: Path, uninterrupted: Path, tmp_path: Path):
    out = tmp_path / "run"
    code, printed = stop_at_a_checkpoint(tiny_demo, out, signal.SIGTERM)
    assert code == 0, printed
    assert not (out / "model.safetensors").exists(), "the run was over before the signal came"
    assert "the same command goes on" in printed
    run(tiny_demo / "shards", out, load_recipe("mini", LONG), "cpu")
    assert_same(out, uninterrupted)


def test_killed_while_it_writes_a_checkpoint(tiny_demo: Path, uninterrupted: Path, tmp_path: Path):
    out = tmp_path / "run"
    job = Job(str(tiny_demo / "shards"), str(out), "mini", LONG, killed_at_file=4)
    done = subprocess.run(engine_worker.command([job]), capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert [f.name[0] for f in (out / "checkpoints").iterdir()].count(".") == 1, "it was not writing one"
    assert [int(f.name) for f in checkpoints(out / "checkpoints")] == [160]
    run(tiny_demo / "shards", out, load_recipe("mini", LONG), "cpu")
    assert_same(out, uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_twenty_random_moments(tiny_demo: Path, uninterrupted: Path, tmp_path: Path):
    rng = random.Random(0)
    kills = 0
    for trial in range(20):
        out = tmp_path / f"run{trial}"
        job = Job(str(tiny_demo / "shards"), str(out), "mini", LONG)
        if trial % 3 == 0:  # while it writes a checkpoint
            job.killed_at_file = rng.randint(1, 38)
        process = subprocess.Popen(
            engine_worker.command([job]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if trial % 3 == 0:
            kills += process.wait(300) == -signal.SIGKILL
        else:
            while not (out / "log.jsonl").exists() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 6))
            kills += process.poll() is None
            process.kill()
            process.wait()
        run(tiny_demo / "shards", out, load_recipe("mini", LONG), "cpu")
        assert_same(out, uninterrupted)
    print(f"{kills} of 20 were killed in the middle")
    assert kills >= 12
