"""GenEval over a set of pictures: every picture is judged, and the verdicts are averaged by task.

In: the prompt and the detections of every picture. Out: `Results`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kilopix.evaluation.geneval import OFFICIAL, GenevalOptions, Prompt, Verdict, judge
from kilopix.evaluation.statistics import Observations, observe
from kilopix.types import Detection, UserError


@dataclass(frozen=True)
class TaskScore:
    """The share of right pictures of one task; `seen` is None unless it covers one side of that split."""

    tag: str
    value: float
    images: int
    prompts: int
    seen: bool | None = None


@dataclass(frozen=True)
class Results:
    """The prompt and verdict of every picture, and GenEval's summary of them.

    `overall` is the mean of the tasks' means; a prompt is correct if any of its pictures is. `by_seen` splits
    the color tasks by whether training has shown all pairs of object and color of the prompt.
    """

    prompts: tuple[Prompt, ...]
    verdicts: tuple[Verdict, ...]
    tasks: tuple[TaskScore, ...]
    by_seen: tuple[TaskScore, ...]
    overall: float
    correct_images: float
    correct_prompts: float


def score_images(
    prompts: Sequence[Prompt], detections: Sequence[Sequence[Detection]], options: GenevalOptions = OFFICIAL
) -> Results:
    """Judge pictures; `prompts[i]` and `detections[i]` belong to picture i, and prompts may repeat.

    Raises `UserError` if the lengths differ or there is no picture.
    """
    if len(prompts) != len(detections) or not prompts:
        sizes = f"{len(prompts)} prompts and {len(detections)} lists of detections"
        raise UserError(f"give one prompt and one list of detections for each picture (got {sizes}).")
    verdicts = tuple(judge(prompt, found, options) for prompt, found in zip(prompts, detections, strict=True))
    tags = list(dict.fromkeys(prompt.tag for prompt in prompts))
    tasks = tuple(_score(prompts, verdicts, tag) for tag in tags)
    splits = dict.fromkeys((p.tag, p.seen) for p in prompts if p.seen is not None)
    right = {prompt for prompt, verdict in zip(prompts, verdicts, strict=True) if verdict.correct}
    return Results(
        prompts=tuple(prompts),
        verdicts=verdicts,
        tasks=tasks,
        by_seen=tuple(_score(prompts, verdicts, tag, seen) for tag, seen in sorted(splits)),
        overall=sum(task.value for task in tasks) / len(tasks),
        correct_images=sum(verdict.correct for verdict in verdicts) / len(verdicts),
        correct_prompts=len(right) / len(set(prompts)),
    )


def observations(results: Results, tag: str | None = None, seen: bool | None = None) -> Observations:
    """The verdicts as 1 and 0, ready for an interval: all, or one task's, or one side of the seen split.

    Raises `UserError` if no picture is left.
    """
    chosen = [
        (prompt, verdict)
        for prompt, verdict in zip(results.prompts, results.verdicts, strict=True)
        if tag in (None, prompt.tag) and seen in (None, prompt.seen)
    ]
    return observe(
        [float(verdict.correct) for _, verdict in chosen],
        [prompt for prompt, _ in chosen],
        [prompt.tag for prompt, _ in chosen],
        most=1.0,
    )


def _score(
    prompts: Sequence[Prompt], verdicts: Sequence[Verdict], tag: str, seen: bool | None = None
) -> TaskScore:
    chosen = [
        (prompt, verdict.correct)
        for prompt, verdict in zip(prompts, verdicts, strict=True)
        if prompt.tag == tag and seen in (None, prompt.seen)
    ]
    value = sum(correct for _, correct in chosen) / len(chosen)
    return TaskScore(tag, value, len(chosen), len({prompt for prompt, _ in chosen}), seen)
