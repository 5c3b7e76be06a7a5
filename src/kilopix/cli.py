"""The command line: one command a stage, each a thin shell around `kilopix.stages.<name>.run`.

Stages are imported when they are called, so that `kilopix --help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from kilopix.cli_evaluation import app as evaluation_commands
from kilopix.errors import UserError

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
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
ManifestPath = Annotated[Path, typer.Argument(help="Manifest (.parquet) that `kilopix caption` wrote.")]
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
    typer.Option(help="Sampling settings to start from in place of the recipe's: docs/sampling.md."),
]


def _example(text: str) -> str:
    return f"Example:  [bold]{text}[/bold]"


@app.command(epilog=_example("kilopix mini world --images-per-class 20"))
def mini(
    out: Annotated[Path, typer.Argument(help="Folder to write train/ and val/ into.")],
    images_per_class: Annotated[int, typer.Option(min=1)] = 400,
    size: Annotated[int, typer.Option(min=16, help="Side of a picture in pixels.")] = 64,
    seed: Seed = 0,
    classes: Annotated[int, typer.Option(min=1, max=64, help="How many of the 64 objects.")] = 64,
    val_per_class: Annotated[int, typer.Option(min=1, help="Held-out pictures per class.")] = 20,
    workers: Workers = None,
) -> None:
    """Draw the embedded world: an ImageNet-like folder of pictures of everyday objects."""
    from kilopix.stages.mini import run

    run(out, images_per_class, size, seed, classes, val_per_class, workers)


@app.command(epilog=_example("kilopix caption world/train captions.parquet --captioner structured"))
def caption(
    images: Annotated[
        Path,
        typer.Argument(
            help="Folder of class folders, of a captions file and its images, of Parquet or of tar files; "
            "one such file; or a manifest, to describe its images anew."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Manifest to write (.parquet).")],
    captioner: Annotated[
        Literal["aio", "structured", "given", "model", "server"],
        typer.Option(
            help="aio: 'An image of a <class>.'; structured: long captions from scenes.jsonl; given: the "
            "source's own; model: a vision-language model; server: one that speaks the OpenAI chat API."
        ),
    ] = "aio",
    model: Annotated[
        str | None, typer.Option(help="Model of the hub, or a folder; for a server, its name there.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="Address, as http://127.0.0.1:8000/v1; OPENAI_API_KEY holds its key, if any."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What the model is asked.")] = "Describe this image",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Images that a model sees at once.")] = 16,
    concurrency: Annotated[int, typer.Option(min=1, help="Most requests to a server at once.")] = 64,
    cleaning: Annotated[
        Literal["recommended", "published"], typer.Option(help="What is kept of an answer.")
    ] = "recommended",
    redo: Annotated[
        bool, typer.Option("--redo", help="Of a manifest, only the captions with faults, and lacking ones.")
    ] = False,
    device: Device = "auto",
    seed: Seed = 0,
    workers: Workers = None,
    engine: EngineName = "local",
) -> None:
    """Write a caption for every image; files that are no images are named and left out."""
    from kilopix.pretrained.captioner import HubCaptionerConfig, ServerCaptionerConfig
    from kilopix.stages import caption as stage

    if (server is not None) != (captioner == "server"):
        raise UserError("--captioner server and --server, as http://127.0.0.1:8000/v1, go together.")
    chosen: stage.Rule | HubCaptionerConfig | ServerCaptionerConfig
    if captioner == "model":
        name = model or HubCaptionerConfig().name
        chosen = HubCaptionerConfig(name=name, prompt=prompt, max_tokens=max_tokens, batch_size=batch)
    elif captioner == "server":
        chosen = ServerCaptionerConfig(
            url=server or "", model=model or "", prompt=prompt, max_tokens=max_tokens, concurrency=concurrency
        )
    else:
        chosen = captioner
    if redo:
        stage.redo(images, out, chosen, seed, cleaning, device)
    else:
        stage.run(images, out, chosen, seed, workers, cleaning, device, engine)


@app.command(epilog=_example("kilopix captions captions.parquet"))
def captions(
    manifest: ManifestPath,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file to write; beside the manifest if not given.")
    ] = None,
) -> None:
    """Report on a manifest's captions: lengths, loops, cut, empty and double ones, absent class names."""
    from kilopix.stages.captions import run

    run(manifest, out)


@app.command(epilog=_example("kilopix fetch ILSVRC/imagenet-1k imagenet --split train"))
def fetch(
    name: Annotated[str, typer.Argument(help="Data set of the Hugging Face hub, or a folder of one.")],
    out: Annotated[Path, typer.Argument(help="Folder of Parquet files to write.")],
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    config: Annotated[str | None, typer.Option(help="Configuration, if the data set has several.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to take; all if not given.")] = None,
) -> None:
    """Stream the images of a hub data set into Parquet files, which `kilopix caption` reads."""
    from kilopix.stages.fetch import run

    run(name, out, split, config, limit)


