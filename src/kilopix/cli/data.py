"""The commands from pictures to shards."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kilopix.cli.options import (
    Device,
    EngineName,
    ManifestPath,
    Overrides,
    Overwrite,
    PartRows,
    RecipeName,
    Seed,
    Workers,
    example,
    file_ending_in,
    new_folder,
)
from kilopix.errors import UserError

app = typer.Typer()


@app.command(epilog=example("kilopix mini world --images-per-class 20"))
def mini(
    out: Annotated[Path, typer.Argument(help="Folder to write train/ and val/ into.", callback=new_folder)],
    images_per_class: Annotated[int, typer.Option(min=1)] = 400,
    size: Annotated[int, typer.Option(min=16, help="Side of a picture in pixels.")] = 64,
    seed: Seed = 0,
    classes: Annotated[int, typer.Option(min=1, max=64, help="How many of the 64 objects.")] = 64,
    val_per_class: Annotated[int, typer.Option(min=1, help="Held-out pictures per class.")] = 20,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw the embedded world: an ImageNet-like folder of pictures of everyday objects."""
    from kilopix.stages.mini import run

    run(out, images_per_class, size, seed, classes, val_per_class, workers, overwrite)


@app.command(epilog=example("kilopix caption world/train captions.parquet --captioner structured"))
def caption(
    images: Annotated[
        Path,
        typer.Argument(
            help="Folder of class folders, of a captions file and its images, of Parquet or of tar files; "
            "one such file; or a manifest, to describe its images anew."
        ),
    ],
    out: Annotated[
        Path, typer.Argument(help="Manifest to write (.parquet).", callback=file_ending_in(".parquet"))
    ],
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
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only images of which a column of the source says so, as 'aesthetic>=6.5'."),
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of the source's captions, if not caption or text.")
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="Column of the source's class names or numbers, if not class or label; or none."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a data set in several splits, the one to take, as train or test.")
    ] = None,
    caption_lines: Annotated[
        bool,
        typer.Option("--caption-lines", help="Each line of a text beside an image is a caption of its own."),
    ] = False,
    redo: Annotated[
        bool, typer.Option("--redo", help="Of a manifest, only the captions with faults, and lacking ones.")
    ] = False,
    device: Device = "auto",
    seed: Seed = 0,
    workers: Workers = None,
    engine: EngineName = "local",
    overwrite: Overwrite = False,
) -> None:
    """Write a caption for every image; files that are no images are named and left out."""
    from kilopix.data.sources.selection import Selection
    from kilopix.pretrained.captioner import HubCaptionerConfig, ServerCaptionerConfig
    from kilopix.stages import caption as stage

    selection = Selection.of(where or (), caption_column, label_column, split, caption_lines)
    if redo and selection:
        raise UserError("--redo reads a manifest, which has no columns to select by.")
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
        stage.redo(images, out, chosen, seed, cleaning, device, overwrite=overwrite)
    else:
        stage.run(images, out, chosen, seed, workers, cleaning, device, engine, selection, overwrite)


@app.command(epilog=example("kilopix captions captions.parquet"))
def captions(
    manifest: ManifestPath,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="JSON file to write; beside the manifest if not given.",
            callback=file_ending_in(".json"),
        ),
    ] = None,
) -> None:
    """Report on a manifest's captions: lengths, loops, cut, empty and double ones, absent class names."""
    from kilopix.stages.captions import run

    run(manifest, out)


@app.command(epilog=example("kilopix fetch ILSVRC/imagenet-1k imagenet --split train"))
def fetch(
    name: Annotated[str, typer.Argument(help="Data set of the Hugging Face hub, or a folder of one.")],
    out: Annotated[Path, typer.Argument(help="Folder of Parquet files to write.", callback=new_folder)],
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    config: Annotated[str | None, typer.Option(help="Configuration, if the data set has several.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to take; all if not given.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Stream the images of a hub data set into Parquet files, which `kilopix caption` reads."""
    from kilopix.stages.fetch import run

    run(name, out, split, config, limit, overwrite)


@app.command(epilog=example("kilopix augment captions.parquet augmented --size 64"))
def augment(
    manifest: ManifestPath,
    out: Annotated[
        Path, typer.Argument(help="Folder to write images and manifest.parquet into.", callback=new_folder)
    ],
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
    overwrite: Overwrite = False,
) -> None:
    """Make one CutMix or Crop image of every image, with a caption that says what is where."""
    from kilopix.stages.augment import run

    run(manifest, out, kind, setting, size, seed, workers, engine, part_rows, overwrite)


@app.command(epilog=example("kilopix encode captions.parquet shards --augmented augmented/manifest.parquet"))
def encode(
    manifest: ManifestPath,
    out: Annotated[Path, typer.Argument(help="Folder of shards to write.", callback=new_folder)],
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
    codec: Annotated[
        str | None,
        typer.Option(
            help="Shards, or a model such as `mini`, whose patch codec is used, so that a run on these can "
            "start from theirs."
        ),
    ] = None,
    workers: Workers = None,
    engine: EngineName = "local",
    part_rows: PartRows = 1024,
    overwrite: Overwrite = False,
) -> None:
    """Turn images and captions into shards of latents and text states."""
    from kilopix.recipe import load_recipe
    from kilopix.stages.encode import run

    loaded = load_recipe(recipe, overrides or [])
    how = device, online, workers, engine, part_rows, stored, codec
    run(manifest, out, loaded, augmented, *how, overwrite)


@app.command(epilog=example("kilopix verify shards"))
def verify(
    shards: Annotated[Path, typer.Argument(help="Folder of shards that `kilopix encode` wrote.")],
) -> None:
    """Check that shards are whole: hashes, counts, sizes, and that every number is finite."""
    from kilopix.stages.verify import run

    run(shards)


@app.command(epilog=example("kilopix inspect shards shards.html"))
def inspect(
    shards: Annotated[Path, typer.Argument(help="Folder of shards that `kilopix encode` wrote.")],
    out: Annotated[Path, typer.Argument(help="HTML file to write.", callback=file_ending_in(".html"))] = Path(
        "shards.html"
    ),
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="How many pictures.")] = 24,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Show pictures decoded from the latents of shards, beside the captions that they are trained with."""
    from kilopix.stages.inspect import run

    run(shards, out, num_images, seed, device)
