"""The commands that make pictures with a trained model."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from kilopix.cli.options import (
    Device,
    Guidance,
    ModelName,
    NegativePrompt,
    Overwrite,
    Preset,
    SamplerName,
    Seed,
    Steps,
    example,
    new_folder,
)
from kilopix.errors import UserError

app = typer.Typer()


@app.command(epilog=example("kilopix sample mini 'a {red|blue} {car|cat}' --guidance 1,3,5"))
def sample(
    model: ModelName,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Prompts; {a|b} stands for each of its choices. Without prompts, one a line from standard "
            "input."
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A file with one prompt a line.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write into.", callback=new_folder)
    ] = Path("pictures"),
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="Pictures per prompt.")] = 1,
    seed: Seed = 0,
    seeds: Annotated[
        str | None, typer.Option(help="Exactly these seeds, as 1,5,9 or 2-6, in place of -n and --seed.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Sampling steps, or several as 10,20; the model's own if not given.")
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(help="Guidance scale, 1 is off, or several as 1,3,5; the model's own if not given."),
    ] = None,
    sampler: SamplerName = None,
    negative_prompt: NegativePrompt = None,
    preset: Preset = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Make pictures from prompts: PNG files and one contact sheet."""
    from kilopix.diffusion.sampling import SamplingChanges
    from kilopix.prompt_files import prompts_in_lines, read_prompts
    from kilopix.prompts import expand_all, numbers, whole_numbers
    from kilopix.stages.sample import Sweep, run

    sweep = Sweep(numbers(guidance, "--guidance"), whole_numbers(steps, "--steps"))
    chosen = whole_numbers(seeds, "--seeds")
    texts = list(prompts or [])
    if file is not None:
        texts += read_prompts(file)
    if not texts and sys.stdin.isatty():
        raise UserError("no prompts: give them as arguments, with --file, or on standard input.")
    if not texts:
        texts = prompts_in_lines(sys.stdin.read().removeprefix("\ufeff").split("\n"), "standard input")
    # A setting with one value is the setting of the whole call.
    one_scale = sweep.guidance[0] if len(sweep.guidance) == 1 else None
    one_count = sweep.steps[0] if len(sweep.steps) == 1 else None
    changes = SamplingChanges(sampler, one_count, one_scale, negative_prompt, preset)
    run(model, expand_all(texts), out, num_images, seed, changes, device, chosen, sweep, overwrite)


@app.command(epilog=example("kilopix export run exported --scores scores"))
def export(
    model: ModelName,
    out: Annotated[Path, typer.Argument(help="Folder to write.", callback=new_folder)],
    kind: Annotated[
        Literal["hub", "diffusers"],
        typer.Option("--format", "-f", help="For kilopix and the Hugging Face hub, or for diffusers (DiT)."),
    ] = "hub",
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            help="Protocol card, or folder with one, to put on the model card; can be repeated.",
            show_default="those of these weights in the run or beside it",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name on the hub, OWNER/NAME; else the folder's.")] = None,
    license_name: Annotated[
        str | None,
        typer.Option("--license", help="Licence, as the hub names it; if not given, none is stated"),
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Data set it was trained on, by its name on the hub.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompt of a sample picture on the card; can be repeated.",
            show_default="some of what it was trained on",
        ),
    ] = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: SamplerName = None,
    negative_prompt: NegativePrompt = None,
    preset: Preset = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write a folder for others: weights, model card, samples; for the Hugging Face hub, or for diffusers."""
    from kilopix.diffusion.sampling import SamplingChanges
    from kilopix.export.model_card import About
    from kilopix.stages.export import run

    about = About(name or out.resolve().name, license_name, tuple(dataset or ()))
    changes = SamplingChanges(sampler, steps, guidance, negative_prompt, preset)
    run(model, out, kind, scores or [], about, prompt or [], seed, changes, device, overwrite)


@app.command(epilog=example("kilopix serve run --shards shards"))
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, checkpoints, .safetensors files, models of the Hugging Face hub, or `mini`, "
            "which is installed; two can be compared."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in, with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 7860,
    shards: Annotated[Path | None, typer.Option(help="Shards that it was trained on, to explore.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="A run to show as it goes; MODELS itself, if it is one.")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Pictures that are made together.")] = 16,
    max_images: Annotated[int, typer.Option(min=1, help="Pictures that one may ask for.")] = 8,
    max_steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps that one may ask for.")] = 100,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name by which a proxy or tunnel calls the server.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of a web page that may use the endpoint, as https://example.org; can be repeated.",
            show_default="the server's own page alone",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="KILOPIX_TOKEN",
            help="What every request has to bring.",
            show_default="none on this machine alone; else one that is drawn and printed",
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let in whoever reaches the port, from other machines too.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Serve a web page and a REST endpoint that make pictures."""
    from kilopix.stages.serve import Doors
    from kilopix.stages.serve import run as run_server
    from kilopix.web.requests import Limits

    limits = Limits(queue=queue, batch=batch, images=max_images, steps=max_steps)
    doors = Doors(allow_host or (), allow_origin or (), token, no_token)
    run_server(models, host, port, shards, run, limits, device, doors)
