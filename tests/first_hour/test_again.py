"""The same command again, as a user meets it: nothing is made twice, and equal runs give equal files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import TINY, Cli

_ALL_STAGES = """
import os, sys
from pathlib import Path

os.umask(int(sys.argv[1], 8))
from kilopix.recipe import load_recipe
from kilopix.stages import augment, caption, encode, export, mini, sample, train

recipe, folder = load_recipe("mini", sys.argv[2:]), Path("all")
mini.run(folder / "world", 8, 32, classes=2, val_per_class=1, workers=1)
caption.run(folder / "world" / "train", folder / "captions.parquet", "structured")
augment.run(folder / "captions.parquet", folder / "augmented", "cutmix", size=32)
augmented = folder / "augmented" / augment.MANIFEST
encode.run(folder / "captions.parquet", folder / "shards", recipe, augmented, "cpu")
train.run(folder / "shards", folder / "run", recipe, "cpu")
sample.run(folder / "run", ["a photo of a fox"], folder / "samples", device="cpu")
export.run(folder / "run", folder / "hub", prompts=["a fox"], device="cpu")
export.run(folder / "run", folder / "pipeline", "diffusers", prompts=["a fox"], device="cpu")
"""
_WITH_TIMES = {"log.jsonl", "state.json"}
"""Files that say how long something took."""


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What all stages write, by the umask under which they were run, each with hashes seeded in its own way."""
    settings = [*TINY, "training.images=64"]
    folders = {}
    for seed, umask in enumerate(("022", "002")):
        folders[umask] = tmp_path_factory.mktemp(f"umask-{umask}")
        subprocess.run(
            [sys.executable, "-c", _ALL_STAGES, umask, *settings],
            cwd=folders[umask],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return folders


def files_below(folder: Path) -> dict[str, Path]:
    return {f.relative_to(folder).as_posix(): f for f in sorted(folder.rglob("*")) if f.is_file()}


def test_the_umask_decides_who_may_read_what_is_written(two_runs: dict[str, Path]):
    for umask, folder in two_runs.items():
        widest = 0o666 & ~int(umask, 8)
        modes = {name: file.stat().st_mode & 0o777 for name, file in files_below(folder).items()}
        assert {name: oct(mode) for name, mode in modes.items() if mode != widest} == {}


def test_equal_runs_in_two_processes_give_equal_files(two_runs: dict[str, Path]):
    one, two = (files_below(folder) for folder in two_runs.values())
    assert one.keys() == two.keys()
    different = {name for name in one if one[name].read_bytes() != two[name].read_bytes()}
    assert {name for name in different if Path(name).name not in _WITH_TIMES} == set()
    assert {"all/captions.parquet", "all/shards/codec.safetensors", "all/run/model.safetensors"} <= one.keys()
