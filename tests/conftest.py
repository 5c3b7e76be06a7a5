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


@pytest.fixture(scope="session")
def lively(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose pictures depend on their prompts."""
    from live_server import lively_run

    return lively_run(tiny_demo / "run", tmp_path_factory.mktemp("lively") / "run")


@pytest.fixture(scope="session")
def live(lively: Path, tiny_demo: Path):
    """A server with every tab and small limits."""
    from kilopix.web.requests import Limits
    from live_server import live_server

    paths = [lively, tiny_demo / "run" / "model.safetensors"]
    with live_server(paths, Limits(images=4, steps=20), tiny_demo / "shards") as server:
        yield server


@pytest.fixture(scope="session")
def client(live):
    """What speaks HTTP to that server."""
    import httpx

    with httpx.Client(base_url=live.url, timeout=60) as client:
        yield client
