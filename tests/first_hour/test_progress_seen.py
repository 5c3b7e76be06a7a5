"""What one sees of long work: in a terminal of any width, and in a pipe or a log file."""

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from kilopix import progress
from kilopix.progress import Progress, rough, track, working
from terminal import in_pipe, in_terminal
from tiny import TINY, Cli

WIDTHS = (60, 80, 120)
SMALL = ["--classes", 2, "--images-per-class", 4, "--val-per-class", 2, "--size", 32, "--workers", 1]


class Time:
    """A clock that is set by hand, or goes on by itself at every look."""

    def __init__(self, each_look: float = 0.0):
        self.seconds, self.each_look = 0.0, each_look

    def __call__(self) -> float:
        self.seconds += self.each_look
        return self.seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(progress, "now", clock)
    monkeypatch.setattr(progress, "BEAT", 3600.0)  # nobody looks at the clock but the test
    return clock


def bars(lines: tuple[str, ...], title: str) -> list[str]:
    return [line for line in lines if line.startswith(f"{title} ")]


def check_bars(lines: tuple[str, ...], title: str, columns: int) -> None:
    seen = bars(lines, title)
    assert seen, lines
    for line in seen:
        assert cell_len(line) <= columns, line
        assert re.search(r"━{4,}", line), line
        assert re.search(r"[\d,]+/[\d,]+", line), line
        assert re.search(r"\b\d+:\d\d\b", line), line
        assert line.count("left") <= 1, line


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_bar_in_a_terminal_fits_it_and_has_count_and_time(columns: int, tmp_path: Path):
    seen = in_terminal(["mini", "world", *SMALL], columns, tmp_path)
    assert seen.code == 0, seen.lines
    check_bars(seen.lines, "draw", columns)
    assert "12/12" in bars(seen.lines, "draw")[-1]


@pytest.mark.parametrize("columns", [60, 80])
def test_the_bar_of_training_fits_a_terminal(columns: int, tiny_demo: Path, tmp_path: Path):
    seen = in_terminal(
        ["train", tiny_demo / "shards", tmp_path / "run", *TINY, "--device", "cpu"], columns, tmp_path
    )
    assert seen.code == 0, seen.lines
    check_bars(seen.lines, "train", columns)
    assert "96/96  100%" in bars(seen.lines, "train")[-1]
    assert not any("MFU" in line for line in seen.lines)
    said = " ".join(line for line in seen.lines if not line.startswith("train "))
    assert "Computing in float32, 16 images at once" in said, "above the bar, not behind it"


@pytest.mark.parametrize("width", [20, 40, *WIDTHS, 200])
@pytest.mark.parametrize("title", ["train", "efficientnet-lite0, real pictures, neighbours"])
def test_no_line_is_wider_than_the_terminal_whatever_the_numbers(width: int, title: str, time: Time):
    shown = Progress(title, 123_456_789, unit="comparison")
    for step in range(1, 80):
        time.seconds += 1000.0
        shown.update(step * 1_500_000, ["loss 1.0401", "MFU 17.8%", "12345.67 device hours"])
        line = shown.bar(width).plain
        assert len(line) <= width
        if width >= 60:
            check_bars((line,), line.split(" ")[0], width)
    assert "left" in line or width < 120


def test_what_is_shown_beside_the_bar_is_what_matters_most(time: Time):
    shown = Progress("train", 16_000)
    for _ in range(100):
        time.seconds += 0.5
        shown.update(shown.done + 16, ["loss 1.0401", "MFU 17.8%"])
    assert shown.bar(60).plain.endswith("  10%  0:50  8 min left")
    assert shown.bar(80).plain.endswith("  10%  0:50  8 min left  loss 1.0401")
    assert shown.bar(120).plain.endswith("8 min left  32.0 images/s  loss 1.0401  MFU 17.8%")


def test_without_unicode_the_bar_is_of_dashes(time: Time):
    shown = Progress("draw", 10, done=5)
    assert re.fullmatch(r"draw -+ +   5/10   50%  0:00", shown.bar(60, ascii_only=True).plain)


