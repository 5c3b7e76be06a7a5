"""DPG-Bench's prompts and questions: the official `dpg_bench.csv`, read in two ways.

In: the CSV file, one row a question. Out: prompts with their questions. `every` reads every row. `published`
reads as the published scorer does, whose habits change scores a little: see `read_questions`.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kilopix.evaluation.dpg import Question
from kilopix.types import UserError

Rows = Literal["every", "published"]
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


@dataclass(frozen=True)
class Asked:
    """A prompt with its questions, in order."""

    name: str
    prompt: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class QuestionFile:
    """What a file asks, and what is odd in it, one line each."""

    items: tuple[Asked, ...]
    oddities: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    name: str
    prompt: str
    question: Question


def read_questions(path: Path, rows: Rows = "every") -> QuestionFile:
    """Read the questions of all prompts; raises `UserError` that names the row at fault.

    The published scorer takes the first question of the file for a second header and leaves it out, begins a
    prompt anew where its rows are not in one block, and of two questions with one number keeps the later in
    the place of the earlier. It takes the category from the column `tuple`, up to its bracket; so does this,
    in both ways of reading.

    With `every` all rows count, wherever they stand. Two questions of one number, and a dependency on a
    question that does not exist, are then reported as oddities: the later question takes the place of the
    earlier, and the dependency is dropped.
    """
    odd: list[str] = []
    items: dict[str, dict[int, _Row]] = {}
    previous = ""
    for number, row in _rows(path):
        if rows == "published" and number == 2:
            continue
        if rows == "published" and row.name != previous:
            items.pop(row.name, None)
        previous = row.name
        asked = items.setdefault(row.name, {})
        if row.question.id in asked:
            odd.append(
                f"{path}, row {number}: {row.name} has two questions {row.question.id}; the later counts."
            )
        asked[row.question.id] = row
    if not items:
        raise UserError(f"{path}: holds no question.")
    found = []
    for name, asked in items.items():
        prompt = next((row.prompt for row in asked.values() if row.prompt), "")
        if not prompt:
            raise UserError(f"{path}: {name} has no prompt in the column text.")
        whole = Asked(name, prompt, tuple(row.question for row in asked.values()))
        found.append(whole if rows == "published" else without_lost(whole))
        for before, after in zip(whole.questions, found[-1].questions, strict=True):
            lost = sorted(set(before.depends_on) - set(after.depends_on))
            odd += [f"{name}: question {before.id} depends on {one}, which does not exist." for one in lost]
    return QuestionFile(tuple(found), tuple(odd) if rows == "every" else ())


def without_lost(asked: Asked) -> Asked:
    """The prompt without dependencies on questions that do not exist."""
    ids = {0, *(question.id for question in asked.questions)}
    questions = (
        replace(question, depends_on=tuple(parent for parent in question.depends_on if parent in ids))
        for question in asked.questions
    )
    return replace(asked, questions=tuple(questions))


def published_fails(asked: Asked, answers: tuple[str, ...]) -> bool:
    """Whether the published scorer stops at this picture, whose prompt it then leaves out of all scores.

    It does where it looks for the answer to a question that does not exist; it looks at a question's
    dependencies in their order, until one is a no.
    """
    ids = [question.id for question in asked.questions]
    yes = {i: answer == "yes" for i, answer in zip(ids, answers, strict=True)}
    for question in asked.questions:
        for parent in question.depends_on:
            if parent == 0:
                continue
            if parent not in yes:
                return True
            if not yes[parent]:
                yes[question.id] = False
                break
    return False


def _rows(path: Path) -> Iterator[tuple[int, _Row]]:
    """The rows with their numbers, of which the header is 1."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
            if missing:
                raise UserError(f"{path}: has no column {missing[0]!r}; give the official dpg_bench.csv.")
            for number, values in enumerate(reader, start=2):
                if None in values:
                    raise UserError(
                        f"{path}, row {number}: has more fields than the header; a text that holds a comma "
                        "must be in quotes."
                    )
                yield number, _row(values, f"{path}, row {number}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `kilopix fetch-dpg` brings it.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}).") from None


def _row(values: dict[str, str | None], where: str) -> _Row:
    texts = {column: (values[column] or "").strip() for column in COLUMNS}
    for column, text in texts.items():
        if not text and column != "text":
            raise UserError(f"{where}: {column} is empty.")
    try:
        number = int(texts["proposition_id"])
        parents = tuple(int(part) for part in texts["dependency"].split(","))
    except ValueError:
        raise UserError(f"{where}: proposition_id and dependency must be whole numbers.") from None
    category = texts["tuple"].split("(")[0].strip()
    question = Question(number, category, parents, texts["question_natural_language"])
    return _Row(texts["item_id"], texts["text"], question)
