"""The README is true; test_first_hour.py runs its commands."""

import re
import shlex
from pathlib import Path

from typer.main import get_command

from kilopix.cli import app

ROOT = Path(__file__).parents[1]


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )


def shell_lines() -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_python_works():
    (python,) = blocks("python")
    values: dict[str, object] = {}
    exec(python, values)
    assert getattr(values["image"], "size", None) == (64, 64)


def test_the_make_commands_exist():
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    asked = {line[1] for line in shell_lines() if line[0] == "make"}
    assert asked == {"demo", "test"}
    assert asked | {"check", "fix", "bench", "help", "test-slow"} <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_command_is_in_the_table_and_has_an_example():
    commands = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    table = set(
        re.findall(
            r"^\| `kilopix ([a-z-]+)` \|",
            (ROOT / "README.md").read_text(encoding="utf-8"),
            flags=re.MULTILINE,
        )
    )
    assert table == set(commands)
    for name, command in commands.items():
        assert f"kilopix {name}" in command.epilog


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) >= 2
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_help_loads_nothing_heavy():
    """Which is what makes it answer at once; how long that takes is a matter of the machine."""
    import subprocess
    import sys

    code = """
import sys, kilopix.cli
sys.argv = ["kilopix", "--help"]
try:
    kilopix.cli.main()
except SystemExit as end:
    assert not end.code
print(*sorted({"torch", "numpy", "PIL", "pyarrow", "transformers", "gradio"} & sys.modules.keys()), "end")
"""
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "sample" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "end"
