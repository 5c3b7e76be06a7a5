"""Published numbers of other models, each with its source, to be shown beside measured ones.

In: the facts that ship with kilopix. Out: `Published`. None of them was measured here: their pictures,
prompts and evaluators are their authors'.
"""

import json
from functools import cache
from importlib import resources

from pydantic import FiniteFloat, model_validator

from kilopix.config import Config


class Source(Config):
    """Where a number was read."""

    title: str
    where: str


class PublishedScore(Config):
    """One number under the name that kilopix gives the same score."""

    metric: str
    value: FiniteFloat
    source: str


class PublishedModel(Config):
    """A model and what is published of it."""

    name: str
    scores: tuple[PublishedScore, ...]


class Note(Config):
    """What is published in words only."""

    text: str
    source: str


class Published(Config):
    """All facts; every source that they name is there."""

    sources: dict[str, Source]
    models: tuple[PublishedModel, ...]
    notes: tuple[Note, ...] = ()

    @model_validator(mode="after")
    def _sources_are_there(self) -> "Published":
        named = {score.source for model in self.models for score in model.scores}
        unknown = (named | {note.source for note in self.notes}) ^ self.sources.keys()
        if unknown:
            raise ValueError(f"sources named and sources given differ in {', '.join(sorted(unknown))}")
        return self


@cache
def read_published() -> Published:
    """The facts that ship with kilopix."""
    text = (resources.files("kilopix.evaluation") / "assets" / "published.json").read_text(encoding="utf-8")
    return Published.model_validate(json.loads(text))
