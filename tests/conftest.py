"""Shared by all tests: the command line in this process, and a tiny world that went through the stages."""

import sys
from pathlib import Path

import pytest

from kilopix.cli import main
from tiny import TINY, Cli, Outcome


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Call `kilopix ARGUMENTS` in this process."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["kilopix", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return Outcome(code if isinstance(code, int) else 0 if code is None else 1, printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole demo of the tiny recipe."""
    from kilopix.demo import run

    folder = tmp_path_factory.mktemp("tiny") / "demo"
    run(folder, "mini", TINY)
    return folder
