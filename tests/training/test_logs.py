"""The log of a run: what a line says, and what is shown between two lines."""

import json
from pathlib import Path

import pytest

from kilopix.training.logs import CHECK, LogWindow, append_line, cut_log, lines_of_log, read_log


def window(path: Path) -> LogWindow:
    return LogWindow(path, 20, {})


def lines(path: Path) -> list[dict]:
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != CHECK} for line in found]


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


LINE = {"images": 20, "loss": 0.5, "images_per_second": 3.0, "seconds": 2.0}
BAD = [
    b'{"images": 40, "lo',
    b"\xff\xfe\x00",
    b"[1, 2]",
    b"5",
    b"null",
    b'{"loss": 0.5, "images_per_second": 3.0, "seconds": 2.0}',
    b'{"images": "20", "loss": 0.5, "images_per_second": 3.0, "seconds": 2.0}',
    b'{"images": 20, "loss": NaN, "images_per_second": 3.0, "seconds": 2.0}',
    b'{"images": 20, "loss": "low", "images_per_second": 3.0, "seconds": 2.0}',
    b'{"images": -1, "loss": 0.5, "images_per_second": 3.0, "seconds": 2.0}',
    b'{"images": 20, "loss": 0.5}',
    b'{"images": 1e400, "loss": 0.5, "images_per_second": 3.0, "seconds": 2.0}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_bad_line_is_skipped_and_counted(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, good = tmp_path / "log.jsonl", json.dumps(LINE).encode()
    path.write_bytes(b"\n".join([good, BAD[number], good, b""]))
    assert read_log(path) == [LINE, LINE]
    assert capsys.readouterr().out == f"{path}: 1 line skipped that cannot be read.\n"
    cut_log(path, 30)
    assert lines(path) == [LINE, LINE]
    cut_log(path, 10)
    assert path.read_bytes() == b""


def test_a_number_that_changed_is_a_bad_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "log.jsonl"
    for images in (20, 40, 60):
        append_line(path, LINE | {"images": images})
    path.write_bytes(path.read_bytes().replace(b'"images": 40', b'"images": 44'))
    assert [line["images"] for line in read_log(path)] == [20, 60]
    assert "1 line skipped" in capsys.readouterr().out
    path.write_bytes(path.read_bytes().replace(b"crc32", b"crc33", 1))
    assert [line["images"] for line in read_log(path)] == [60]


def test_a_line_that_is_being_written_is_no_bad_one(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b'\n{"ima')
    assert lines_of_log(path) == ([LINE], 0, True)


def test_a_log_that_lost_all_its_lines_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "log.jsonl").write_bytes(b"")
    assert read_log(tmp_path / "log.jsonl") == []
    assert "log.jsonl: holds no line." in capsys.readouterr().out


def test_other_logs_hold_other_lines(tmp_path: Path):
    whole = {"images": 1, "set": "held_out", "weights": "average", "t": [0.5], "losses": [1.0]}
    for name, good, bad in (
        ("validation.jsonl", whole, whole | {"losses": [1.0, 2.0]}),
        ("scores.jsonl", {"images": 1, "KID": 0.1}, {"images": 1, "KID": "low"}),
    ):
        (tmp_path / name).write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n", encoding="utf-8")
        assert read_log(tmp_path / name) == [good]
