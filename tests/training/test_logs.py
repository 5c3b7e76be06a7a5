"""The log of a run: what a line says, and what is shown between two lines."""

import json
from pathlib import Path

import pytest

from kilopix.training.logs import LogWindow


def window(path: Path) -> LogWindow:
    return LogWindow(path, 20, {})


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_between_two_lines_the_last_mean_is_shown(tmp_path: Path):
    log = window(tmp_path / "log.jsonl")
    assert log.loss is None
    assert not log.add(10, 0.5, 1.0, True, 10, 1.0)
    assert log.add(20, 0.7, 3.0, True, 10, 1.0)
    log.flush(20, 1e-3, 2.0)
    assert log.loss == pytest.approx(0.6)
    (line,) = lines(tmp_path / "log.jsonl")
    assert line["loss"] == pytest.approx(0.6)
    assert line["grad_norm"] == pytest.approx(2.0)
    assert line["grad_norm_most"] == 3.0


def test_a_stretch_of_which_all_is_left_out_has_no_loss(tmp_path: Path):
    log = window(tmp_path / "log.jsonl")
    log.add(20, float("nan"), float("inf"), False, 20, 1.0)
    log.flush(20, 1e-3, 1.0)
    (line,) = lines(tmp_path / "log.jsonl")
    assert line["loss"] is None
    assert line["grad_norm"] is None
    assert line["left_out"] == 1
