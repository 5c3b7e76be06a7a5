"""The commands that make pictures with a trained model."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kilopix.cli.options import Device, Guidance, NegativePrompt, Preset, SamplerName, Seed, Steps, example
from kilopix.errors import UserError

app = typer.Typer()


@app.command(epilog=example("kilopix sample run 'a photo of a fox' --out pictures"))
def sample(
    model: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, or a .safetensors file.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts; without them, one a line from standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A file with one prompt a line.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")] = Path("pictures"),
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="Pictures per prompt.")] = 1,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: SamplerName = None,
    negative_prompt: NegativePrompt = None,
    preset: Preset = None,
    device: Device = "auto",
) -> None:
    """Make pictures from prompts: PNG files and one grid."""
    from kilopix.diffusion.sampling import SamplingChanges
    from kilopix.stages.sample import read_prompts, run

    texts = list(prompts or [])
    if file is not None:
        texts += read_prompts(file)
    if not texts and sys.stdin.isatty():
        raise UserError("no prompts: give them as arguments, with --file, or on standard input.")
    if not texts:
        texts = read_prompts(None, sys.stdin.read())
    changes = SamplingChanges(sampler, steps, guidance, negative_prompt, preset)
    run(model, texts, out, num_images, seed, changes, device)


@app.command(epilog=example("kilopix serve run --shards shards"))
def serve(
    models: Annotated[
        list[str],
        typer.Argument(help="Run folders, checkpoints or .safetensors files; two can be compared."),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")
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
    device: Device = "auto",
) -> None:
    """Serve a web page and a REST endpoint that make pictures."""
    from kilopix.stages.serve import run as run_server
    from kilopix.web.requests import Limits

    limits = Limits(queue=queue, batch=batch, images=max_images, steps=max_steps)
    run_server(models, host, port, shards, run, limits, device, allow_host or [])
