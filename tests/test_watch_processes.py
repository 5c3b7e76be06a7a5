"""Two processes see of a run what one sees: losses on fixed noise, snapshots of averages, sheets."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kilopix.recipe import load_recipe
from kilopix.stages import encode, train
from kilopix.training.checkpoint import read_weights
from kilopix.training.logs import lines_of_log
from tiny import TINY

SETTINGS = [
    *TINY,
    "training.average.kind=power",
    "training.average.snapshot_every=48",
    "validation.every=48",
    "validation.samples=6",
    "validation.levels=3",
    "preview.every=48",
    "preview.steps=1",
    "training.watchdog.timeout_minutes=2",
]


def lines(path: Path) -> list[dict[str, Any]]:
    found, skipped, unfinished = lines_of_log(path)
    assert not skipped
    assert not unfinished
    return found


@pytest.fixture(scope="module")
def held_out(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("held_out") / "shards"
    recipe = load_recipe("mini", TINY)
    encode.run(
        tiny_demo / "held_out.parquet",
        out,
        recipe,
        device="cpu",
        workers=1,
        codec=tiny_demo / "shards",
    )
    return out


@pytest.fixture(scope="module")
def alone(tiny_demo: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    train.run(tiny_demo / "shards", out, load_recipe("mini", SETTINGS), "cpu", validation=held_out)
    return out


@pytest.mark.parametrize("style", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_two_processes_see_what_one_sees(
    style: str, tiny_demo: Path, held_out: Path, alone: Path, tmp_path: Path
):
    out = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "kilopix.cli", "train", str(tiny_demo / "shards"), str(out), "--device", "cpu"]
    command += [*SETTINGS, f"training.parallel={style}", "--validation", str(held_out)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = lines(out / "validation.jsonl"), lines(alone / "validation.jsonl")
    assert len(ours) == len(theirs) == 8
    for a, b in zip(ours, theirs, strict=True):
        assert (a["images"], a["set"], a["weights"]) == (b["images"], b["set"], b["weights"])
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-4)
    for folder, count in (("averages", 4), ("previews", 2)):
        names = [sorted(f.name for f in (run / folder).glob("0*")) for run in (out, alone)]
        assert names[0] == names[1]
        assert len(names[0]) == count
    for file in (alone / "averages").iterdir():
        a, b = read_weights(out / "averages" / file.name)[0], read_weights(file)[0]
        assert a.keys() == b.keys()
        assert all(torch.allclose(a[k].float(), b[k].float(), atol=2e-3) for k in a), file.name
    assert done.stdout.count("validation: 6 held-out and 6 training samples at 3 times.") == 1
