"""`state.json` is believed only as it was written: whatever else it says, the checkpoint before is taken."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kilopix.errors import UserError
from kilopix.runtime import read_json, write_json
from kilopix.training.checkpoint import (
    AVERAGE,
    STATE,
    Progress,
    Trained,
    allocate_states,
    fault_of,
    last_good_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from kilopix.training.muon import AdamWConfig
from kilopix.training.optim import build_optimizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of one run."""
    folder = tmp_path_factory.mktemp("checkpoints")
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])})
    optimizer = build_optimizer(AdamWConfig(), network)
    allocate_states(optimizer)
    trained = Trained(network, [network], optimizer, torch.zeros(5))
    for images in (100, 200, 300):
        log = {"loss": 0.5, "steps": 2.0}
        save_checkpoint(folder, trained, Progress(images, 1.5, log=log), {"run": "a" * 64}, keep=9)
    return folder


VARIANTS: dict[str, Any] = {
    **{f"{key} is {value!r}": {key: value} for key in ("images_seen", "moved", "processes") for value in (
        None, "300", -1, 10**30, 300.5, True, [], {},
    )},
    **{f"seconds is {value!r}": {"seconds": value} for value in (None, "1", -1.0, 1e30, float("nan"),
                                                                  float("inf"), [])},
    **{f"log is {value!r}": {"log": value} for value in (None, [], "", {"loss": None}, {"loss": float("nan")},
                                                         {"loss": "low"})},
    **{f"files is {value!r}": {"files": value} for value in (None, [], {}, {AVERAGE: None}, {AVERAGE: "0"},
                                                             {"../../x": "0"})},
    "an unknown key": {"more": 1},
    "another run": {"run": "b" * 64},
    "the images of another checkpoint": {"images_seen": 200},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_that_cannot_be_is_passed_by_with_its_reason(
    saved: Path, variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = shutil.copytree(saved, tmp_path / "c")
    newest = folder / f"{300:012d}"
    write_json(newest / STATE, read_json(newest / STATE) | VARIANTS[variant])
    assert newest_checkpoint(folder, "a" * 64) == folder / f"{200:012d}"
    said = capsys.readouterr().out
    assert f"{newest}/" in said
    assert "Looking at the checkpoint before." in said
    assert said.count("\n") == 1


def test_every_key_is_needed(saved: Path, tmp_path: Path):
    folder = shutil.copytree(saved, tmp_path / "c")
    newest = folder / f"{300:012d}"
    state = read_json(newest / STATE)
    for key in state.keys() - {"format"}:
        write_json(newest / STATE, {k: v for k, v in state.items() if k != key})
        assert key in (fault_of(newest) or ""), key


@pytest.mark.parametrize("text", ["", "{}", "[]", "5", "null", '"x"', "{", "\0", "[[[[", '{"format": 2}'])
def test_a_state_that_is_none_is_passed_by(saved: Path, text: str, tmp_path: Path):
    folder = shutil.copytree(saved, tmp_path / "c")
    (folder / f"{300:012d}" / STATE).write_text(text, encoding="utf-8")
    assert newest_checkpoint(folder) == folder / f"{200:012d}"


def test_an_edited_state_is_passed_by(saved: Path, tmp_path: Path):
    folder = shutil.copytree(saved, tmp_path / "c")
    place = folder / f"{300:012d}" / STATE
    state = json.loads(place.read_text(encoding="utf-8"))
    place.write_text(json.dumps({**state, "seconds": 2.0, "sha256": state["sha256"]}), encoding="utf-8")
    assert newest_checkpoint(folder) == folder / f"{200:012d}"


def test_the_state_of_another_checkpoint_is_not_taken(saved: Path, tmp_path: Path):
    folder = shutil.copytree(saved, tmp_path / "c")
    shutil.copy(folder / f"{200:012d}" / STATE, folder / f"{300:012d}" / STATE)
    assert newest_checkpoint(folder) == folder / f"{200:012d}"


def test_an_earlier_form_is_said_to_be_one(saved: Path, tmp_path: Path):
    folder = shutil.copytree(saved, tmp_path / "c")
    place = folder / f"{300:012d}" / STATE
    write_json(place, read_json(place) | {"format": 1})
    with pytest.raises(UserError, match="earlier version of kilopix"):
        newest_checkpoint(folder)


def test_what_could_not_be_loaded_is_passed_by(saved: Path):
    newest = saved / f"{300:012d}"
    assert newest_checkpoint(saved, passed=[newest]) == saved / f"{200:012d}"


def test_a_damaged_checkpoint_is_not_deleted_unsaid(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = shutil.copytree(saved, tmp_path / "c")
    (folder / f"{300:012d}" / AVERAGE).write_bytes(b"")
    assert last_good_checkpoint(folder) == folder / f"{200:012d}"
    assert "The checkpoint is deleted" in capsys.readouterr().out
