"""Pictures to DPG-Bench's score: a model answers questions about every picture, and the answers are scored.

In: a folder of pictures made by any model, and the official questions. Out: a folder with `answers.jsonl`
(what was answered about every picture), `results.jsonl` (the score of every picture) and `card.json`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kilopix.artefacts.locks import owns
from kilopix.data.checked import Checked, check_pictures
from kilopix.data.lines import LineParts, MakeLines, finished_lines, make_lines
from kilopix.data.sources import open_image
from kilopix.english import counted
from kilopix.evaluation.dpg import (
    Categories,
    DpgScores,
    Item,
    Level,
    category_observations,
    picture_observations,
    score_items,
)
from kilopix.evaluation.dpg_folder import Layout, Picture, crop_box, find_pictures
from kilopix.evaluation.dpg_questions import Asked, published_fails, read_questions, without_lost
from kilopix.evaluation.made import Made, read_made
from kilopix.evaluation.protocol import CARD, RESULTS, Card, Evaluator, LeftOut, Score, check_card, write_card
from kilopix.evaluation.statistics import interval, observe
from kilopix.features import versions
from kilopix.jobs import OPTION, PARTS, Folder, check_only, open_job
from kilopix.pretrained.vqa import VqaConfig, load_vqa
from kilopix.runtime import Line, pick_device, remove_folder, say, sha256_of_file, sha256_of_text, write_lines
from kilopix.types import UserError

ANSWERS, WORK = "answers.jsonl", ".parts"
FOLDER = Folder((ANSWERS, RESULTS, CARD), (f"{WORK}/*",), instead=OPTION)
NOT_STATED = "not stated"
PUBLISHED = "DPG-Bench as published"
FAILED = (
    "the published scorer looks there for a question that it has not read, and goes on without the prompt"
)
PER_PART = 8
# Lin et al. 2024, arXiv 2404.01291: the probability of yes to this about the whole prompt.
VQA_SCORE = 'Does this figure show "{prompt}"? Please answer yes or no.'


@owns("out")
def run(
    images: Path,
    questions: Path,
    out: Path,
    vqa: VqaConfig,
    layout: Layout = "grid",
    per_prompt: int | None = None,
    size: int | None = None,
    made_by: Path | None = None,
    allow_doubled: bool = False,
    devices: Sequence[str] = ("auto",),
    overwrite: bool = False,
) -> Card:
    """Score the pictures below `images`; the same command again goes on, or says that it is done."""
    check_only(out, FOLDER)
    every, published = read_questions(questions), read_questions(questions, "published")
    for oddity in every.oddities:
        say(f"  odd: {oddity}")
    names = [item.name for item in every.items]
    pictures = find_pictures(images, names, layout, per_prompt, str(questions))
    made = read_made(images, made_by)
    checked = _check(images, pictures, layout, size, allow_doubled)
    header, lines = _answers(images, questions, out, pictures, every.items, checked, vqa, devices, overwrite)
    answered: dict[str, list[Line]] = {}
    for line in lines:
        answered.setdefault(line["item"], []).append(line)
    mended = [_item(asked, answered[asked.name]) for asked in every.items]
    as_published, failed = _published(published.items, answered)
    left_out = [LeftOut(name=f"{PUBLISHED}, {name}", because=FAILED) for name in failed]
    scored = score_items(mended)
    scores = [*_scores("DPG-Bench", mended, scored, "every")]
    if as_published:
        old = score_items(as_published, "last")
        scores += _scores(PUBLISHED, as_published, old, "last")
    if unknown := sum(line["vqa_score"] is None for line in lines):
        because = f"the probability of yes is not known for {unknown} of {counted(len(lines), 'picture')}"
        left_out.append(LeftOut(name="VQAScore", because=because))
    else:
        scores.append(_vqa_score(lines))
    card = _card(made, questions, every.items, pictures, checked, header, layout, scores, left_out)
    check_card(out / CARD, card, overwrite)
    write_lines(out / RESULTS, _results(scored, answered), seal=False)
    write_card(out / CARD, card)
    for score in card.scores:
        ends = "" if score.low is None else f"{score.low:.2f} to {score.high:.2f}, "
        say(f"  {score.name}: {score.value:.2f} ({ends}{score.n})")
    for one in left_out:
        say(f"  left out: {one.name}, as {one.because}")
    say(f"{out / CARD}: {card.scores[0].name} {card.scores[0].value:.2f}, answers by {card.evaluator}.")
    return card


def _check(
    images: Path, pictures: list[Picture], layout: Layout, size: int | None, allow_doubled: bool
) -> Checked:
    """Check the files; `size` is the side of one picture."""
    files = list(dict.fromkeys(picture.file for picture in pictures))
    times = 2 if layout == "grid" else 1
    whole = (size * times, size * times) if size else None
    places = [place for place in dict.fromkeys(picture.place for picture in pictures) if place is not None]

    def cuts(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        return [crop_box(place, size) for place in places]

    checked = check_pictures(images, files, whole, allow_doubled, cuts)
    if layout == "grid" and (checked.size[0] % 2 or checked.size[1] % 2):
        width, height = checked.size
        raise UserError(f"{images}: its grids are of {width}x{height} pixels, which are no 2 x 2 pictures.")
    return checked


def _answers(
    images: Path,
    questions: Path,
    out: Path,
    pictures: list[Picture],
    items: Sequence[Asked],
    checked: Checked,
    vqa: VqaConfig,
    devices: Sequence[str],
    overwrite: bool,
) -> tuple[Line, list[Line]]:
    """What is answered about every picture, under a first line that says how; from disk where it is there."""
    job = {
        "stage": "dpg",
        "pictures": sha256_of_text(json.dumps([[p.item, p.file, p.place] for p in pictures])),
        "contents": sha256_of_text(json.dumps(checked.sha256)),
        "questions": sha256_of_file(questions),
        "vqa": vqa.model_dump(mode="json"),
    }
    path = out / ANSWERS
    if done := finished_lines(path, job, len(pictures), overwrite):
        say(f"{path}: already complete, {counted(len(done[1]), 'picture')}.")
        return done
    # A server is asked many things at once by one process.
    where = ["cpu"] if vqa.kind == "server" else [pick_device(device) for device in devices]
    open_job(out / WORK, PARTS, job, overwrite, shown=out)
    parts = LineParts(out / WORK, -(-len(pictures) // PER_PART))
    by_name = {item.name: item for item in items}
    make_lines(parts, Ask(images, pictures, by_name, vqa), "ask", len(pictures), where)
    lines = list(parts.lines())
    models = {line.pop("vqa_fingerprint") for line in lines}
    if len(models) > 1:
        raise UserError(f"{out / WORK}: was begun with other weights; delete it and run the command again.")
    header = {"job": job, "versions": versions(), "vqa_fingerprint": models.pop()}
    write_lines(path, [header, *lines])
    remove_folder(out / WORK)
    return header, lines


@dataclass(frozen=True)
class Ask:
    """Asks about pictures; a value, so that it can be sent to another process."""

    root: Path
    pictures: list[Picture]
    items: dict[str, Asked]
    vqa: VqaConfig

    def load(self, device: str) -> MakeLines:
        """Load the model; the function returned asks about the pictures of one part."""
        vqa = load_vqa(self.vqa, device)

        def make(part: int) -> list[Line]:
            lines = []
            for picture in self.pictures[part * PER_PART : (part + 1) * PER_PART]:
                image = open_image(self.root / picture.file)
                if picture.place is not None:
                    image = image.crop(crop_box(picture.place, image.size))
                asked = self.items[picture.item]
                whole = [] if self.vqa.kind == "mplug" else [VQA_SCORE.format(prompt=asked.prompt)]
                replies = vqa.ask(image, [*(question.text for question in asked.questions), *whole])
                answers = {
                    str(question.id): {"answer": reply.answer, "text": reply.text, "yes": reply.yes}
                    for question, reply in zip(asked.questions, replies, strict=False)
                }
                lines.append(
                    {
                        "item": picture.item,
                        "file": picture.file,
                        "place": picture.place,
                        "answers": answers,
                        "vqa_score": replies[-1].yes if whole else None,
                        "vqa_fingerprint": vqa.fingerprint,
                    }
                )
            return lines

        return make


def _item(asked: Asked, lines: Sequence[Line]) -> Item:
    answers = tuple(tuple(line["answers"][str(q.id)]["answer"] for q in asked.questions) for line in lines)
    return Item(asked.name, asked.questions, answers)


def _published(items: Sequence[Asked], answered: dict[str, list[Line]]) -> tuple[list[Item], list[str]]:
    """The prompts that the published scorer scores, and those that it leaves out of all scores."""
    kept, left_out = [], []
    for asked in items:
        item = _item(asked, answered[asked.name])
        if any(published_fails(asked, answers) for answers in item.answers):
            left_out.append(asked.name)
        else:  # dependencies on questions that it has not read are then never looked at
            kept.append(replace(item, questions=without_lost(asked).questions))
    return kept, left_out


def _results(scored: DpgScores, answered: dict[str, list[Line]]) -> list[Line]:
    """One line a picture: its score, in 0 to 1, with every row of the questions counted."""
    return [
        {"item": item.name, "file": line["file"], "place": line["place"], "score": score}
        for item in scored.items
        for line, score in zip(answered[item.name], item.pictures, strict=True)
    ]


def _scores(title: str, items: list[Item], scored: DpgScores, categories: Categories) -> Iterator[Score]:
    """The score of all prompts first, then the coarse and the fine categories."""
    whole = interval(picture_observations(scored))
    yield Score(
        name=title, value=scored.overall, low=whole.low, high=whole.high, n=len(scored.items), unit="%"
    )
    levels: tuple[Level, ...] = ("l1", "l2")
    for level in levels:
        for one in scored.l1 if level == "l1" else scored.l2:
            ends = interval(category_observations(items, one.name, level, categories), resamples=1000)
            name = f"{title}, {level.upper()} {one.name}"
            yield Score(name=name, value=one.value, low=ends.low, high=ends.high, n=one.answers, unit="%")


def _vqa_score(lines: Sequence[Line]) -> Score:
    values = [100 * line["vqa_score"] for line in lines]
    ends = interval(observe(values, [line["item"] for line in lines]))
    return Score(name="VQAScore", value=ends.value, low=ends.low, high=ends.high, n=len(values), unit="%")


def _card(
    made: Made,
    questions: Path,
    items: Sequence[Asked],
    pictures: list[Picture],
    checked: Checked,
    header: dict[str, Any],
    layout: Layout,
    scores: list[Score],
    left_out: list[LeftOut],
) -> Card:
    vqa = header["job"]["vqa"]
    evaluator = Evaluator(name="vqa", fingerprint=header["vqa_fingerprint"])
    width, height = (side // (2 if layout == "grid" else 1) for side in checked.size)
    return Card(
        benchmark="DPG-Bench",
        checkpoint=made.checkpoint,
        checkpoint_sha256=made.checkpoint_sha256,
        recipe_sha256=made.recipe_sha256,
        images_sha256=header["job"]["contents"],
        prompts_sha256=made.prompts_sha256 or sha256_of_text("\n".join(item.prompt for item in items)),
        prompt_style=made.prompt_style or NOT_STATED,
        seeds=made.seeds,
        sampler=made.sampler,
        steps=made.steps,
        guidance=made.guidance,
        resolution=min(width, height),
        images_per_prompt=len(pictures) // len(items),
        images=len(pictures),
        evaluator=f"DPG-Bench, {vqa['kind']} {vqa['name']}",
        evaluator_sha256=sha256_of_text(evaluator.fingerprint),
        evaluators=(evaluator,),
        reference_sha256=sha256_of_file(questions),
        settings={} if width == height else {"image_size": f"{width}x{height}"},
        kilopix_version=version("kilopix"),
        versions=header.get("versions", {}),  # of when the questions were asked; earlier files lack them
        left_out=tuple(left_out),
        scores=tuple(scores),
    )
