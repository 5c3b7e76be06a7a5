"""The commands that score a model or any model's pictures, and compare scores."""

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
    file_ending_in,
    new_folder,
)
from kilopix.errors import UserError

app = typer.Typer()

Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        help="cpu, cuda, cuda:1, mps; once for each process, as --device cuda:0 --device cuda:1.",
        show_default="auto",
    ),
]
Images = Annotated[Path, typer.Argument(help="Folder of pictures, made by any model.")]
PerPrompt = Annotated[
    int | None, typer.Option(min=1, help="Pictures that each prompt must have.", show_default="as found")
]
Size = Annotated[
    int | None, typer.Option(min=1, help="Side that each picture must have.", show_default="as found")
]
MadeBy = Annotated[
    Path | None, typer.Option(help="JSON file on how the pictures were made; else IMAGES/made.json.")
]
AllowDoubled = Annotated[bool, typer.Option(help="Score pictures that are the same, byte for byte.")]
Server = Annotated[
    str | None,
    typer.Option(help="Address of an OpenAI-compatible server; its key is read from OPENAI_API_KEY."),
]
Out = typer.Option("--out", "-o", help="Folder to write into.", callback=new_folder)


@app.command("sample-benchmark", epilog=example("kilopix sample-benchmark geneval run pictures"))
def sample_benchmark(
    benchmark: Annotated[Literal["geneval", "dpg"], typer.Argument(help="Whose prompts.")],
    model: ModelName,
    out: Annotated[Path, typer.Argument(help="Folder to write the pictures into.", callback=new_folder)],
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="Pictures per prompt.")] = 4,
    lengthened: Annotated[
        Path | None, typer.Option(help="File that `kilopix lengthen` wrote; else the prompts as they are.")
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="DPG-Bench's dpg_bench.csv.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of a prompt's first picture.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale, 1 is off.")] = None,
    sampler: Annotated[
        Literal["euler", "ddim", "heun", "ddpm", "dpmpp_2m", "dpmpp_2m_sde"] | None,
        typer.Option(help="Sampler."),
    ] = None,
    preset: Preset = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Make a model's pictures for the prompts of GenEval or DPG-Bench."""
    from kilopix.diffusion.sampling import SamplingChanges
    from kilopix.stages.sample_benchmark import run

    changes = SamplingChanges(sampler, steps, guidance, preset=preset)
    run(benchmark, model, out, num_images, seed, changes, lengthened, questions, device, overwrite)


@app.command(epilog=example("kilopix geneval pictures --out geneval"))
def geneval(
    images: Images,
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Options of the rules, as threshold=0.3 max_overlap=1.0.", show_default=False),
    ] = None,
    out: Annotated[Path, Out] = Path("geneval"),
    detector: Annotated[
        str, typer.Option(help="Name or folder of a Mask2Former trained on COCO's instances.")
    ] = "facebook/mask2former-swin-small-coco-instance",
    clip: Annotated[
        str, typer.Option(help="Name or folder of the CLIP that tells colours.")
    ] = "openai/clip-vit-large-patch14",
    background: Annotated[
        Literal["grey", "original"], typer.Option(help="What surrounds an object whose colour is told.")
    ] = "grey",
    crop: Annotated[bool, typer.Option(help="Cut objects out to their boxes.")] = True,
    floor: Annotated[float, typer.Option(min=0, max=1, help="Detections are stored above this score.")] = 0.1,
    per_prompt: PerPrompt = None,
    size: Size = None,
    made_by: MadeBy = None,
    any_prompts: Annotated[
        bool, typer.Option("--any-prompts", help="Score another set than the official 553 prompts.")
    ] = False,
    allow_doubled: AllowDoubled = False,
    device: Devices = None,
    overwrite: Overwrite = False,
) -> None:
    """Score pictures in GenEval's layout: 00000/metadata.jsonl, 00000/samples/0000.png, ..."""
    from kilopix.pretrained.clip import ColorConfig
    from kilopix.pretrained.detector import DetectorConfig
    from kilopix.stages.geneval import Reading, run

    color = ColorConfig(name=clip, background=background, crop=crop)
    reading = Reading(detector=DetectorConfig(name=detector), color=color, floor=floor)
    asked = options or [], reading, per_prompt, size, made_by, any_prompts, allow_doubled
    run(images, out, *asked, device or ["auto"], overwrite)


@app.command(epilog=example("kilopix lengthen longer.jsonl --model Qwen/Qwen3-8B"))
def lengthen(
    out: Annotated[Path, typer.Argument(help="File to write (.jsonl).", callback=file_ending_in(".jsonl"))],
    model: Annotated[str, typer.Option(help="Name or folder of an instruct model, or its name at a server.")],
    server: Server = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File with one prompt a line.", show_default="GenEval's 553")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 200,
    device: Devices = None,
    overwrite: Overwrite = False,
) -> None:
    """Let a language model lengthen prompts, once and for all, for `sample-benchmark --lengthened`."""
    from kilopix.pretrained.instruct import LocalInstructConfig, ServedInstructConfig
    from kilopix.stages.lengthen import run

    local = LocalInstructConfig(name=model, max_tokens=max_tokens)
    served = ServedInstructConfig(name=model, url=server, max_tokens=max_tokens) if server else None
    run(out, served or local, prompts, device or ["auto"], overwrite)


