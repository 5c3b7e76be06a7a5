"""Scores as a reader sees them: the card of any evaluator as a table with bars, and how it was measured.

In: a folder that `kilopix evaluate`, `fidelity`, `geneval` or `dpg` wrote. Out: `Shown`, for a page.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kilopix.errors import UserError
from kilopix.evaluation.protocol import CARD, Card, Score, read_card

_KINDS = {
    "": (
        "Scores",
        "Share of images in which everything asked for is there, as the judge of the embedded world sees it.",
    ),
    "fidelity": (
        "Fidelity and preference",
        "Distances to the real images, shares by nearest neighbours, and means of what networks that were "
        "trained on people's choices say of each image.",
    ),
    "GenEval": ("GenEval", "Share of images in which everything asked for is there, by GenEval's rules."),
    "DPG-Bench": ("DPG-Bench", "Questions about its prompt that an image answers with yes."),
}
_SHARES = ("precision", "recall", "coverage")  # of fidelity; density may be above 1


@dataclass(frozen=True)
class Bar:
    """One score; `bar` is where value and interval lie in percent of the bar's width, if it is a share."""

    name: str
    value: str
    interval: str
    n: str
    bar: tuple[float, float, float] | None = None
    caution: str = ""


@dataclass(frozen=True)
class Shown:
    """The scores of one folder."""

    folder: Path
    title: str
    note: str
    bars: list[Bar]
    protocol: list[tuple[str, str]]


def read_scores(folders: Sequence[Path]) -> list[Shown]:
    """The scores of all folders; those of one kind are told apart by their folders' names."""
    shown = [_shown(folder) for folder in folders]
    titles = [one.title for one in shown]
    return [
        replace(one, title=f"{one.title}: {one.folder.resolve().name}")
        if titles.count(one.title) > 1
        else one
        for one in shown
    ]


def _shown(folder: Path) -> Shown:
    if not (folder / CARD).is_file():
        raise UserError(
            f"{folder}: no {CARD} in it, so no scores; give a folder that `kilopix evaluate`, `fidelity`, "
            "`geneval` or `dpg` wrote."
        )
    card = read_card(folder / CARD)
    title, note = _KINDS.get(card.benchmark, (card.benchmark, ""))
    bars = [_bar(card, score) for score in card.scores]
    if card.benchmark == "" and not any(bar.bar for bar in bars):
        note = ""  # of a model that cannot be asked for the judge's objects, distances are all there is
    if any(score.low is not None for score in card.scores):
        note += " Intervals are of 95%; in a bar the shaded part."
    return Shown(folder, title, note.strip(), bars, protocol_told(card))


def _bar(card: Card, score: Score) -> Bar:
    """A score in words, with its place on a bar where 0 and 1 are ends."""
    percent = score.unit == "%"
    fidelity = card.benchmark == "fidelity"
    share = percent or (not score.unit and (score.name.split(" ")[0] in _SHARES or not fidelity))

    def told(value: float) -> str:
        return f"{value / 100 if percent else value:.1%}" if share else f"{value:.4g}"

    low = score.value if score.low is None else score.low
    high = score.value if score.high is None else score.high
    scale = 1.0 if percent else 100.0
    return Bar(
        name=score.name + (f" ({score.unit})" if score.unit and not percent else ""),
        value=told(score.value),
        interval="" if score.low is None else f"{told(low)} to {told(high)}",
        n=f"{score.n:,}",
        bar=(scale * score.value, scale * low, scale * (high - low)) if share else None,
        caution=score.caution,
    )


def protocol_told(card: Card) -> list[tuple[str, str]]:
    """What was measured and how, in the words of a table; what is not known says so."""
    first = f", first {card.seeds[0]}" if card.seeds else ""
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    settings = ", ".join(f"{name} {value}" for name, value in card.settings.items())
    return [
        ("weights", f"{card.checkpoint or 'unnamed'} {(card.checkpoint_sha256 or 'unknown')[:16]}"),
        ("prompts", f"{card.prompt_style} {(card.prompts_sha256 or 'none')[:16]}"),
        ("sampler", f"{_known(card.sampler)}, {_known(card.steps)} steps"),
        ("guidance", _known(card.guidance)),
        ("seeds", f"{_known(card.seeds and len(card.seeds))}{first}"),
        ("resolution", f"{card.resolution} pixels"),
        ("images", f"{card.images:,}, {_known(card.images_per_prompt)} a prompt"),
        ("evaluator", f"{card.evaluator} {card.evaluator_sha256[:16]}"),
        ("settings", settings or "none"),
        ("kilopix", f"{card.kilopix_version}{f' ({versions})' if versions else ''}"),
        ("left out", "; ".join(f"{one.name} ({one.because})" for one in card.left_out) or "nothing"),
    ]


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)