def test_time_left_is_told_late_and_from_the_rate_of_late(time: Time):
    """A first step that compiles takes a minute, and the others half a second."""
    shown = Progress("train", 1000)
    time.seconds = 50.0
    shown.advance()
    assert shown.rate is shown.seconds_left is None
    assert "left" not in shown.plain()
    for _ in range(5):
        time.seconds += 0.5
        shown.advance()
    assert shown.seconds_left is None
    for _ in range(20):
        time.seconds += 0.5
        shown.advance()
    assert shown.rate == pytest.approx(2.0)
    assert shown.seconds_left == pytest.approx(974 / 2)
    for _ in range(300):  # and then a neighbour takes half of the machine
        time.seconds += 1.0
        shown.advance()
    assert shown.rate == pytest.approx(1.0)
    before = shown.seconds_left
    time.seconds += 1.0
    assert shown.seconds_left == pytest.approx(before - 1.0)
    time.seconds += 3600.0  # a step that does not end is a slower rate
    assert shown.rate == pytest.approx(60 / 3660, rel=0.1)


def test_parts_that_take_minutes_give_an_estimate_after_the_first(time: Time):
    shown = Progress("detect", 2212, done=212)
    assert shown.seconds_left is None
    time.seconds = 100.0
    shown.advance(200)
    assert shown.seconds_left == pytest.approx(900.0)
    assert shown.plain() == (
        "detect: 412 of 2,212 images (18.6%), 1:40 so far, 2.0 images/s, about 15 min left"
    )


def test_in_a_pipe_there_is_a_line_after_five_seconds_and_then_every_minute(
    time: Time, capsys: pytest.CaptureFixture[str]
):
    with Progress("encode", 1_000_000) as shown:
        for step in range(1, 301):
            time.seconds += 1.0
            shown.update(step * 64)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" of ")[0] for line in lines] == [
        f"encode: {done}" for done in ("320", "4,160", "8,000", "11,840", "15,680")
    ]
    assert lines[1] == (
        "encode: 4,160 of 1,000,000 images (0.4%), 1:05 so far, 64.0 images/s, about 4.3 h left"
    )


def test_a_line_comes_though_nothing_is_finished(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "BEAT", 0.005)
    monkeypatch.setattr(progress, "now", Time(each_look=2.0))
    with working("fit the codec"):
        found = ""
        for _ in range(2000):
            threading.Event().wait(0.01)
            found += capsys.readouterr().out
            if found.count("\n") >= 3:
                break
    assert re.match(r"fit the codec: 0:\d\d so far\n", found)


def test_other_ranks_are_quiet(time: Time, capsys: pytest.CaptureFixture[str]):
    with Progress("train", 10, quiet=True) as shown:
        time.seconds = 100.0
        shown.update(5)
    assert capsys.readouterr().out == ""


def test_other_work_between_steps_does_not_count(time: Time):
    shown = Progress("train", 1000)
    for _ in range(20):
        time.seconds += 1.0
        shown.advance()
    with shown.paused():
        time.seconds += 5000.0
    assert shown.rate == pytest.approx(1.0)
    assert "0:20 so far" in shown.plain()


def test_of_two_that_are_shown_only_the_inner_one_speaks(time: Time, capsys: pytest.CaptureFixture[str]):
    with Progress("outer", 10) as outer:
        with Progress("inner", 10) as inner:
            time.seconds = 6.0
            outer.advance()
            inner.advance()
        time.seconds = 12.0
        outer.advance()
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == ["inner", "outer"]


def test_values_are_counted_as_they_are_taken(time: Time, capsys: pytest.CaptureFixture[str]):
    def slow() -> Iterator[int]:
        for value in track((0, 1, 2, 3), "decode"):
            time.seconds += 6.0
            yield value

    assert list(slow()) == [0, 1, 2, 3]
    assert capsys.readouterr().out.startswith("decode: 1 of 4 images (25.0%), 0:06 so far\n")


