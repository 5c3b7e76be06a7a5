import io
import re
from types import SimpleNamespace

import pytest
from rich.progress import Progress

from kilopix.training import progress
from kilopix.training.progress import Meter, Work, shown_progress


def test_utilisation_is_the_networks_arithmetic_over_the_peak_of_all_devices():
    work = Work(flops_per_image=3e9, devices=4, peak_flops=1e12)
    assert work.utilisation(500.0) == pytest.approx(3e9 * 500 / 4e12)
    assert work.device_hours(1800.0) == 2.0
    assert Work(3e9).utilisation(500.0) is None


def test_the_note_says_what_is_used_and_left():
    meter = Meter(Work(2e9, devices=2, peak_flops=1e12))
    meter.add(100, 2.0)
    meter.add(100, 2.0)
    note = meter.note(0.5, seconds=3600.0, images_left=50 * 3600 * 3)
    assert note == "loss 0.5000  50.0 images/s  MFU 5.0%  2.00 device hours, 6.00 left"
    assert "MFU" not in Meter(Work(2e9)).note(0.5, 1.0, 1)


def test_the_rate_is_that_of_the_last_steps():
    meter = Meter(Work(1.0))
    for _ in range(progress.STEPS):
        meter.add(1, 100.0)
    for _ in range(progress.STEPS):
        meter.add(10, 1.0)
    assert meter.images_per_second == pytest.approx(10)


def test_without_a_terminal_plain_lines_come_at_intervals(capsys: pytest.CaptureFixture[str], monkeypatch):
    now = [1000.0]
    # The module's own clock: with the process's, timers of whatever else runs in it would be set wrong.
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with shown_progress(1_000_000, 0) as shown:
        for step in range(1, 301):
            now[0] += 1.0
            shown.update(step * 64, f"loss {step}")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[1] == "3,904 of 1,000,000 images (0.4%)  loss 61"
    assert not any(re.search(r"[━\x1b]", line) for line in lines)


def test_other_ranks_are_quiet(capsys: pytest.CaptureFixture[str]):
    with shown_progress(10, 0, quiet=True) as shown:
        shown.update(5, "x")
    assert capsys.readouterr().out == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys: pytest.CaptureFixture[str]):
    from rich.console import Console

    file = io.StringIO()

    def bar() -> Progress:
        console = Console(file=file, force_terminal=True, width=120)
        return Progress("{task.completed} {task.fields[note]}", console=console)

    monkeypatch.setattr(progress, "progress_bar", bar)
    with shown_progress(10, 0) as shown:
        shown.update(5, "half")
        with shown.paused(), bar() as other:
            other.add_task("inner", note="of its own")
        shown.update(6, "again")
    assert "5 half" in file.getvalue()
    assert "of its own" in file.getvalue()
    assert "6 again" in file.getvalue()
    assert capsys.readouterr().out == ""
