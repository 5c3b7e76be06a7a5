"""The commands from shards to a trained model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kilopix.cli.options import Device, Overrides, Overwrite, RecipeName, example, file_ending_in, new_folder

if TYPE_CHECKING:
    from kilopix.recipe import Recipe
    from kilopix.watch import ScoreAverage

app = typer.Typer()


@app.command(epilog=example("kilopix plan dit_i_256_ta --device h100-sxm --devices 8"))
def plan(
    recipe: Annotated[str, typer.Argument(help="Name or path of a recipe (TOML).")],
    overrides: Overrides = None,
    device: Annotated[
        str,
        typer.Option(help="Kind of device, such as h100-sxm, rtx-4090; or cpu, cuda, mps: measured here."),
    ] = "h100-sxm",
    devices: Annotated[
        int | None, typer.Option(min=1, help="How many there are; if not given, those of this machine, or 8.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Pictures of the data set; ImageNet's if not given.")
    ] = None,
    utilisation: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="Share of the device's peak that is reached.")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Images at once on a device; the most that fit if not given.")
    ] = None,
    precision: Annotated[
        Literal["bfloat16", "float16", "float32"] | None, typer.Option(help="Precision of the products.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a caption, on the average.")] = None,
    shards: Annotated[
        Path | None, typer.Option(help="Shards, from which tokens, sizes and counts are taken.")
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="measured.json of `make gpu-check`, in place of assumed rates."),
    ] = None,
) -> None:
    """Say what a recipe's run costs: parameters, FLOPs, disk, memory of a device, hours."""
    from kilopix.recipe import load_recipe
    from kilopix.stages.plan import Question, run

    question = Question(
        device, devices or 0, images, utilisation, micro_batch, precision, tokens, shards, measured
    )
    run(recipe, load_recipe(recipe, overrides or []), question)


@app.command(epilog=example("kilopix train shards run training.images=2000"))
def train(
    shards: Annotated[Path, typer.Argument(help="Folder of shards that `kilopix encode` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder of the run.", callback=new_folder)],
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
    start_from: Annotated[
        str | None,
        typer.Option(help="Run, or weights, to begin from, in place of the recipe's; '' for none."),
    ] = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option(help="Print recipe, parameters and FLOPs, and stop.")] = False,
) -> None:
    """Train a model on shards; Ctrl-C saves, and the same command goes on; torchrun starts it on many."""
    from kilopix.recipe import load_recipe
    from kilopix.stages.train import describe, run

    begin = [] if start_from is None else [f"training.start_from={start_from}"]
    loaded = load_recipe(recipe, [*(overrides or []), *begin])
    if dry_run:
        describe(shards, loaded)
    else:
        run(shards, out, loaded, device, validation, _scorer(score, loaded, device), overwrite)


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
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File to write (.safetensors); in the run's folder if not given.",
            callback=file_ending_in(".safetensors"),
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make averaged weights of any width from what a run stored."""
    from kilopix.stages.average import run

    run(run_folder, sigma_rel, at, out, overwrite)
