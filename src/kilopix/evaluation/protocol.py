"""The protocol card: all that a score needs to be repeated, written beside it as one JSON file.

In: the facts of an evaluation. Out: a JSON file, and the list of what makes two cards not comparable.
"""

from pathlib import Path

from pydantic import Field, FiniteFloat, model_validator

from kilopix.config import Config, parse
from kilopix.runtime import read_json, write_json
from kilopix.types import UserError

# What was measured and what came out; all other fields say how.
_NOT_PROTOCOL = frozenset({"checkpoint", "checkpoint_sha256", "recipe_sha256", "scores"})
_SHA256 = "^[0-9a-f]{64}$"


class Score(Config):
    """One measured number with its 95% interval (None: not estimated), from `n` images or prompts."""

    name: str
    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    n: int = Field(ge=1)
    unit: str = ""

    @model_validator(mode="after")
    def _ends_in_order(self) -> "Score":
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{self.name}: give both ends of the interval or neither.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"{self.name}: the interval's low end is above its high end.")
        return self


class Card(Config):
    """What was measured, how, and the scores; `evaluator_sha256` is the fingerprint of its weights,
    `reference_sha256` that of what pictures are held against: a manifest, prompts or questions.

    Of pictures made elsewhere some facts may not be known: they are None.
    """

    checkpoint: str
    checkpoint_sha256: str | None = Field(pattern=_SHA256)
    recipe_sha256: str | None = Field(pattern=_SHA256)
    prompts_sha256: str = Field(pattern=_SHA256)
    prompt_style: str = "plain"
    seeds: tuple[int, ...] | None = Field(min_length=1)
    sampler: str | None
    steps: int | None = Field(ge=1)
    guidance: FiniteFloat | None
    resolution: int = Field(ge=1)
    images_per_prompt: int = Field(ge=1)
    images: int = Field(ge=1)
    reference_sha256: str = Field(pattern=_SHA256)
    evaluator: str
    evaluator_sha256: str = Field(pattern=_SHA256)
    kilopix_version: str
    scores: tuple[Score, ...] = ()


def write_card(path: Path, card: Card) -> None:
    """Write a card as JSON, its keys in the order of the fields."""
    write_json(path, card.model_dump(mode="json"))


def read_card(path: Path) -> Card:
    """Read a card; raises `UserError` that names the file and the key at fault."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a protocol card: expected a JSON object.")
    return parse(Card, values, str(path))


def like(a: Card, b: Card) -> list[str]:
    """The fields in which the protocols of two cards differ; scores compare only where it is empty."""
    fields = [name for name in Card.model_fields if name not in _NOT_PROTOCOL]
    return [name for name in fields if getattr(a, name) != getattr(b, name)]