def test_estimates_are_no_finer_than_they_can_be():
    times = (3, 44, 100, 3599, 9000, 200_000, 300_000)
    assert [rough(s) for s in times] == ["10 s", "40 s", "2 min", "60 min", "2.5 h", "2 days", "3 days"]


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which every look is a quarter of a minute later, so that short work is long."""
    monkeypatch.setattr(progress, "now", Time(each_look=15.0))


LINE = r"^{}: [\d,]+ of [\d,]+ {} \(\d+\.\d%\), [\d:]+ so far"


def spoke(out: str, title: str, unit: str = "images") -> bool:
    return re.search(LINE.format(re.escape(title), unit), out, re.MULTILINE) is not None


def commands(demo: Path, out: Path) -> dict[str, tuple[list[object], list[tuple[str, str]]]]:
    """Commands that can take long, and the lines that they print while they do."""
    world, shards = demo / "world", demo / "shards"
    return {
        "mini": (["mini", out / "w", *SMALL], [("draw", "images")]),
        "caption": (["caption", world / "train", out / "c.parquet", "--workers", 1], [("caption", "images")]),
        "augment": (
            ["augment", demo / "captions.parquet", out / "a", "--size", 32, "--part-rows", 8],
            [("augment (cutmix)", "images")],
        ),
        "encode": (
            ["encode", demo / "captions.parquet", out / "s", *TINY, "--part-rows", 8, "--device", "cpu"],
            [("encode", "images")],
        ),
        "verify": (["verify", shards], [("verify", "files")]),
        "inspect": (["inspect", shards, out / "i.html", "--device", "cpu"], [("decode", "images")]),
        "train": (
            ["train", shards, out / "r", *TINY, "--device", "cpu"],
            [("train", "images"), ("verify shards", "files")],
        ),
        "sample": (
            ["sample", demo / "run", "a cat", "-n", 3, "--out", out / "p", "--device", "cpu"],
            [("sample", "images")],
        ),
        "evaluate": (
            ["evaluate", demo / "run", demo / "held_out.parquet", "--out", out / "e", "--device", "cpu"],
            [("sample for scores", "images")],
        ),
        "export": (
            ["export", demo / "run", out / "x", "--device", "cpu"],
            [("sample for the card", "images")],
        ),
        "fidelity": (
            [
                *("fidelity", demo / "pictures", world / "val", "neighbours=3", "--out", out / "f"),
                *("--only", "efficientnet-lite0", "--cache", out / "k", "--device", "cpu", "--workers", 1),
            ],
            [
                ("check pictures", "images"),
                ("efficientnet-lite0, pictures", "images"),
                ("efficientnet-lite0, neighbours", "comparisons"),
            ],
        ),
    }


@pytest.mark.parametrize("name", commands(Path(), Path()))
def test_commands_say_in_a_pipe_how_far_they_are(
    name: str, cli: Cli, tiny_demo: Path, tmp_path: Path, minutes: None
):
    arguments, expected = commands(tiny_demo, tmp_path)[name]
    done = cli(*arguments)
    assert done.code == 0, done.err
    assert [title for title, unit in expected if not spoke(done.out, title, unit)] == [], done.out


def test_sampling_counts_images_within_a_batch(
    cli: Cli, tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told: list[float] = []
    update: Callable[..., None] = Progress.update

    def listen(self: Progress, done: float, *more: object) -> None:
        told.append(done)
        update(self, done, *more)

    monkeypatch.setattr(Progress, "update", listen)
    arguments = ["a cat", "-n", 6, "--steps", 3, "--out", tmp_path / "p", "--device", "cpu"]
    assert cli("sample", tiny_demo / "run", *arguments).code == 0
    assert told == pytest.approx([2.0, 4.0, 6.0, 6.0])


def test_a_short_command_in_a_pipe_prints_its_result_alone(tmp_path: Path):
    seen = in_pipe(["mini", "world", *SMALL], tmp_path)
    assert seen.code == 0
    assert seen.lines == ("world: 12 pictures of 2 classes, 32 x 32 pixels.",)
