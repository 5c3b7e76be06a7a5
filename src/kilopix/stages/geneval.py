"""Pictures to GenEval's score: objects are detected, their colours named, and the rules applied.

In: a folder of pictures in GenEval's layout, made by any model. Out: a folder with `detections.jsonl` (what
was found in every picture), `results.jsonl` (a verdict a picture, in the official form) and `card.json`.
Detections do not depend on the rules' options, so other options need no detector.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from kilopix.artefacts.locks import owns
from kilopix.config import Config, parse, parse_overrides
from kilopix.data.checked import Checked, check_pictures
from kilopix.data.lines import LineParts, MakeLines, finished_lines, make_lines
from kilopix.data.sources import open_image
from kilopix.english import counted
from kilopix.evaluation.geneval import COLORS, GenevalOptions, Prompt, keep_detections, prompts_to_text
from kilopix.evaluation.geneval_folder import Asked, check_official, read_folder
from kilopix.evaluation.geneval_prompts import OBJECTS
from kilopix.evaluation.made import PLAIN, Made, read_made
from kilopix.evaluation.protocol import CARD, RESULTS, Card, Evaluator, Score, check_card, write_card
from kilopix.evaluation.statistics import interval, observe, wilson_interval
from kilopix.evaluation.tasks import Results, observations, score_images
from kilopix.features import versions
from kilopix.jobs import OPTION, PARTS, Folder, check_only, open_job
from kilopix.pretrained.clip import ColorConfig, cut_out, load_color_classifier
from kilopix.pretrained.detector import DetectorConfig, Found, load_detector
from kilopix.runtime import Line, pick_device, remove_folder, say, sha256_of_text, write_lines
from kilopix.types import Detection, UserError

DETECTIONS, WORK = "detections.jsonl", ".parts"
FOLDER = Folder((DETECTIONS, RESULTS, CARD), (f"{WORK}/*",), instead=OPTION)
PER_PART = 32
BATCH = 8
LENGTHENED = "lengthened"


class Reading(Config):
    """What sees the pictures, and from which score on its detections are stored."""

    detector: DetectorConfig = DetectorConfig()
    color: ColorConfig = ColorConfig()
    floor: float = Field(default=0.1, ge=0, le=1)


READING = Reading()


@owns("out")
def run(
    images: Path,
    out: Path,
    options: Sequence[str] = (),
    reading: Reading = READING,
    per_prompt: int | None = None,
    size: int | None = None,
    made_by: Path | None = None,
    any_prompts: bool = False,
    allow_doubled: bool = False,
    devices: Sequence[str] = ("auto",),
    overwrite: bool = False,
) -> Card:
    """Score the pictures below `images`; the same command again goes on, or applies other options."""
    check_only(out, FOLDER)
    rules = parse(GenevalOptions, parse_overrides(options), "options")
    if min(rules.threshold, rules.counting_threshold) < reading.floor:
        raise UserError(
            f"threshold and counting_threshold must be at least {reading.floor}, from which on detections "
            "are stored; lower that with --floor, and choose another --out."
        )
    asked = read_folder(images, per_prompt)
    made = _with_style(images, read_made(images, made_by), asked, any_prompts)
    files = [file for one in asked for file in one.files]
    prompts = [one.prompt for one in asked for _ in one.files]
    checked = check_pictures(images, files, (size, size) if size else None, allow_doubled)
    job, found = _detections(images, out, files, prompts, checked, reading, devices, overwrite)
    results = score_images(prompts, found, rules)
    card = _card(made, asked, checked, results, rules, job)
    check_card(out / CARD, card, overwrite)
    write_lines(out / RESULTS, _official_lines(files, results, found, rules), seal=False)
    write_card(out / CARD, card)
    overall = card.scores[0]
    for score in card.scores:
        ends = "" if score.low is None else f"{score.low:.4f} to {score.high:.4f}, "
        say(f"  {score.name}: {score.value:.4f} ({ends}{score.n})")
    say(f"{out / CARD}: {overall.name} {overall.value:.4f}, prompts {card.prompt_style}.")
    return card


def _with_style(images: Path, made: Made, asked: list[Asked], any_prompts: bool) -> Made:
    """The facts with the style and hash of the prompts, which must not contradict the folder's prompts."""
    prompts = [one.prompt for one in asked]
    texts_sha256 = sha256_of_text(prompts_to_text(prompts))
    if any_prompts:
        return made.model_copy(
            update={
                "prompt_style": made.prompt_style or "own prompts",
                "prompts_sha256": made.prompts_sha256 or texts_sha256,
            }
        )
    longer = check_official(images, prompts)
    if longer and made.plain:
        raise UserError(f"{images}: its prompts are lengthened, though it is said that they are plain.")
    # Lengthened prompts that the folder does not hold are known by what is said of them alone.
    style = made.prompt_style or (LENGTHENED if longer else PLAIN)
    return made.model_copy(
        update={"prompt_style": style, "prompts_sha256": made.prompts_sha256 or texts_sha256}
    )