@app.command("fetch-dpg", epilog=example("kilopix fetch-dpg dpg_bench.csv"))
def fetch_dpg(
    out: Annotated[Path, typer.Argument(help="File to write (.csv).", callback=file_ending_in(".csv"))],
    url: Annotated[str | None, typer.Option(help="Another address than the official one.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The SHA-256 that the file must have.")] = None,
) -> None:
    """Fetch DPG-Bench's questions and check, or record, their SHA-256."""
    from kilopix.stages.fetch_dpg import OFFICIAL, run

    run(out, url or OFFICIAL, sha256)


@app.command(
    epilog=example("kilopix dpg pictures --questions dpg_bench.csv --model llava-hf/llava-1.5-7b-hf")
)
def dpg(
    images: Images,
    questions: Annotated[Path, typer.Option(help="DPG-Bench's dpg_bench.csv; see `kilopix fetch-dpg`.")],
    out: Annotated[Path, Out] = Path("dpg"),
    model: Annotated[
        str | None, typer.Option(help="Name or folder of a vision-language model, or its name at a server.")
    ] = None,
    server: Server = None,
    mplug: Annotated[
        bool, typer.Option("--mplug", help="Ask mPLUG, as the published scores do; it needs ModelScope.")
    ] = False,
    layout: Annotated[
        Literal["grid", "single", "folders"],
        typer.Option(help="<item>.png of 2 x 2 pictures, <item>.png of one, or <item>/0000.png, ..."),
    ] = "grid",
    per_prompt: PerPrompt = None,
    size: Size = None,
    made_by: MadeBy = None,
    allow_doubled: AllowDoubled = False,
    device: Devices = None,
    overwrite: Overwrite = False,
) -> None:
    """Score pictures with DPG-Bench's questions, as published and with every row and picture counted."""
    from kilopix.pretrained.vqa import MplugConfig, ServedVqaConfig, VlmConfig
    from kilopix.stages.dpg import run

    if mplug == (model is not None):
        raise UserError("give --model, with --server if it is served, or --mplug.")
    if model is None:
        vqa = MplugConfig()
    else:
        vqa = ServedVqaConfig(name=model, url=server) if server else VlmConfig(name=model)
    asked = layout, per_prompt, size, made_by, allow_doubled
    run(images, questions, out, vqa, *asked, device or ["auto"], overwrite)


@app.command(epilog=example("kilopix fidelity pictures world/val --out fidelity"))
def fidelity(
    images: Annotated[
        Path,
        typer.Argument(
            help="Images to score: a folder made by any model, a manifest, Parquet or tar files, or an .npz "
            "batch (arr_0)."
        ),
    ],
    reference: Annotated[
        Path,
        typer.Argument(
            help="Real images: any of these, or an .npz file of their statistics (mu, sigma) for FID."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings, as weights.inception=inception.safetensors neighbours=5.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write into.", callback=new_folder)
    ] = Path("fidelity"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="inception, dinov2, clip, efficientnet-lite0, clipscore, aesthetic or pickscore; once "
            "for each. All that the weights allow if not given.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help='JSON lines {"file": ..., "prompt": ...}, if the folder has none.')
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where features of real pictures are kept; the user's cache if not given."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; all cores, or one on a GPU, if not given.")
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Score pictures by FID, KID, precision, recall, density, coverage, CLIPScore and preference."""
    from kilopix.stages.fidelity import run

    run(images, reference, out, overrides or [], only or [], prompts, cache, workers, device, overwrite)


@app.command(epilog=example("kilopix compare scores_a scores_b --out comparison"))
def compare(
    cards: Annotated[list[Path], typer.Argument(help="Folders of scores, or cards; the first leads.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write into.", callback=new_folder)
    ] = Path("comparison"),
    allow_unlike: Annotated[
        bool, typer.Option("--allow-unlike", help="One table in spite of unlike protocols, which it marks.")
    ] = False,
    published: Annotated[bool, typer.Option(help="Add published numbers of other models.")] = True,
) -> None:
    """Put scores of several models into one table, test their differences, add published numbers."""
    from kilopix.stages.compare import run

    run(cards, out, allow_unlike, published)


@app.command(epilog=example("kilopix convert inception pt_inception-2015-12-05-6726825d.pth"))
def convert(
    kind: Annotated[Literal["inception", "aesthetic"], typer.Argument(help="Whose weights.")],
    source: Annotated[Path, typer.Argument(metavar="FILE", help="The published .pth file.")],
    out: Annotated[
        Path | None,
        typer.Argument(
            help="File to write (.safetensors); where `kilopix fidelity` looks if not given.",
            callback=file_ending_in(".safetensors"),
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn published weights from a pickle into safetensors, without running code that is in them."""
    from kilopix.stages.convert import run

    run(kind, source, out, overwrite)


@app.command(epilog=example("kilopix evaluate run val.parquet --out scores"))
def evaluate(
    model: ModelName,
    held_out: Annotated[
        Path, typer.Argument(help="Manifest of held-out pictures (`kilopix caption world/val ...`).")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings of the evaluation, as evaluation.images_per_prompt=4.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write into.", callback=new_folder)
    ] = Path("scores"),
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: SamplerName = None,
    negative_prompt: NegativePrompt = None,
    preset: Preset = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Score a model by KID, one of the embedded world on six tasks too, with the protocol of every score."""
    from kilopix.diffusion.sampling import SamplingChanges
    from kilopix.stages.evaluate import run

    changes = SamplingChanges(sampler, steps, guidance, negative_prompt, preset)
    run(model, held_out, out, seed, changes, overrides or [], device, overwrite)
