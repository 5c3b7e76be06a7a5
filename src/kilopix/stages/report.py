"""All of a run on one page: pictures, curves, scores, sheets over time, augmentation, recipe and times.

In: a run folder, and the folders of its scores, samples, another model's samples, and augmented pictures,
each if there. Out: one HTML file that needs no other file and no network.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice, zip_longest
from pathlib import Path

from PIL import Image
from pydantic import ConfigDict, Field

from kilopix.config import Config, parse
from kilopix.curves import score_curves, training_curve, validation_curves
from kilopix.data.checked import changed_images, check_record, refuse_changed
from kilopix.data.cutmix import SETTINGS
from kilopix.data.manifest import Manifest, Row, read_manifest
from kilopix.data.sources import BrokenImage, open_picture
from kilopix.data.trained_on import TrainedOn
from kilopix.english import counted
from kilopix.errors import UserError
from kilopix.evaluation.protocol import JUDGED, card_of, lines_beside
from kilopix.jobs import check_report, write_report
from kilopix.model_files import SHIPPED, SHIPPED_MODEL, SHIPPED_TRAINING
from kilopix.models.dit import DiTConfig
from kilopix.plain_text import on_page
from kilopix.prompt_files import file_name
from kilopix.recipe import Recipe
from kilopix.runtime import read_json, say, sha256_of_file
from kilopix.scores_shown import read_scores
from kilopix.training.logs import read_log
from kilopix.weights_header import RunRecord

PER_TASK, PASTES = 6, 8
SMALL = 192
"""Pixels of a side below which an image is shown larger than it is."""
SHEETS, SHEET_WIDTH = 6, 720


class _Said(Config):
    """What the page takes from a file, of which further keys are let be."""

    model_config = ConfigDict(extra="ignore")


class _Sampled(_Said):
    file: str
    prompt: str
    seed: int


class _Samples(_Said):
    images: tuple[_Sampled, ...]
    weights: str = ""


class _Seen(_Said):
    name: str
    color: str | None = None


class _Line(_Said):
    file: str
    prompt: str
    tag: str
    correct: bool
    found: tuple[_Seen, ...]


class _Stage(_Said):
    seconds: float = Field(ge=0)


@dataclass(frozen=True)
class Figure:
    """An image on the page, as a data URI, with its text; a small one is enlarged in hard pixels."""

    uri: str
    text: str
    right: bool | None = None
    small: bool = False

    @staticmethod
    def of(image: Image.Image, text: str, right: bool | None = None) -> "Figure":
        """An image at its own size: the browser enlarges it, without a filter where it is small."""
        return Figure(_uri(image), text, right, max(image.size) < SMALL)


def run(
    run_folder: Path,
    out: Path,
    scores: Sequence[Path] = (),
    samples: Path | None = None,
    augmented: Path | None = None,
    times: Path | None = None,
    beside: Path | None = None,
) -> None:
    """Write the page; `beside` are samples of another model, shown under those of the same prompts."""
    if run_folder.is_dir() and not (run_folder / "recipe.json").is_file():
        raise UserError(f"{run_folder}: holds no recipe.json, so it is no run of `kilopix train`.")
    check_report(out, "report")
    header = read_json(run_folder / "recipe.json")
    log = read_log(run_folder / "log.jsonl")
    said = RunRecord.of(header, str(run_folder / "recipe.json"))
    trained_on = said.known_of_training()
    page = _template().render(
        recipe=json.dumps(header["recipe"], indent=1),
        settings=_settings(said.recipe, trained_on, log[-1]["images"] if log else 0),
        seen=trained_on.seen(log[-1]["images"]) if log else "",
        curve=training_curve(log),
        validation=validation_curves(read_log(run_folder / "validation.jsonl")),
        scored=score_curves(read_log(run_folder / "scores.jsonl")),
        sheets=_sheets(run_folder / "previews"),
        last=log[-1] if log else None,
        groups=_sample_groups(samples) if samples else {},
        others=_sample_groups(beside) if beside else {},
        other_name=_model_name(beside) if beside else "",
        other_told=_model_told(beside) if beside else "",
        scores=read_scores(scores),
        tasks=_judged(scores),
        pastes=_pastes(augmented) if augmented else [],
        times=_times(times) if times else [],
    )
    write_report(out, page, "report")
    say(f"{out}: written.")


def _template():
    from jinja2 import Environment, StrictUndefined

    text = resources.files("kilopix.stages").joinpath("report.html.j2").read_text("utf-8")
    environment = Environment(
        undefined=StrictUndefined, autoescape=True, finalize=on_page, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)


def _settings(recipe: Recipe, trained_on: TrainedOn, seen: int) -> list[tuple[str, str]]:
    """The settings that a reader asks for first."""
    model, sampling, data, objective = recipe.model, recipe.sampling, recipe.data, recipe.objective
    blocks, width = (
        (model.depth, model.width) if isinstance(model, DiTConfig) else (model.blocks, model.latent_width)
    )
    return [
        ("Network", f"{model.kind}, {blocks} blocks of {width}, patch {model.patch}"),
        ("Trained on", f"{trained_on.seen(seen)}, in batches of {recipe.training.batch_size}"),
        ("Optimizer", f"{recipe.optimizer.kind}, {recipe.optimizer.lr:g}"),
        (
            "Captions",
            f"{trained_on.captioner or 'source not recorded'}, dropped for {objective.caption_dropout:.0%}",
        ),
        (
            "Augmented pictures",
            "none"
            if trained_on.augmented == 0
            else f"{data.augment.kind}, above t = {objective.augment_above} "
            f"with probability {objective.augment_probability}",
        ),
        (
            "Sampler",
            f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance.scale:g}",
        ),
    ]


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (FileNotFoundError, OSError):
        raise UserError(f"{path}: missing or damaged; make the pictures again, then the report.") from None


def _picture(manifest: Manifest, row: Row) -> Image.Image:
    try:
        return open_picture(manifest.root, row.path)
    except BrokenImage as error:
        raise UserError(f"{manifest.root / row.path}: cannot be read ({error}); augment again.") from None


def _sample_groups(folder: Path) -> dict[str, list[Figure]]:
    """The sampled pictures, by prompt."""
    groups: dict[str, list[Figure]] = {}
    check_record(folder)
    refuse_changed(folder, changed_images(folder))
    path = folder / "samples.json"
    for item in parse(_Samples, read_json(path), str(path)).images:
        picture = Figure.of(_open(folder / file_name(item.file, str(path), folder)), f"seed {item.seed}")
        groups.setdefault(item.prompt, []).append(picture)
    return groups


def _model_name(folder: Path) -> str:
    """What made the samples of a folder: the name of the weights, or of the run that they lie in."""
    weights = _weights_of(folder)
    return weights.parent.name if weights.stem == "model" else weights.stem


def _weights_of(folder: Path) -> Path:
    """Where the weights lay that made the samples of a folder."""
    path = folder / "samples.json"
    return (folder / parse(_Samples, read_json(path), str(path)).weights).resolve()


def _model_told(folder: Path) -> str:
    """What made the samples of a folder, and how long it was trained, as far as that is known."""
    name, made = _model_name(folder), read_json(folder / "samples.json")
    if made["weights_sha256"] == sha256_of_file(SHIPPED / f"{SHIPPED_MODEL}.safetensors"):
        return f"{name}, the model that is installed with kilopix, which trained for {SHIPPED_TRAINING}"
    log = read_log(_weights_of(folder).parent / "log.jsonl")
    if not log:
        return name
    return f"{name}, which trained on {log[-1]['images']:,} images for {_clock(log[-1]['seconds'])}"


def _judged(folders: Sequence[Path]) -> dict[str, list[Figure]]:
    """Images of every task, some right and some wrong where there are both, with what was found in them."""
    judged = next((folder for folder in folders if (folder / JUDGED).is_file()), None)
    if judged is None:
        return {}
    where, tasks = str(judged / JUDGED), dict[str, list[_Line]]()
    for values in lines_beside(card_of(judged), JUDGED):
        line = parse(_Line, values, where)
        tasks.setdefault(line.tag, []).append(line)
    return {
        tag.replace("_", " "): [
            Figure.of(_open(judged / file_name(line.file, where, judged)), _found(line), line.correct)
            for line in _some_of_both(members)
        ]
        for tag, members in tasks.items()
    }


def _some_of_both(lines: "list[_Line]") -> "list[_Line]":
    right = [line for line in lines if line.correct]
    wrong = [line for line in lines if not line.correct]
    shown = right[: max(PER_TASK // 2, PER_TASK - len(wrong))]
    return shown + wrong[: PER_TASK - len(shown)]


def _found(line: "_Line") -> str:
    names = [" ".join(filter(None, (one.color, one.name))) for one in line.found]
    return f"{line.prompt}. Seen: {', '.join(names) or 'nothing'}."


def _sheets(folder: Path) -> list[Figure]:
    """Some of the sheets that training made, from the first to the last."""
    files = sorted(folder.glob("[0-9]*.png"))
    count = min(SHEETS, len(files))
    chosen = [files[round(i * (len(files) - 1) / max(count - 1, 1))] for i in range(count)]
    figures = []
    for file in chosen:
        sheet = _open(file)
        if sheet.width > SHEET_WIDTH:
            sheet = sheet.resize((SHEET_WIDTH, round(sheet.height * SHEET_WIDTH / sheet.width)))
        figures.append(Figure.of(sheet, f"after {counted(int(file.stem), 'picture')}"))
    return figures


def _pastes(manifest_path: Path) -> list[Figure]:
    """Some augmented images with their captions: the first of every setting, then the second, until full."""
    manifest = read_manifest(manifest_path)
    of_setting = [
        [row for row in manifest.rows if row.kind == "crop"],
        *([row for row in manifest.rows if row.setting == setting] for setting in SETTINGS),
    ]
    turns = (row for turn in zip_longest(*of_setting) for row in turn if row is not None)
    return [
        Figure.of(_picture(manifest, row), f"{row.setting or 'crop'}: {row.caption}")
        for row in islice(turns, PASTES)
    ]


def _times(path: Path) -> list[tuple[str, str, float]]:
    seconds = {name: parse(_Stage, said, f"{path}: {name}").seconds for name, said in read_json(path).items()}
    longest = max(seconds.values(), default=1.0)
    return [(name, _clock(value), 100 * value / longest) for name, value in seconds.items()]


def _clock(seconds: float) -> str:
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"
