"""The commands from shards to a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from kilopix.cli.options import Device, Overrides, RecipeName, example

app = typer.Typer()


@app.command(epilog=example("kilopix train shards run training.images=2000"))
def train(
    shards: Annotated[Path, typer.Argument(help="Folder of shards that `kilopix encode` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder of the run.")],
    overrides: Overrides = None,
    recipe: RecipeName = "mini",
    device: Device = "auto",
    start_from: Annotated[
        str | None,
        typer.Option(help="Run, or weights, to begin from, in place of the recipe's; '' for none."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print recipe, parameters and FLOPs, and stop.")] = False,
) -> None:
    """Train a model on shards; Ctrl-C saves, and the same command goes on."""
    from kilopix.recipe import load_recipe
    from kilopix.stages.train import describe, run

    begin = [] if start_from is None else [f"training.start_from={start_from}"]
    loaded = load_recipe(recipe, [*(overrides or []), *begin])
    if dry_run:
        describe(shards, loaded)
    else:
        run(shards, out, loaded, device)
