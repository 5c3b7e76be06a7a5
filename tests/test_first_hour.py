"""A first hour: the commands of README.md and start.md in a terminal, and in a pipe, as printed."""

import re
import shlex
from pathlib import Path

import pytest

from terminal import Seen, in_pipe, in_terminal
from test_docs import SMALLER

ROOT = Path(__file__).parents[1]
COLUMNS = 80


def commands(page: str) -> list[list[str]]:
    """The `kilopix` lines of a page that are run from top to bottom, without the word kilopix."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line[1:] for line in lines if line[:1] == ["kilopix"] and "serve" not in line]


def smaller(command: list[str]) -> list[str]:
    """The command with settings that take seconds in place of minutes."""
    return command if "--dry-run" in command else [*command, *SMALLER.get(command[0], [])]


def look(command: list[str], seen: Seen) -> None:
    """What must hold for all that any command prints in the first hour."""
    name = f"kilopix {shlex.join(command)}:\n{seen.text}"
    assert seen.code == 0, name
    wrong = re.search(r"Traceback|Warning|warn\(|\bnan\b|\bNone\b", seen.text)
    assert not wrong, f"{wrong} in {name}"
    wrong = re.search(
        r"(?<![\d.,])1 (images|pictures|classes|samples|captions|shards|prompts)\b(?!/)", seen.text
    )
    assert not wrong, f"{wrong} in {name}"
    assert seen.lines, name


def test_the_readme_in_a_terminal_of_80_columns(tmp_path: Path):
    done = [(command, in_terminal(smaller(command), COLUMNS, tmp_path)) for command in commands("README.md")]
    assert len(done) >= 9
    for command, seen in done:
        look(command, seen)
        for line in seen.lines:
            if "━" in line:
                assert len(line) <= COLUMNS, f"{line!r} of kilopix {shlex.join(command)}"
                assert re.search(r"\d[\d,]*/\d", line), line
    assert any("━" in line for _, seen in done for line in seen.lines)


@pytest.mark.slow
def test_the_ten_minute_start_in_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for command in commands("docs/start.md"):
        seen = in_pipe(smaller(command), tmp_path)
        look(command, seen)
        assert "\x1b" not in seen.raw, f"escape codes in the log of kilopix {shlex.join(command)}"
        assert "\r" not in seen.raw
        assert "━" not in seen.raw
    assert (tmp_path / "report.html").stat().st_size > 100_000
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    (python,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(python, {})
    assert (tmp_path / "cat.png").is_file()
