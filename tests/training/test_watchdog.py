import json
import os
import time
from pathlib import Path

import pytest

from kilopix.training.watchdog import Watchdog, WatchdogConfig


def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_a_slow_step_is_reported_once_with_what_each_process_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    config = WatchdogConfig(seconds=0.2, factor=2)
    stuck, other = (Watchdog(config, tmp_path, rank, 3) for rank in (0, 1))
    printed = ""

    def reported() -> bool:
        nonlocal printed
        printed += capfd.readouterr().err
        return "Process by process" in printed and "test_watchdog.py" in printed

    with stuck.watching(), other.watching():
        stuck.step(7)
        stuck.enter("computing")
        other.enter("waiting for data")
        wait_for(reported)
        time.sleep(0.6)
        printed += capfd.readouterr().err
    assert printed.count("Process by process") == 1
    lines = [line for line in printed.splitlines() if line.startswith("  process")]
    assert "process 2: no sign at all" in lines[0]
    assert "waiting for data" in lines[1]
    assert "computing" in lines[2]
    assert "at step 7" in lines[2]
    assert list(tmp_path.glob("process-*")) == []


def test_a_process_that_has_gone_silent_comes_first(tmp_path: Path):
    watchdog = Watchdog(WatchdogConfig(seconds=1), tmp_path, 0, 2)
    line = {"phase": "computing", "seconds": 0, "step": 3, "host": "a", "pid": 1}
    told = tmp_path / "process-00001.json"
    told.write_text(json.dumps(line), encoding="utf-8")
    os.utime(told, (time.time() - 100,) * 2)
    assert "no sign for 100 s, last computing" in watchdog.report()


def test_usual_steps_set_the_limit_and_are_not_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    watchdog = Watchdog(WatchdogConfig(seconds=0.2, factor=20), tmp_path)
    with watchdog.watching():
        for number in range(5):
            watchdog.step(number)
            time.sleep(0.05)
    assert 20 * 0.05 <= watchdog.limit < 20 * 0.5
    assert "Process by process" not in capfd.readouterr().err


def test_a_clock_that_is_set_back_or_ahead_is_no_slow_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    watchdog = Watchdog(WatchdogConfig(seconds=100), tmp_path)
    for hour in (0, 5, -5):
        watchdog.step(1)
        monkeypatch.setattr(time, "time", lambda hour=hour: 1e9 + 3600 * hour)
    watchdog.enter("computing")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert watchdog.limit == 100
    assert "computing for 0 s" in watchdog.report()


def test_the_first_steps_of_a_run_that_compiles_may_take_long(tmp_path: Path):
    compiling, plain = (Watchdog(WatchdogConfig(seconds=100), tmp_path, compiles=c) for c in (True, False))
    limits = []
    for number in range(6):
        compiling.step(number)
        limits.append(compiling.limit)
    plain.step(0)
    assert limits == [1000] * 3 + [100] * 3
    assert plain.limit == 100
