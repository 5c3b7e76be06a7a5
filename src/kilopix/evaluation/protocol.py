"""The protocol card: all that a score needs to be repeated, written beside it as one JSON file.

In: the facts of an evaluation. Out: a JSON file, and the list of what makes two cards not comparable. What is
not known of pictures that were made elsewhere is null. Fields that came later have defaults, so that older
cards are still read.
"""

from pathlib import Path

from pydantic import Field, FiniteFloat, model_validator

from kilopix.config import Config, parse
from kilopix.jobs import OPTION, check_same_job
from kilopix.runtime import Line, read_json, read_lines, sha256_of_file, write_json
from kilopix.types import UserError

# What was measured and what came out; all other fields say how.
_NOT_PROTOCOL = frozenset(
    {
        "checkpoint",
        "checkpoint_sha256",
        "recipe_sha256",
        "images_sha256",
        "scores",
        "left_out",
        "versions",
        "evaluators",
        "files",
    }
)
_EVALUATOR_FIELDS = frozenset({"evaluator", "evaluator_sha256"})
CARD = "card.json"
JUDGED, OBSERVATIONS, RESULTS = "judged.jsonl", "observations.jsonl", "results.jsonl"
"""Beside a card, the scores of single pictures."""
_SHA256 = "^[0-9a-f]{64}$"

Setting = str | bool | int | FiniteFloat


class Score(Config):
    """One measured number with its 95% interval (None: not estimated), from `n` images or prompts.

    `evaluator` is the name of the card's evaluator that it comes from, `caution` what to know before one
    believes the number.
    """

    name: str
    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    n: int = Field(ge=1)
    unit: str = ""
    evaluator: str = ""
    caution: str = ""

    @model_validator(mode="after")
    def _ends_in_order(self) -> "Score":
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{self.name}: give both ends of the interval or neither.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"{self.name}: the interval's low end is above its high end.")
        return self


class Evaluator(Config):
    """A network or a set of rules that scores come from; its fingerprint holds the hash of its weights."""

    name: str
    fingerprint: str
    settings: dict[str, Setting] = Field(default_factory=dict)


class LeftOut(Config):
    """What was not computed, and why."""

    name: str
    because: str


class Card(Config):
    """What was measured, how, and the scores.

    Every field is what happened, not what was asked for: where a set was too small for a setting, the number
    that was used; where a setting was not used, none. Where pictures are no squares, `resolution` is their
    shorter side. `evaluator_sha256` is the fingerprint of all weights together, `reference_sha256` that of
    the real pictures, their manifest or their statistics; `settings` are those of the benchmark, and
    `versions` those of the packages that numbers go through.
    """

    benchmark: str = ""
    checkpoint: str
    checkpoint_sha256: str | None = Field(default=None, pattern=_SHA256)
    recipe_sha256: str | None = Field(default=None, pattern=_SHA256)
    images_sha256: str | None = Field(default=None, pattern=_SHA256)
    prompts_sha256: str | None = Field(default=None, pattern=_SHA256)
    prompt_style: str = "plain"
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    sampler: str | None = None
    steps: int | None = Field(default=None, ge=1)
    guidance: FiniteFloat | None = None
    resolution: int = Field(ge=1)
    images_per_prompt: int | None = Field(default=None, ge=1)
    images: int = Field(ge=1)
    reference_sha256: str | None = Field(default=None, pattern=_SHA256)
    evaluator: str
    evaluator_sha256: str = Field(pattern=_SHA256)
    evaluators: tuple[Evaluator, ...] = ()
    settings: dict[str, Setting] = Field(default_factory=dict)
    kilopix_version: str
    versions: dict[str, str] = Field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    scores: tuple[Score, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)


def write_card(path: Path, card: Card) -> None:
    """Write a card as JSON, its keys in the order of the fields, with the SHA-256 of what lies beside it."""
    beside = [path.with_name(name) for name in (JUDGED, OBSERVATIONS, RESULTS)]
    files = {file.name: sha256_of_file(file) for file in beside if file.is_file()}
    write_json(path, {**card.model_dump(mode="json"), "files": files})


def lines_beside(card: Path, name: str) -> list[Line]:
    """The lines of the single images that a card sums up; raises `UserError` if they are others than then."""
    path = card.with_name(name)
    if name in changed_beside(card, read_card(card)):
        raise UserError(f"{path}: damaged, or not what {card.name} was made from; score the images again.")
    return read_lines(path)


def changed_beside(path: Path, card: Card) -> list[str]:
    """The files that a card names which are not what they were."""
    beside = {name: path.with_name(name) for name in card.files}
    return [n for n, file in beside.items() if not file.is_file() or sha256_of_file(file) != card.files[n]]


def card_of(path: Path) -> Path:
    """The card that is named by itself or by its folder; raises `UserError` if neither is there."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such folder of scores, and no card of them either.")
    if not (path / CARD).is_file():
        raise UserError(f"{path}: holds no {CARD}, which is where a command that scores puts its scores.")
    return path / CARD


def check_card(path: Path, card: Card, overwrite: bool = False) -> None:
    """Refuse to put a card in place of one with another protocol, or with scores that the new one lacks."""
    if overwrite or not path.exists():
        return
    before = read_card(path)
    apart = {"files", "settings", "scores", "left_out", "versions", "kilopix_version", "evaluators"}
    then, now = (one.model_dump(mode="json", exclude=apart | _EVALUATOR_FIELDS) for one in (before, card))
    for key in sorted(before.settings.keys() & card.settings):  # new scores have new settings
        then[key], now[key] = before.settings[key], card.settings[key]
    scores = {score.name for score in card.scores}
    then["scores"] = [score.name for score in before.scores if score.name not in scores]
    check_same_job(then, now, path, instead=OPTION)


def read_card(path: Path) -> Card:
    """Read a card; raises `UserError` that names the file and the key at fault."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a protocol card: expected a JSON object.")
    return parse(Card, values, str(path))


def like(a: Card, b: Card) -> list[str]:
    """The fields in which the protocols of two cards differ; scores compare only where it is empty.

    Where both cards list their evaluators, those are compared that both have, as `evaluator <name>`, and the
    settings that both have: a card that has more of them is still like one that has fewer.
    """
    ignored = _NOT_PROTOCOL | (_EVALUATOR_FIELDS if a.evaluators and b.evaluators else frozenset())
    fields = [name for name in Card.model_fields if name not in ignored]
    different = [name for name in fields if getattr(a, name) != getattr(b, name)]
    if ignored > _NOT_PROTOCOL and all(
        a.settings[k] == b.settings[k] for k in a.settings.keys() & b.settings
    ):
        different = [name for name in different if name != "settings"]
    others = {one.name: one for one in b.evaluators}
    return different + [f"evaluator {one.name}" for one in a.evaluators if others.get(one.name, one) != one]
