"""The command line: one command a stage, each a thin shell around `kilopix.stages.<name>.run`.

Stages are imported when they are called, so that `kilopix --help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kilopix.cli import data, evaluation, training, use
from kilopix.cli.options import Overrides, RecipeName, example
from kilopix.errors import UserError
from kilopix.threads import watch_load

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train text-to-image models from a folder of images, and measure what they can do.",
    epilog="Every command can be stopped and typed again: it goes on where it was.",
)

for commands in (data, training, use, evaluation):
    app.add_typer(commands.app)


@app.command(epilog=example("kilopix report run report.html --scores scores --samples pictures"))
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[Path, typer.Argument(help="HTML file to write.")] = Path("report.html"),
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder that evaluate, fidelity, geneval or dpg wrote; may be given several times."
        ),
    ] = None,
    samples: Annotated[Path | None, typer.Option(help="Folder that `kilopix sample` wrote.")] = None,
    augmented: Annotated[Path | None, typer.Option(help="Manifest that `kilopix augment` wrote.")] = None,
    times: Annotated[Path | None, typer.Option(help="JSON file with the seconds of each stage.")] = None,
    beside: Annotated[
        Path | None, typer.Option(help="Samples of another model, shown under those of the same prompts.")
    ] = None,
) -> None:
    """Put pictures, training curve, scores and recipe of a run on one HTML page."""
    from kilopix.stages.report import run

    run(run_folder, out, scores or [], samples, augmented, times, beside)


@app.command(epilog=example("kilopix demo demo"))
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for everything that the demo makes.")] = Path("demo"),
    overrides: Overrides = None,
    recipe: RecipeName = "mini",
) -> None:
    """From nothing to a page with pictures and scores: draw a small world, train on it, judge the model."""
    from kilopix.demo import run

    run(out, recipe, overrides or [])


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    watch_load(os.environ)
    try:
        app()
    except UserError as error:
        if os.environ.get("KILOPIX_TRACEBACK"):
            raise
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("Stopped; the same command goes on from here.", file=sys.stderr)
        raise
