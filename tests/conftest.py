"""Shared by all tests: the command line in this process, and a tiny world that went through the stages."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kilopix.cli import main
from kilopix.recipe import Recipe, load_recipe

TINY = [
    "world.classes=4",
    "world.images_per_class=12",
    "world.val_per_class=6",
    "data.image_size=32",
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "model.patch=1",
    "training.images=96",
    "training.batch_size=16",
    "training.log_every=16",
    "training.checkpoint_every=32",
    "training.schedule.warmup_images=16",
    "sampling.steps=2",
    "evaluation.prompts_per_task=3",
    "evaluation.fidelity_images=16",
]


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


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
def tiny_recipe() -> Recipe:
    """The demo's recipe, made tiny."""
    return load_recipe("mini", TINY)


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole demo of the tiny recipe."""
    from kilopix.demo import run

    folder = tmp_path_factory.mktemp("tiny") / "demo"
    run(folder, "mini", TINY)
    return folder
