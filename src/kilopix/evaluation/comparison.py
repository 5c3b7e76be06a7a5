"""Several cards side by side: what differs in how they were measured, and whether their scores differ.

In: cards, each with the scores of its single pictures where they were kept. Out: the differences of the
protocols, and one row for every score with paired intervals of its difference from the first card's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from kilopix.evaluation.protocol import Card, Score, like
from kilopix.evaluation.statistics import Interval, Observations, difference_interval
from kilopix.types import UserError

NOT_KEPT = "not tested: no scores of single pictures"
OTHER_PROMPTS = "not tested: other prompts"
ONE_PROMPT = "not tested: one prompt"


@dataclass(frozen=True)
class Entry:
    """A card under a short label, and its scores of single pictures by the names of the card's scores."""

    label: str
    card: Card
    observations: dict[str, Observations] = field(default_factory=dict)


@dataclass(frozen=True)
class Unlike:
    """A field of the protocol that is not the same everywhere, with the value of every entry."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One score of every entry, and of every entry but the first how far it is from the first's.

    A difference is an interval, or the reason why there is none; it is None where a score is missing.
    """

    name: str
    scores: tuple[Score | None, ...]
    differences: tuple[Interval | str | None, ...]


def unlike(entries: Sequence[Entry]) -> list[Unlike]:
    """The fields in which any two protocols differ, in the order of the card's fields."""
    names = dict.fromkeys(name for a, b in combinations(entries, 2) for name in like(a.card, b.card))
    order = {name: i for i, name in enumerate(Card.model_fields)}
    ordered = sorted(names, key=lambda name: order.get(name, len(order)))
    return [Unlike(name, tuple(_value(entry.card, name) for entry in entries)) for name in ordered]


def _value(card: Card, name: str) -> str:
    """A field as text; `evaluator <name>` is that evaluator's fingerprint and settings."""
    if name in Card.model_fields:
        value = getattr(card, name)
        if isinstance(value, dict):
            return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
        if isinstance(value, tuple):
            return ", ".join(str(item) for item in value[:8]) + (" ..." if len(value) > 8 else "")
        text = "unknown" if value is None else str(value)
        return text[:16] if name.endswith("_sha256") else text
    found = next((one for one in card.evaluators if f"evaluator {one.name}" == name), None)
    if found is None:
        return "none"
    return " ".join([found.fingerprint, *(f"{key} {value}" for key, value in found.settings.items())])


def rows(entries: Sequence[Entry]) -> list[Row]:
    """One row for every score that any card has, in the order of the cards."""
    names = dict.fromkeys(score.name for entry in entries for score in entry.card.scores)
    found = []
    for name in names:
        scores = tuple(next((s for s in entry.card.scores if s.name == name), None) for entry in entries)
        differences = tuple(_difference(name, entries[0], other) for other in entries[1:])
        both = [scores[0] is not None and score is not None for score in scores[1:]]
        kept = tuple(one if there else None for one, there in zip(differences, both, strict=True))
        found.append(Row(name, scores, kept))
    return found


def _difference(name: str, first: Entry, other: Entry) -> Interval | str:
    """The paired interval of the other's score less the first's."""
    if name not in first.observations or name not in other.observations:
        return NOT_KEPT
    if len(first.observations[name].keys) == 1 and not first.observations[name].shares:
        return ONE_PROMPT
    try:
        return difference_interval(other.observations[name], first.observations[name])
    except UserError:
        return OTHER_PROMPTS


def differs(difference: Interval) -> bool:
    """Whether the interval leaves out zero."""
    return difference.low > 0 or difference.high < 0