@app.command(epilog=_example("kilopix augment captions.parquet augmented --size 64"))
def augment(
    manifest: ManifestPath,
    out: Annotated[Path, typer.Argument(help="Folder to write images and manifest.parquet into.")],
    kind: Annotated[
        Literal["cutmix", "crop"], typer.Option(help="Paste another image, or cut a window.")
    ] = "cutmix",
    setting: Annotated[
        Literal["1/2", "1/4", "1/9", "1/16", "all"],
        typer.Option(help="Share of the area that CutMix pastes."),
    ] = "all",
    size: Annotated[int, typer.Option(min=16, help="Side of the images in pixels.")] = 256,
    seed: Seed = 0,
    workers: Workers = None,
    engine: EngineName = "local",
    part_rows: PartRows = 512,
) -> None:
    """Make one CutMix or Crop image of every image, with a caption that says what is where."""
    from kilopix.stages.augment import run

    run(manifest, out, kind, setting, size, seed, workers, engine, part_rows)


@app.command(epilog=_example("kilopix encode captions.parquet shards --augmented augmented/manifest.parquet"))
def encode(
    manifest: ManifestPath,
    out: Annotated[Path, typer.Argument(help="Folder of shards to write.")],
    overrides: Overrides = None,
    recipe: RecipeName = "mini",
    augmented: Annotated[Path | None, typer.Option(help="Manifest that `kilopix augment` wrote.")] = None,
    device: Device = "auto",
    online: Annotated[
        bool, typer.Option("--online", help="Make the recipe's augmented images while encoding.")
    ] = False,
    stored: Annotated[
        bool, typer.Option("--stored", help="Take the arrays of the published release's tar shards.")
    ] = False,
    workers: Workers = None,
    engine: EngineName = "local",
    part_rows: PartRows = 1024,
) -> None:
    """Turn images and captions into shards of latents and text states."""
    from kilopix.recipe import load_recipe
    from kilopix.stages.encode import run

    loaded = load_recipe(recipe, overrides or [])
    run(manifest, out, loaded, augmented, device, online, workers, engine, part_rows, stored)


@app.command(epilog=_example("kilopix verify shards"))
def verify(
    shards: Annotated[Path, typer.Argument(help="Folder of shards that `kilopix encode` wrote.")],
) -> None:
    """Check that shards are whole: hashes, counts, sizes, and that every number is finite."""
    from kilopix.stages.verify import run

    run(shards)


@app.command(epilog=_example("kilopix inspect shards shards.html"))
def inspect(
    shards: Annotated[Path, typer.Argument(help="Folder of shards that `kilopix encode` wrote.")],
    out: Annotated[Path, typer.Argument(help="HTML file to write.")] = Path("shards.html"),
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="How many pictures.")] = 24,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Show pictures decoded from the latents of shards, beside the captions that they are trained with."""
    from kilopix.stages.inspect import run

    run(shards, out, num_images, seed, device)


@app.command(epilog=_example("kilopix train shards run training.images=2000"))
def train(
    shards: Annotated[Path, typer.Argument(help="Folder of shards that `kilopix encode` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder of the run.")],
    overrides: Overrides = None,
    recipe: RecipeName = "mini",
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option(help="Print recipe, parameters and FLOPs, and stop.")] = False,
) -> None:
    """Train a model on shards; Ctrl-C saves, and the same command goes on."""
    from kilopix.recipe import load_recipe
    from kilopix.stages.train import describe, run

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        describe(shards, loaded)
    else:
        run(shards, out, loaded, device)


@app.command(epilog=_example("kilopix sample run 'a photo of a fox' --out pictures"))
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


@app.command(epilog=_example("kilopix evaluate run val.parquet --out scores"))
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, or a .safetensors file.")],
    held_out: Annotated[
        Path, typer.Argument(help="Manifest of held-out pictures (`kilopix caption world/val ...`).")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings of the evaluation, as evaluation.images_per_prompt=4.", show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")] = Path("scores"),
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: SamplerName = None,
    negative_prompt: NegativePrompt = None,
    preset: Preset = None,
    device: Device = "auto",
) -> None:
    """Score a model of the embedded world on six tasks and by KID, with the protocol of every score."""
    from kilopix.diffusion.sampling import SamplingChanges
    from kilopix.stages.evaluate import run

    changes = SamplingChanges(sampler, steps, guidance, negative_prompt, preset)
    run(model, held_out, out, seed, changes, overrides or [], device)


app.add_typer(evaluation_commands)


@app.command(epilog=_example("kilopix report run report.html --scores scores --samples pictures"))
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[Path, typer.Argument(help="HTML file to write.")] = Path("report.html"),
    scores: Annotated[Path | None, typer.Option(help="Folder that `kilopix evaluate` wrote.")] = None,
    samples: Annotated[Path | None, typer.Option(help="Folder that `kilopix sample` wrote.")] = None,
    augmented: Annotated[Path | None, typer.Option(help="Manifest that `kilopix augment` wrote.")] = None,
    times: Annotated[Path | None, typer.Option(help="JSON file with the seconds of each stage.")] = None,
) -> None:
    """Put pictures, training curve, scores and recipe of a run on one HTML page."""
    from kilopix.stages.report import run

    run(run_folder, out, scores, samples, augmented, times)


@app.command(epilog=_example("kilopix demo demo"))
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


if __name__ == "__main__":
    main()
