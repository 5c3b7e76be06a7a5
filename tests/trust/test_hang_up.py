"""A window that is closed: commands end as they do when they are told to, and nothing is lost."""

from pathlib import Path

import pytest

from first_hour.test_nothing_lost import Terminal
from kilopix.training.checkpoint import checkpoints
from tiny import TINY

pytestmark = pytest.mark.slow


def test_a_run_whose_window_is_closed_is_saved(tiny_demo: Path, tmp_path: Path):
    run = tmp_path / "run"
    long = [*TINY, "training.images=3200000", "training.checkpoint_every=3200000", "--device", "cpu"]
    train = Terminal("train", tiny_demo / "shards", run, *long)
    train.read((run / "log.jsonl").exists)
    assert train.close() == 0
    (kept,) = checkpoints(run / "checkpoints")
    assert int(kept.name) > 0


def test_a_command_with_workers_whose_window_is_closed_ends(tmp_path: Path):
    drawing = Terminal("mini", tmp_path / "world", "--images-per-class", 500, "--workers", 2)
    drawing.read(lambda: any((tmp_path / "world").rglob("*.jpg")))
    assert drawing.close() == 129


def test_a_server_whose_window_is_closed_ends(tiny_demo: Path):
    server = Terminal("serve", tiny_demo / "run", "--port", 0)
    server.read(lambda: "Ctrl-C stops" in server.printed)
    assert server.close() == 0
