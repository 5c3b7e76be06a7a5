"""All of a run on one page: pictures, curves, scores, sheets over time, augmentation, recipe and times.

In: a run folder, and the folders of its scores, samples, another model's samples, and augmented pictures,
each if there. Out: one HTML file that needs no other file and no network.
"""

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from kilopix.curves import score_curves, training_curve, validation_curves
from kilopix.data.cutmix import SETTINGS
from kilopix.data.manifest import Manifest, Row, read_manifest
from kilopix.data.sources import BrokenImage, open_picture
from kilopix.data.trained_on import TrainedOn
from kilopix.errors import UserError
from kilopix.evaluation.protocol import Card, read_card
from kilopix.runtime import atomic_path, read_json, read_lines, say

JUDGED = "judged.jsonl"
PER_TASK = 6
SHEETS, SHEET_WIDTH = 6, 720


@dataclass(frozen=True)
class Figure:
    """A picture on the page, as a data URI, with the text beneath it."""

    uri: str
    text: str
    right: bool | None = None


def run(
    run_folder: Path,
    out: Path,
    scores: Path | None = None,
    samples: Path | None = None,
    augmented: Path | None = None,
    times: Path | None = None,
    beside: Path | None = None,
) -> None:
    """Write the page; `beside` are samples of another model, shown under those of the same prompts."""
    header = read_json(run_folder / "recipe.json")
    log = read_log(run_folder / "log.jsonl")
    trained_on = TrainedOn.in_header(header, str(run_folder / "recipe.json"))
    page = _template().render(
        recipe=json.dumps(header["recipe"], indent=1),
        settings=_settings(header["recipe"], trained_on, log[-1]["images"] if log else 0),
        seen=trained_on.seen(log[-1]["images"]) if log else "",
        curve=training_curve(log),
        validation=validation_curves(read_log(run_folder / "validation.jsonl")),
        scored=score_curves(read_log(run_folder / "scores.jsonl")),
        sheets=_sheets(run_folder / "previews"),
        last=log[-1] if log else None,
        groups=_sample_groups(samples) if samples else {},
        others=_sample_groups(beside) if beside else {},
        other_name=_model_name(beside) if beside else "",
        card=read_card(scores / "card.json") if scores else None,
        bars=_bars(read_card(scores / "card.json")) if scores else [],
        tasks=_judged(scores) if scores and (scores / JUDGED).exists() else {},
        pastes=_pastes(augmented) if augmented else [],
        times=_times(times) if times else [],
    )
    with atomic_path(out) as temporary:
        temporary.write_text(page, "utf-8")
    say(f"{out}: written.")


def _template():
    from jinja2 import Environment, StrictUndefined

    text = resources.files("kilopix.stages").joinpath("report.html.j2").read_text("utf-8")
    environment = Environment(
        undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a missing log is empty, a broken line is a `UserError`."""
    return read_lines(path) if path.exists() else []


def _settings(recipe: dict[str, Any], trained_on: TrainedOn, seen: int) -> list[tuple[str, str]]:
    """The settings that a reader asks for first."""
    model, training, sampling = recipe["model"], recipe["training"], recipe["sampling"]
    return [
        ("Network", f"{model['kind']}, {model['depth']} blocks of {model['width']}, patch {model['patch']}"),
        ("Trained on", f"{trained_on.seen(seen)}, in batches of {training['batch_size']}"),
        ("Optimizer", f"{recipe['optimizer']['kind']}, {recipe['optimizer']['lr']:g}"),
        (
            "Captions",
            f"{trained_on.captioner or 'source not recorded'}, "
            f"dropped for {recipe['objective']['caption_dropout']:.0%}",
        ),
        (
            "Augmented pictures",
            "none"
            if trained_on.augmented == 0
            else f"{recipe['data']['augment']['kind']}, above t = {recipe['objective']['augment_above']} "
            f"with probability {recipe['objective']['augment_probability']}",
        ),
        (
            "Sampler",
            f"{sampling['sampler']}, {sampling['steps']} steps, guidance {sampling['guidance']['scale']:g}",
        ),
    ]


def _uri(image: Image.Image, side: int = 128) -> str:
    if max(image.size) < side:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
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
    for item in read_json(folder / "samples.json")["images"]:
        picture = Figure(_uri(_open(folder / item["file"]), 160), f"seed {item['seed']}")
        groups.setdefault(item["prompt"], []).append(picture)
    return groups


def _model_name(folder: Path) -> str:
    """What made the samples of a folder: the name of the weights, or of the run that they lie in."""
    weights = Path(read_json(folder / "samples.json")["weights"])
    return weights.parent.name if weights.stem == "model" else weights.stem


def _judged(folder: Path) -> dict[str, list[Figure]]:
    """Pictures of every task, some right and some wrong where there are both, with what was found in them."""
    lines = read_lines(folder / JUDGED)
    tasks: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        tasks.setdefault(line["tag"], []).append(line)
    return {
        tag.replace("_", " "): [
            Figure(_uri(_open(folder / "tasks" / Path(line["file"]).name)), _found(line), line["correct"])
            for line in _some_of_both(members)
        ]
        for tag, members in tasks.items()
    }


def _some_of_both(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    right = [line for line in lines if line["correct"]]
    wrong = [line for line in lines if not line["correct"]]
    shown = right[: max(PER_TASK // 2, PER_TASK - len(wrong))]
    return shown + wrong[: PER_TASK - len(shown)]


def _found(line: dict[str, Any]) -> str:
    names = [" ".join(filter(None, (d["color"], d["name"]))) for d in line["found"]]
    return f"{line['prompt']}. Seen: {', '.join(names) or 'nothing'}."


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
        figures.append(Figure(_uri(sheet), f"after {int(file.stem):,} pictures"))
    return figures


def _pastes(manifest_path: Path) -> list[Figure]:
    """One augmented picture of every setting, with its caption."""
    manifest = read_manifest(manifest_path)
    kinds = [row for row in manifest.rows if row.kind == "crop"][:4]
    chosen: Iterable[Row] = kinds or [
        row
        for setting in SETTINGS
        if (row := next((r for r in manifest.rows if r.setting == setting), None)) is not None
    ]
    return [
        Figure(_uri(_picture(manifest, row), 160), f"{row.setting or 'crop'}: {row.caption}")
        for row in chosen
    ]


def _bars(card: Card) -> list[dict[str, Any]]:
    """The scores, with the places of value and interval in percent of the bar's width where they have one."""
    rows = []
    for score in card.scores:
        share = not score.unit
        low = score.value if score.low is None else score.low
        high = score.value if score.high is None else score.high
        number = (lambda v: f"{v:.1%}") if share else (lambda v: f"{v:.4f}")
        rows.append(
            {
                "name": score.name,
                "value": number(score.value),
                "interval": f"{number(low)} to {number(high)}",
                "n": score.n,
                "bar": (100 * score.value, 100 * low, 100 * (high - low)) if share else None,
                "unit": score.unit,
            }
        )
    return rows


def _times(path: Path) -> list[tuple[str, str, float]]:
    seconds = {name: float(stage["seconds"]) for name, stage in read_json(path).items()}
    longest = max(seconds.values(), default=1.0)
    return [(name, _clock(value), 100 * value / longest) for name, value in seconds.items()]


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"
