"""What says that it is complete has looked: what is deleted or cut short is named, and made anew alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kilopix import demo
from kilopix.data.lines import finished_lines
from kilopix.data.manifest import Row, to_table
from kilopix.data.parts import Parts, write_table
from kilopix.runtime import is_whole, write_lines
from tiny import TINY


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


DAMAGED = (
    "world/train/*/*.jpg",
    "world/val/scenes.jsonl",
    "augmented/cutmix/*/*.jpg",
    "shards/augmented-*.arrow",
    "run/codec.safetensors",
    "run/model.safetensors",
    "pictures/0*.png",
    "pictures_of_mini/grid.png",
    "scores/fidelity/*.png",
    "scores/judged.jsonl",
)
"""A file of every stage of the demo."""
DRAWN = ("pictures/0", "scores/fidelity/")
"""Images that a network makes, whose last bits depend on what is sampled beside them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of one's own, to be damaged."""
    made = tmp_path_factory.mktemp("damaged") / "demo"
    demo.run(made, "mini", TINY)
    return made


@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_a_demo_that_is_run_again_mends_every_stage(
    folder: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
):
    damaged = [sorted(folder.glob(pattern))[1 if "*" in pattern else 0] for pattern in DAMAGED[:3]]
    damaged += [sorted(folder.glob(pattern))[0] for pattern in DAMAGED[3:]]
    names = {file: file.relative_to(folder).as_posix() for file in damaged}
    before = {file: file.read_bytes() for file in damaged}
    kept = {f: f.stat().st_mtime_ns for f in folder.rglob("*.*g") if f not in damaged}
    for file in damaged:
        damage(file)
    demo.run(folder, "mini", TINY)
    printed = capsys.readouterr().out
    for file, name in names.items():
        assert is_whole(file), name
        if not name.startswith(DRAWN):
            assert file.read_bytes() == before[file], name
        if not name.startswith("run/"):
            assert file.name in printed, name
    touched = {f.relative_to(folder).as_posix() for f, time in kept.items() if f.stat().st_mtime_ns != time}
    assert touched == {"pictures/grid.png"}  # of the images, one of which is new
    demo.run(folder, "mini", TINY)
    printed = capsys.readouterr().out
    assert "was complete, but" not in printed
    assert printed.count("already complete") == 8
    assert "already trained" in printed


def test_a_part_that_was_cut_short_is_still_to_be_made(tmp_path: Path):
    parts = Parts(tmp_path, 3)
    for number in (0, 1):
        write_table(parts.path(number), to_table([Row("a.png", "a", "A thing.")]))
    assert parts.missing() == [2]
    cut(parts.path(0))
    assert parts.missing() == [0, 2]


def test_lines_that_were_cut_short_are_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, job = tmp_path / "lines.jsonl", {"stage": "dpg"}
    lines = [{"file": f"{i}.png"} for i in range(3)]
    write_lines(file, [{"job": job}, *lines])
    assert finished_lines(file, job, 3) == ({"job": job}, lines)
    cut(file)
    assert finished_lines(file, job, 3) is None
    assert "is cut short or damaged; its lines are made anew" in capsys.readouterr().out
