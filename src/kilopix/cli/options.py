"""Arguments and options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from kilopix.errors import UserError

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Recipe settings, as section.key=value.", show_default=False)
]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="Name or path of a recipe (TOML).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; all cores if not given.")]
EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Processes on this machine, or actors on a Ray cluster (RAY_ADDRESS)."),
]
PartRows = Annotated[int, typer.Option(min=1, help="Pictures in a part: what an interruption loses at most.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what another call of this command made there.")
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
ManifestPath = Annotated[Path, typer.Argument(help="Manifest (.parquet) that `kilopix caption` wrote.")]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run folder, a checkpoint, a .safetensors file, a model of the Hugging Face hub, or `mini`.",
    ),
]
Steps = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Sampling steps; the recipe's if not given.")
]
Guidance = Annotated[
    float | None, typer.Option(min=0, help="Guidance scale, 1 is off; the recipe's if not given.")
]
SamplerName = Annotated[
    Literal["euler", "ddim", "heun", "ddpm", "dpmpp_2m", "dpmpp_2m_sde"] | None,
    typer.Option(help="Sampler; the recipe's if not given."),
]
NegativePrompt = Annotated[
    str | None, typer.Option(help="What guidance leads away from; the empty text if not given.")
]
Preset = Annotated[
    Literal["recommended", "published"] | None,
    typer.Option(
        help="Sampling settings to start from in place of the recipe's. recommended: dpmpp_2m, 25 steps, "
        "guidance 4; published: the released CAD-I pipeline, ddim, 250 steps, guidance 16."
    ),
]


_FILES = {".arrow", ".csv", ".html", ".jpg", ".json", ".jsonl", ".npz", ".parquet", ".png", ".safetensors"}
"""Endings that no folder has."""


def file_ending_in(ending: str) -> Callable[[Path | None], Path | None]:
    """A check of a file to write, whose format is fixed."""

    def check(path: Path | None) -> Path | None:
        if path is not None and path.suffix.lower() != ending:
            raise UserError(f"{path}: a file ending in {ending} is written; name it {path.stem}{ending}.")
        if path is not None and path.is_dir():
            raise UserError(f"{path}: is a folder, and a file is written; give another name.")
        return path

    return check


def new_folder(path: Path) -> Path:
    """A check of a folder to write into."""
    if path.suffix.lower() in _FILES:
        raise UserError(f"{path}: a folder is written; name it without {path.suffix}.")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, and a folder is written; give another name.")
    return path


def example(text: str) -> str:
    """The example under a command's help."""
    return f"Example:  [bold]{text}[/bold]"
