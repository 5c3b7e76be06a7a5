"""DPG-Bench's scores: answers to the questions about a picture become scores of pictures and of categories.

In: the questions of each prompt and, for each of its pictures, the answers of a question-answering network.
Out: `DpgScores`. The rules are those of DPG-Bench (Hu et al. 2024, ELLA, arXiv 2403.05135, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kilopix.evaluation.statistics import Observations, observe
from kilopix.types import UserError

Categories = Literal["every", "last"]
Level = Literal["l1", "l2"]


@dataclass(frozen=True)
class Question:
    """A yes-or-no question; it counts only where those that it depends on are answered yes (0: none)."""

    id: int
    category: str
    depends_on: tuple[int, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Item:
    """A prompt with its questions; `answers` holds for every picture one answer a question, in order."""

    name: str
    questions: tuple[Question, ...]
    answers: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ItemScore:
    """The score of each picture of a prompt, in 0 to 1, and their mean."""

    name: str
    pictures: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class CategoryScore:
    """The percentage of yes among the questions of a category."""

    name: str
    value: float
    answers: int


@dataclass(frozen=True)
class DpgScores:
    """The mean over prompts in percent, and the categories, both fine (`l2`) and coarse (`l1`), by name."""

    overall: float
    l1: tuple[CategoryScore, ...]
    l2: tuple[CategoryScore, ...]
    items: tuple[ItemScore, ...]


def score_items(items: Sequence[Item], categories: Categories = "every") -> DpgScores:
    """Score the answers to all prompts.

    The published scorer counts in its categories the last picture of every prompt only: `last` does so,
    `every` counts all. Either way categories count answers before dependencies are applied. Raises
    `UserError` if there is no item, or if an item's questions and answers do not fit each other.
    """
    if not items:
        raise UserError("DPG-Bench: there is no prompt to score.")
    scored = []
    fine: dict[str, list[bool]] = {}
    for item in items:
        _check(item)
        pictures = tuple(_picture_score(item.questions, answers) for answers in item.answers)
        scored.append(ItemScore(item.name, pictures, sum(pictures) / len(pictures)))
        for answers in item.answers if categories == "every" else item.answers[-1:]:
            for question, answer in zip(item.questions, answers, strict=True):
                fine.setdefault(question.category, []).append(_is_yes(answer))
    coarse: dict[str, list[bool]] = {}
    for name, values in fine.items():
        coarse.setdefault(_coarse(name), []).extend(values)
    overall = 100 * sum(item.score for item in scored) / len(scored)
    return DpgScores(overall, _means(coarse), _means(fine), tuple(scored))


def _picture_score(questions: Sequence[Question], answers: Sequence[str]) -> float:
    """The share of questions answered yes, once those that depend on a no are set to no, in their order."""
    yes = {question.id: _is_yes(answer) for question, answer in zip(questions, answers, strict=True)}
    for question in questions:
        if not all(yes[parent] for parent in question.depends_on if parent != 0):
            yes[question.id] = False
    return sum(yes.values()) / len(yes)


def _is_yes(answer: str) -> bool:
    return answer == "yes"


def _means(values: dict[str, list[bool]]) -> tuple[CategoryScore, ...]:
    return tuple(
        CategoryScore(name, 100 * sum(answers) / len(answers), len(answers))
        for name, answers in sorted(values.items())
    )


def _check(item: Item) -> None:
    ids = [question.id for question in item.questions]
    if not ids or not item.answers:
        raise UserError(f"DPG-Bench: {item.name} has no questions or no answered picture.")
    if len(set(ids)) < len(ids):
        raise UserError(f"DPG-Bench: {item.name} has two questions of one id.")
    for question in item.questions:
        for parent in question.depends_on:
            if parent not in (0, *ids):
                where = f"{item.name}, question {question.id}"
                raise UserError(f"DPG-Bench: {where} depends on {parent}, which does not exist.")
    for number, answers in enumerate(item.answers):
        if len(answers) != len(ids):
            sizes = f"{len(answers)} answers to {len(ids)} questions"
            raise UserError(f"DPG-Bench: {item.name}, picture {number} has {sizes}.")


def picture_observations(scores: DpgScores) -> Observations:
    """The scores of all pictures in percent, ready for an interval over prompts."""
    values = [100 * value for item in scores.items for value in item.pictures]
    return observe(values, [item.name for item in scores.items for _ in item.pictures], most=100.0)


def category_observations(
    items: Sequence[Item], name: str, level: Level, categories: Categories = "every"
) -> Observations:
    """The answers of one category as 100 and 0, ready for an interval over prompts.

    Raises `UserError` if no question is of it.
    """
    values: list[float] = []
    prompts: list[str] = []
    for item in items:
        for answers in item.answers if categories == "every" else item.answers[-1:]:
            for question, answer in zip(item.questions, answers, strict=True):
                if name == (_coarse(question.category) if level == "l1" else question.category):
                    values.append(100.0 * _is_yes(answer))
                    prompts.append(item.name)
    return observe(values, prompts, most=100.0)


def _coarse(category: str) -> str:
    return category.split("-")[0].strip()
