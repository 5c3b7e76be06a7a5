import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from kilopix.training.tracking import open_trackers
from kilopix.watch import Watch


def png(path: Path) -> Path:
    Image.new("RGB", (8, 6), (255, 0, 0)).save(path)
    return path


@pytest.mark.filterwarnings("ignore")  # of the packages themselves
def test_tensorboard_event_files_hold_numbers_and_pictures(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(["tensorboard"], tmp_path, {}, 0)
    tracker.numbers({"training/loss": 0.5}, 100)
    tracker.numbers({"training/loss": 0.25}, 200)
    tracker.picture("preview", png(tmp_path / "a.png"), 200)
    tracker.close()
    (again,) = open_trackers(["tensorboard"], tmp_path, {}, 100)  # goes on from the checkpoint before
    again.numbers({"training/loss": 0.125}, 200)
    again.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("training/loss")] == [(100, 0.5), (200, 0.125)]
    assert "preview" in events.Tags()["images"]


class FakeRun:
    def __init__(self, settings: dict[str, Any]):
        self.settings = settings
        self.logged: list[dict[str, Any]] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str = ""):
        pass

    def log(self, values: dict[str, Any]):
        self.logged.append(values)

    def finish(self):
        self.finished = True


def fake_wandb(runs: list[FakeRun]) -> ModuleType:
    module = ModuleType("wandb")

    def init(**settings: Any) -> FakeRun:
        runs.append(FakeRun(settings))
        return runs[-1]

    util = ModuleType("wandb.util")
    util.generate_id = lambda: "abc123"  # pyright: ignore[reportAttributeAccessIssue]
    module.__dict__.update(init=init, util=util, Error=LookupError, Image=lambda path: Path(path).name)
    return module


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs: list[FakeRun] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(runs))
    for _ in range(2):
        (tracker,) = open_trackers(["wandb"], tmp_path / "run", {"seed": 1}, 0)
        tracker.numbers({"training/loss": 0.5}, 64)
        tracker.picture("preview", png(tmp_path / "b.png"), 64)
        tracker.close()
    assert [run.settings["id"] for run in runs] == ["abc123", "abc123"]
    assert runs[1].settings["resume"] == "allow"
    assert runs[0].settings["config"] == {"seed": 1}
    assert runs[0].logged == [
        {"training/loss": 0.5, "images": 64},
        {"preview": "b.png", "images": 64},
    ]
    assert runs[0].finished


def test_what_is_not_installed_is_said_once_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert open_trackers(["tensorboard", "wandb"], tmp_path, {}, 0) == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("is not installed" in line and "kilopix[track]" in line for line in lines)


def test_a_login_that_is_missing_is_said_and_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    module = fake_wandb([])

    class UsageError(Exception):
        pass

    def init(**_: Any):
        raise UsageError("api_key not configured (no-tty). call wandb.login()")

    module.__dict__.update(init=init, Error=UsageError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert open_trackers(["wandb"], tmp_path, {}, 0) == []
    assert "api_key not configured" in capsys.readouterr().out


def test_a_tracker_that_fails_is_told_no_more_and_the_run_goes_on(capsys: pytest.CaptureFixture[str]):
    told: list[str] = []

    def tell(tracker: str) -> None:
        if tracker == "full":
            raise OSError(28, "No space left on device", "tensorboard/events")
        told.append(tracker)

    watch = SimpleNamespace(trackers=["full", "well"])
    Watch._tell(watch, tell)  # pyright: ignore[reportArgumentType]
    Watch._tell(watch, tell)  # pyright: ignore[reportArgumentType]
    assert told == ["well", "well"]
    assert capsys.readouterr().out.count("tensorboard/events: No space left on device.") == 1