def _detections(
    images: Path,
    out: Path,
    files: list[str],
    prompts: list[Prompt],
    checked: Checked,
    reading: Reading,
    devices: Sequence[str],
    overwrite: bool,
) -> tuple[dict[str, Any], list[list[Detection]]]:
    """What is found in every picture, and the job that says how; read from disk where it is there."""
    job = {
        "stage": "geneval",
        "pictures": sha256_of_text(json.dumps([files, checked.sha256])),
        "prompts": sha256_of_text(prompts_to_text(prompts)),
        "detector": reading.detector.model_dump(mode="json"),
        "color": reading.color.model_dump(mode="json"),
        "floor": reading.floor,
    }
    path = out / DETECTIONS
    if done := finished_lines(path, job, len(files), overwrite):
        header, lines = done
        say(f"{path}: already complete, {counted(len(lines), 'picture')}; the rules are applied to it.")
        return header, [_read_objects(line) for line in lines]
    work = Look(images, files, prompts, checked.sha256, reading)
    devices = [pick_device(device) for device in devices]
    open_job(out / WORK, PARTS, job, overwrite, shown=out)
    parts = LineParts(out / WORK, -(-len(files) // PER_PART))
    make_lines(parts, work, "detect", len(files), devices)
    header, lines = _one_header(out / WORK, list(parts.lines()))
    header = {"job": job, "versions": versions(), **header}
    write_lines(path, [header, *lines])
    remove_folder(out / WORK)
    return header, [_read_objects(line) for line in lines]


def _one_header(folder: Path, lines: list[Line]) -> tuple[Line, list[Line]]:
    """Every part begins with the weights that made it, which must be the same."""
    headers = [line for line in lines if "detector_fingerprint" in line]
    if any(header != headers[0] for header in headers):
        raise UserError(f"{folder}: was begun with other weights; delete it and run the command again.")
    return headers[0], [line for line in lines if "detector_fingerprint" not in line]


@dataclass(frozen=True)
class Look:
    """Detects objects and names their colours; a value, so that it can be sent to another process."""

    root: Path
    files: list[str]
    prompts: list[Prompt]
    sha256: tuple[str, ...]
    reading: Reading

    def load(self, device: str) -> MakeLines:
        """Load detector and classifier; the function returned looks at the pictures of one part."""
        detector = load_detector(self.reading.detector, OBJECTS, device)
        classifier = load_color_classifier(self.reading.color, COLORS, device)
        header = {"detector_fingerprint": detector.fingerprint, "color_fingerprint": classifier.fingerprint}

        def colored(number: int, image: Any, found: list[Found]) -> Line:
            asked = {clause.name for clause in self.prompts[number].include if clause.color is not None}
            colors: dict[int, str] = {}
            for noun in sorted(asked):
                of_noun = [i for i, one in enumerate(found) if one.detection.name == noun]
                settings = self.reading.color.background, self.reading.color.crop
                cut = [cut_out(image, found[i].mask, found[i].detection.box, *settings) for i in of_noun]
                colors.update(zip(of_noun, classifier.colors(cut, noun), strict=True))
            objects = [asdict(one.detection) | {"color": colors.get(i)} for i, one in enumerate(found)]
            return {"file": self.files[number], "sha256": self.sha256[number], "objects": objects}

        def make(part: int) -> list[Line]:
            lines: list[Line] = [header]
            numbers = range(part * PER_PART, min((part + 1) * PER_PART, len(self.files)))
            for start in range(0, len(numbers), BATCH):
                batch = numbers[start : start + BATCH]
                opened = [open_image(self.root / self.files[i]) for i in batch]
                pixels = torch.from_numpy(np.stack([np.asarray(image) for image in opened]))
                found = detector.detect(pixels.permute(0, 3, 1, 2).contiguous(), self.reading.floor)
                lines += [colored(i, image, one) for i, image, one in zip(batch, opened, found, strict=True)]
            return lines

        return make


def _read_objects(line: Line) -> list[Detection]:
    return [Detection(o["name"], tuple(o["box"]), o["score"], o["color"]) for o in line["objects"]]


def _official_lines(
    files: list[str], results: Results, found: list[list[Detection]], rules: GenevalOptions
) -> list[Line]:
    """One line a picture, with the keys and nesting that the official summary script reads."""
    lines = []
    for file, prompt, verdict, one in zip(files, results.prompts, results.verdicts, found, strict=True):
        kept = keep_detections(one, prompt.tag, rules)
        details = {name: [[*d.box, d.score] for d in kept[name]] for name in OBJECTS if name in kept}
        lines.append(
            {
                "filename": file,
                "tag": prompt.tag,
                "prompt": prompt.text,
                "correct": verdict.correct,
                "reason": "\n".join(verdict.reason),
                "metadata": prompts_to_text([prompt]).rstrip("\n"),
                "details": json.dumps(details),
            }
        )
    return lines


def _card(
    made: Made,
    asked: list[Asked],
    checked: Checked,
    results: Results,
    rules: GenevalOptions,
    job: dict[str, Any],
) -> Card:
    assert made.prompt_style is not None
    detector, color = job["job"]["detector"]["name"], job["job"]["color"]["name"]
    evaluators = (
        Evaluator(name="detector", fingerprint=job["detector_fingerprint"]),
        Evaluator(name="colours", fingerprint=job["color_fingerprint"]),
    )
    cut = {key: job["job"]["color"][key] for key in ("background", "crop")}
    settings = {**rules.model_dump(), **cut, "floor": job["job"]["floor"]}
    width, height = checked.size
    if width != height:
        settings["image_size"] = f"{width}x{height}"
    weights = [one.fingerprint for one in evaluators]
    return Card(
        benchmark="GenEval",
        checkpoint=made.checkpoint,
        checkpoint_sha256=made.checkpoint_sha256,
        recipe_sha256=made.recipe_sha256,
        images_sha256=job["job"]["pictures"],
        prompts_sha256=made.prompts_sha256,
        prompt_style=made.prompt_style,
        seeds=made.seeds,
        sampler=made.sampler,
        steps=made.steps,
        guidance=made.guidance,
        resolution=min(checked.size),
        images_per_prompt=len(asked[0].files),
        images=len(results.verdicts),
        reference_sha256=sha256_of_text(prompts_to_text([one.prompt for one in asked])),
        evaluator=f"GenEval, {detector}, {color}",
        evaluator_sha256=sha256_of_text(json.dumps([weights, settings], sort_keys=True)),
        evaluators=evaluators,
        settings=settings,
        kilopix_version=version("kilopix"),
        versions=job.get("versions", {}),  # of when the pictures were looked at; earlier files lack them
        scores=tuple(_scores(results)),
    )


def _scores(results: Results) -> list[Score]:
    """The mean of the tasks first, then every task."""
    names: list[tuple[str, str | None]] = [("GenEval, mean of tasks", None)]
    names += [(f"GenEval, {task.tag}", task.tag) for task in results.tasks]
    scores = []
    for name, tag in names:
        seen = observations(results, tag)
        ends = interval(seen)
        scores.append(Score(name=name, value=ends.value, low=ends.low, high=ends.high, n=len(seen.values)))
    right = [float(verdict.correct) for verdict in results.verdicts]
    images = interval(observe(right, results.prompts, most=1.0))
    count = len(set(results.prompts))
    prompts = wilson_interval(results.correct_prompts, count)
    for what, ends, n in (("pictures", images, len(right)), ("prompts", prompts, count)):
        scores.append(
            Score(name=f"GenEval, correct {what}", value=ends.value, low=ends.low, high=ends.high, n=n)
        )
    return scores
