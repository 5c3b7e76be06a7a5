import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from kilopix.data.lines import LineParts, make_lines
from kilopix.data.parts import MOST_THREADS
from kilopix.runtime import read_lines, write_lines
from kilopix.types import UserError


@dataclass(frozen=True)
class Squares:
    """Two lines a part; `fault` is the part that fails."""

    folder: Path
    fault: int = -1
    crash: int = -1

    def load(self, device: str):
        (self.folder / f"loaded-{os.getpid()}").touch()

        def make(part: int):
            if part == self.fault:
                raise UserError(f"part {part} is not to be had")
            if part == self.crash:
                os._exit(9)
            return [{"number": n, "square": n * n, "sign": "\u2028"} for n in (2 * part, 2 * part + 1)]

        return make


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]])
def test_one_and_two_processes_make_the_same(tmp_path: Path, devices: list[str]):
    parts = LineParts(tmp_path / "parts", 5)
    make_lines(parts, Squares(tmp_path), "square", 10, devices)
    lines = list(parts.lines())
    assert [line["square"] for line in lines] == [n * n for n in range(10)]
    assert lines[0]["sign"] == "\u2028"
    assert len(list(tmp_path.glob("loaded-*"))) == len(devices)
    assert (f"loaded-{os.getpid()}" in os.listdir(tmp_path)) == (len(devices) == 1)


@dataclass(frozen=True)
class Threads:
    """The number of threads that a part was made with."""

    def load(self, device: str):
        import torch

        return lambda part: [{"threads": torch.get_num_threads()}]


@pytest.mark.parametrize("given", [None, "1", "3", "2,1", "many"])
def test_every_process_has_the_same_threads_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
):
    import torch

    expected = int(given[0]) if given and given[0].isdigit() else min(os.cpu_count() or 1, MOST_THREADS)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = torch.get_num_threads()
    for processes in (1, 2):
        torch.set_num_threads(expected + 1)  # as a machine with other work may leave it
        parts = LineParts(tmp_path / f"{processes}", 3)
        make_lines(parts, Threads(), "count", 3, ["cpu"] * processes)
        assert [line["threads"] for line in parts.lines()] == [expected] * 3
        assert torch.get_num_threads() == expected + 1, "this process goes on as it was"
    torch.set_num_threads(before)


def test_only_what_is_missing_is_made(tmp_path: Path):
    parts = LineParts(tmp_path / "parts", 3)
    write_lines(parts.path(1), [{"square": "kept"}])
    make_lines(parts, Squares(tmp_path), "square", 6, ["cpu"])
    assert [line["square"] for line in parts.lines()] == [0, 1, "kept", 16, 25]
    for path in tmp_path.glob("loaded-*"):
        path.unlink()
    make_lines(parts, Squares(tmp_path), "square", 6, ["cpu"])
    assert not list(tmp_path.glob("loaded-*")), "nothing is loaded where nothing is to do"


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]])
def test_a_fault_is_told_and_the_rest_is_kept(tmp_path: Path, devices: list[str]):
    parts = LineParts(tmp_path / "parts", 4)
    with pytest.raises(UserError, match="part 3 is not to be had"):
        make_lines(parts, Squares(tmp_path, fault=3), "square", 8, devices)
    assert 3 in parts.missing()
    assert len(parts.missing()) <= len(devices), "what was made before the fault is kept"


def test_a_process_that_dies_is_told(tmp_path: Path):
    parts = LineParts(tmp_path / "parts", 4)
    with pytest.raises(UserError, match=r"part 1: 3 workers died.*fewer --workers or --device"):
        make_lines(parts, Squares(tmp_path, crash=1), "square", 8, ["cpu", "cpu"])
    make_lines(parts, Squares(tmp_path), "square", 8, ["cpu", "cpu"])
    assert parts.missing() == []


def test_broken_lines_are_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    for text, message in (
        ('{"a": 1}\n{"a"', "line 2: not valid JSON"),
        ("[1]\n", "line 1: not a JSON object"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            read_lines(path)
    with pytest.raises(UserError, match="no such file"):
        read_lines(tmp_path / "b.jsonl")
