"""The command line: one command a stage, each a thin shell around `kilopix.stages.<name>.run`.

Stages are imported when they are called, so that `kilopix --help` answers at once.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from kilopix.cli import data, evaluation, training, use
from kilopix.cli.options import Overrides, Overwrite, RecipeName, example, file_ending_in, new_folder
from kilopix.errors import UserError
from kilopix.plain_text import visible
from kilopix.runtime import leave_terminal
from kilopix.threads import watch_load

HUNG_UP, INTERRUPTED, TERMINATED = 129, 130, 143
"""The exit codes after a lost terminal, Ctrl-C and SIGTERM, as shells have them."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train text-to-image models from a folder of images, and measure what they can do.",
    epilog="Every command can be stopped and typed again: it goes on where it was.",
)


def _say_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        print(f"kilopix {version('kilopix')}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What can be given before any command."""


for commands in (data, training, use, evaluation):
    app.add_typer(commands.app)


@app.command(epilog=example("kilopix report run report.html --scores scores --samples pictures"))
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[Path, typer.Argument(help="HTML file to write.", callback=file_ending_in(".html"))] = Path(
        "report.html"
    ),
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
    out: Annotated[
        Path, typer.Argument(help="Folder for everything that the demo makes.", callback=new_folder)
    ] = Path("demo"),
    overrides: Overrides = None,
    recipe: RecipeName = "mini",
    overwrite: Overwrite = False,
) -> None:
    """From nothing to a page with pictures and scores: draw a small world, train on it, judge the model."""
    from kilopix.demo import run

    run(out, recipe, overrides or [], overwrite)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    watch_load(os.environ)
    # So that a command that is told to end ends its workers and tidies up, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, _hang_up)
    try:
        app()
    except UserError as error:
        if os.environ.get("KILOPIX_TRACEBACK"):
            raise
        print(f"Error: {visible(str(error))}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code in (HUNG_UP, INTERRUPTED, TERMINATED):
            print("Stopped; the same command goes on from here.", file=sys.stderr)
        raise


def _hang_up(number: int, frame: FrameType | None) -> None:
    leave_terminal()
    sys.exit(HUNG_UP)
