"""What docs/generate.md shows runs as it stands; its `py` blocks need a network or large models."""

import re
import shlex
from pathlib import Path

import pytest

from kilopix.cli import use
from tiny import Cli

TEXT = (Path(__file__).parents[1] / "docs" / "generate.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli):
    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line) for block in blocks("sh") for line in block.splitlines() if line]
    assert len(lines) == 6
    for line in lines:
        done = cli(*line[1:])
        assert done.code == 0, f"{line}: {done.err}"
    assert len(list((tmp_path / "matrix").glob("0*.png"))) == 8
    assert (tmp_path / "exported" / "README.md").is_file()
    assert (tmp_path / "pipeline" / "model_index.json").is_file()


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}
    found = blocks("python")
    assert len(found) == 3
    for block in found:
        exec(block, values)
    assert (tmp_path / "penguin.png").is_file()
    assert (tmp_path / "preview.png").is_file()
    images = values["images"]
    assert isinstance(images, list)
    assert len(images) == 4
    assert "step 4 of 4" in capsys.readouterr().out


def test_options_that_are_named_exist():
    from typer.main import get_command

    known = {
        option
        for command in get_command(use.app).commands.values()  # pyright: ignore[reportAttributeAccessIssue]
        for parameter in command.params
        for option in parameter.opts
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    assert len(named) > 10
    assert named - known == set()
