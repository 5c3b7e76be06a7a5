"""Weights to scores: six tasks as in GenEval over the embedded world, and a distance to held-out pictures.

A model of other images has never seen the objects of the six tasks, and gets the distance alone.

In: a run, and the manifest of held-out pictures with captions. Out: a folder with the pictures that were
judged, what was found in each, and `card.json`: every score with its interval and its protocol.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from kilopix.artefacts.locks import owns
from kilopix.config import merge, parse, parse_overrides
from kilopix.data.manifest import Row, read_manifest
from kilopix.data.sources import BrokenImage, open_image, open_picture, square
from kilopix.data.trained_on import TrainedOn
from kilopix.data.world.objects import HUES, OBJECTS, training_colors
from kilopix.diffusion.sampling import UNCHANGED, SamplingChanges, SamplingConfig
from kilopix.english import counted
from kilopix.evaluation.fidelity import kernel_distance_interval
from kilopix.evaluation.geneval import GenevalOptions, Prompt, prompts_to_text
from kilopix.evaluation.geneval_prompts import world_prompts
from kilopix.evaluation.placed import placed
from kilopix.evaluation.protocol import (
    CARD,
    JUDGED,
    Card,
    LeftOut,
    Score,
    changed_beside,
    read_card,
    write_card,
)
from kilopix.evaluation.statistics import interval
from kilopix.evaluation.tasks import Results, observations, score_images
from kilopix.features import versions
from kilopix.generator import Generator
from kilopix.jobs import OPTION, Folder, open_job
from kilopix.pretrained.judge import load_judge
from kilopix.pretrained.vision import load_efficientnet_lite0
from kilopix.progress import Progress, working
from kilopix.recipe import Recipe
from kilopix.runtime import (
    is_whole,
    name_some,
    report_left_out,
    say,
    sha256_of_file,
    sha256_of_text,
    write_lines,
)
from kilopix.types import Detection, UserError

FAILURES = "failures.jsonl"
FOLDER = Folder(("tasks/*", "fidelity/*", JUDGED, CARD), (FAILURES,), instead=OPTION)
FEWEST_HELD_OUT = 8
FEWEST_COLORED = 2
# The judge reports only what passes its own threshold, so none of GenEval's two is applied again.
JUDGE_OPTIONS = GenevalOptions(threshold=0.0, counting_threshold=0.0)


@dataclass(frozen=True)
class Job:
    """One picture to make: its file, prompt and seed."""

    file: Path
    prompt: str
    seed: int


@owns("out")
def run(
    model: Path | str,
    held_out: Path,
    out: Path,
    seed: int = 0,
    changes: SamplingChanges = UNCHANGED,
    overrides: Sequence[str] = (),
    device: str = "auto",
    overwrite: bool = False,
) -> Card:
    """Score a model; the same command again goes on, or says that it is done.

    `overrides` change the recipe's evaluation settings, as `evaluation.images_per_prompt=4`.
    """
    reference = read_manifest(held_out)
    generator = Generator.from_pretrained(model, device)
    recipe = _with_overrides(generator.recipe, overrides)
    sampling = changes.apply(recipe.sampling)
    prompts, why_none = _prompts_for(generator, recipe)
    rows = _spread(reference.rows, recipe.evaluation.fidelity_images)
    style = recipe.evaluation.prompt_style
    texts = [placed(prompt) if style == "placed" else prompt.text for prompt in prompts]
    asked_for = prompts_to_text(prompts) + ("\n".join(texts) + "\n" if style == "placed" else "")
    prompts_sha256 = sha256_of_text(asked_for + "\n".join(row.caption for row in rows))
    judge = load_judge(generator.device) if prompts else None
    features = load_efficientnet_lite0(generator.device)
    evaluators = [judge.fingerprint] if judge else []
    evaluator_sha256 = sha256_of_text("".join([*evaluators, features.fingerprint]))
    protocol = {
        "stage": "evaluate",
        "weights": generator.fingerprint,
        "prompts": prompts_sha256,
        "held_out": sha256_of_file(held_out),
        "evaluator": evaluator_sha256,
        "seed": seed,
        "sampling": sampling.model_dump(mode="json"),
        "images_per_prompt": recipe.evaluation.images_per_prompt,
    }
    open_job(out, FOLDER, protocol, overwrite)
    repeats = recipe.evaluation.images_per_prompt
    asked = [prompt for prompt in prompts for _ in range(repeats)]
    judged_jobs = _jobs(out / "tasks", [text for text in texts for _ in range(repeats)], seed)
    fidelity_jobs = _jobs(out / "fidelity", [row.caption for row in rows], seed + len(judged_jobs))
    if (out / CARD).exists():
        files = [job.file for job in judged_jobs + fidelity_jobs] + ([out / JUDGED] if judge else [])
        card = read_card(out / CARD)
        lost = [file.relative_to(out) for file in files if not is_whole(file)]
        lost += [Path(name) for name in changed_beside(out / CARD, card) if Path(name) not in lost]
        if not lost:
            say(f"{out / CARD}: already complete.")
            return card
        say(f"{out}: was complete, but these are missing or damaged, and made anew: {name_some(lost)}.")
    real, left_out = _read_real(reference.root, rows, recipe.data.image_size)
    report_left_out(left_out, out / FAILURES)
    _make_pictures(generator, judged_jobs + fidelity_jobs, sampling, recipe.evaluation.batch_size)
    task_scores: list[Score] = []
    if judge:
        with working("looking for objects in the pictures"):
            detections = judge.detect(_read([job.file for job in judged_jobs]))
        results = score_images(asked, detections, JUDGE_OPTIONS)
        _write_judged(out / JUDGED, judged_jobs, results, detections)
        task_scores = _task_scores(results)
    fake = _read([job.file for job in fidelity_jobs])
    with working("comparing with held-out pictures"):
        kernel = kernel_distance_interval(features.features(real), features.features(fake))
    kid = Score(
        name="KID", value=kernel.value, low=kernel.low, high=kernel.high, n=len(fake), unit="lower is better"
    )
    card = Card(
        checkpoint=generator.weights.name,
        checkpoint_sha256=generator.fingerprint,
        recipe_sha256=recipe.fingerprint(),
        prompts_sha256=prompts_sha256,
        prompt_style=style,
        seeds=tuple(job.seed for job in judged_jobs + fidelity_jobs),
        sampler=sampling.sampler,
        steps=sampling.steps,
        guidance=sampling.guidance.scale,
        resolution=min(fake.shape[-2:]),
        images_per_prompt=repeats if prompts else 1,
        images=len(judged_jobs) + len(fidelity_jobs),
        evaluator=f"judge of the embedded world, {features.name}" if judge else features.name,
        evaluator_sha256=evaluator_sha256,
        reference_sha256=sha256_of_file(held_out),
        settings={"real_images": len(real)},
        kilopix_version=version("kilopix"),
        versions=versions(),
        left_out=(
            *(LeftOut(name=f"held-out image {name}", because=why) for name, why in left_out),
            *([LeftOut(name="six tasks", because=why_none)] if why_none else []),
        ),
        scores=(*task_scores, kid),
    )
    write_card(out / CARD, card)
    first = card.scores[0]
    told = (lambda v: f"{v:.1%}") if task_scores else (lambda v: f"{v:.4f}")
    say(f"{out / CARD}: {first.name} {told(first.value)} ({told(first.low)} to {told(first.high)}).")
    return card


def _prompts_for(generator: Generator, recipe: Recipe) -> tuple[list[Prompt], str]:
    """The prompts of the six tasks; none for a model that cannot be asked, and why, which is told."""
    trained_on = generator.trained_on
    colored = [item for item in trained_on.objects if item.recolorable]
    if len(colored) >= FEWEST_COLORED:
        return task_prompts(recipe, trained_on), ""
    classes = list(trained_on.classes)
    own = f" ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})" if classes else ""
    why = f"the model was trained on other images{own} than the embedded world's, whose objects they ask for"
    if trained_on.world:
        why = (
            f"they need {FEWEST_COLORED} objects that come in all colours, and the model knows {len(colored)}"
        )
    say(
        f"six tasks: skipped, since {why}. KID to the held-out images follows; for FID and more use `kilopix "
        "fidelity`, and for open prompts `kilopix sample-benchmark geneval` with `kilopix geneval`."
    )
    return [], why


def _with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    values = parse_overrides(overrides)
    others = [key for key in values if key != "evaluation"]
    if others:
        raise UserError(f"{others[0]}: only settings of evaluation can be changed for a trained model.")
    return parse(Recipe, merge(recipe.model_dump(mode="json"), values), "overrides")


def task_prompts(recipe: Recipe, trained_on: TrainedOn | None = None) -> list[Prompt]:
    """The prompts of the six tasks over the objects that a model knows, or those that its recipe draws."""
    chosen = trained_on.objects if trained_on else OBJECTS[: recipe.world.classes]
    recolorable = [item.name for item in chosen if item.recolorable]
    seen = {(name, color) for name in recolorable for color in training_colors(name) if color}
    names = [item.name for item in chosen]
    return world_prompts(names, recolorable, HUES, seen, recipe.evaluation.prompts_per_task, recipe.seed)


def _spread(rows: list[Row], count: int) -> list[Row]:
    """At most `count` rows, evenly spread over all."""
    step = max(1.0, len(rows) / count)
    return [rows[int(i * step)] for i in range(min(count, len(rows)))]


def _jobs(folder: Path, prompts: list[str], first_seed: int) -> list[Job]:
    """Picture number i of a list has the seed `first_seed` + i."""
    return [Job(folder / f"{i:05d}.png", prompt, first_seed + i) for i, prompt in enumerate(prompts)]


def _make_pictures(generator: Generator, jobs: list[Job], sampling: SamplingConfig, size: int) -> None:
    missing = [job for job in jobs if not is_whole(job.file)]
    with Progress("sample for scores", len(jobs), len(jobs) - len(missing)) as shown:
        generator.write([(job.file, job.prompt, job.seed) for job in missing], sampling, size, shown)


def _read(files: list[Path]) -> torch.Tensor:
    try:
        arrays = [np.asarray(open_image(file)) for file in files]
    except BrokenImage as error:
        raise UserError(f"a picture made for the scores is damaged ({error}); delete it and go on.") from None
    return _stack(arrays)


def _read_real(root: Path, rows: list[Row], size: int) -> tuple[torch.Tensor, list[tuple[str, str]]]:
    arrays: list[np.ndarray] = []
    left_out: list[tuple[str, str]] = []
    for row in rows:
        try:
            arrays.append(np.asarray(square(open_picture(root, row.path, size), size)))
        except BrokenImage as error:
            left_out.append((row.path, str(error)))
    if len(arrays) < FEWEST_HELD_OUT:
        raise UserError(
            f"{root}: {counted(len(arrays), 'held-out picture')} can be read, and the distance "
            f"needs {FEWEST_HELD_OUT}."
        )
    return _stack(arrays), left_out


def _stack(arrays: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


@working("compute intervals")
def _task_scores(results: Results) -> list[Score]:
    """The mean of the tasks first, then every task, then the colour tasks by seen and unseen pairs."""
    whole = interval(observations(results))
    scores = [
        Score(
            name="mean of six tasks",
            value=whole.value,
            low=whole.low,
            high=whole.high,
            n=len(results.verdicts),
        )
    ]
    for task in (*results.tasks, *results.by_seen):
        ends = interval(observations(results, task.tag, task.seen))
        split = {None: "", True: ", seen pairs", False: ", unseen pairs"}[task.seen]
        name = task.tag.replace("_", " ") + split
        scores.append(Score(name=name, value=ends.value, low=ends.low, high=ends.high, n=task.images))
    return scores


def _write_judged(path: Path, jobs: list[Job], results: Results, detections: list[list[Detection]]) -> None:
    """One line a picture: prompt, verdict, and what was found."""
    lines = [
        {
            "file": f"{job.file.parent.name}/{job.file.name}",
            "prompt": job.prompt,
            "tag": prompt.tag,
            "seed": job.seed,
            "correct": verdict.correct,
            "reason": verdict.reason,
            "found": [asdict(detection) for detection in found],
        }
        for job, prompt, verdict, found in zip(
            jobs, results.prompts, results.verdicts, detections, strict=True
        )
    ]
    write_lines(path, lines, seal=False)
