"""The commands from shards to a trained model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kilopix.cli.options import Device, Overrides, RecipeName, example

if TYPE_CHECKING:
    from kilopix.recipe import Recipe
    from kilopix.watch import ScoreAverage

app = typer.Typer()


@app.command(epilog=example("kilopix train shards run training.images=2000"))
def train(
    shards: Annotated[Path, typer.Argument(help="Folder of shards that `kilopix encode` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder of the run.")],
    overrides: Overrides = None,
    recipe: RecipeName = "mini",
    device: Device = "auto",
    validation: Annotated[
        Path | None,
        typer.Option(metavar="SHARDS", help="Shards of held-out pictures, for the loss on fixed noise."),
    ] = None,
    score: Annotated[
        Path | None,
        typer.Option(metavar="MANIFEST", help="Held-out pictures for scores while training (scores.every)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print recipe, parameters and FLOPs, and stop.")] = False,
) -> None:
    """Train a model on shards; Ctrl-C saves, and the same command goes on."""
    from kilopix.recipe import load_recipe
    from kilopix.stages.train import describe, run

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        describe(shards, loaded)
    else:
        run(shards, out, loaded, device, validation, _scorer(score, loaded, device))


def _scorer(held_out: Path | None, recipe: "Recipe", device: str) -> "ScoreAverage | None":
    """What scores a file of averaged weights against held-out pictures, if there are any."""
    if held_out is None:
        return None
    from kilopix.checkpoint_scores import average_scorer

    return average_scorer(held_out, recipe.scores, recipe.seed, device)


@app.command(epilog=example("kilopix average run --sigma-rel 0.12"))
def average(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run with power-function averages.")],
    sigma_rel: Annotated[float, typer.Option(help="Width of the average, as a share of the run.")],
    at: Annotated[
        int | None, typer.Option(min=1, help="Images seen at that moment; the end of the run if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; in the run's folder if not given.")
    ] = None,
) -> None:
    """Make averaged weights of any width from what a run stored."""
    from kilopix.stages.average import run

    run(run_folder, sigma_rel, at, out)
