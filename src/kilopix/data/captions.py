"""Captions that need no model: the class name alone, and what is where in a pasted or cropped picture."""

import random
import re

from kilopix.english import sentence, with_article

CORNERS = {
    (0, 0): "top left corner",
    (1, 0): "top right corner",
    (0, 1): "bottom left corner",
    (1, 1): "bottom right corner",
}

LEFT, ABOVE = ("left of", "right of"), ("above", "below")


def aio(class_name: str) -> str:
    """`An image of a fox.`, the paper's base line."""
    return f"An image of {with_article(class_name)}."


def place_of(box: tuple[float, float, float, float]) -> str:
    """Where a box (x0, y0, x1, y1 in fractions of the side) lies: `top left corner`, `right half`, ..."""
    x0, y0, x1, y1 = box
    if x1 - x0 > 0.9 and y1 - y0 < 0.9:
        return "bottom half" if y0 > 0.1 else "top half"
    if y1 - y0 > 0.9 and x1 - x0 < 0.9:
        return "right half" if x0 > 0.1 else "left half"
    across, down = _third((x0 + x1) / 2), _third((y0 + y1) / 2)
    if across != 1 and down != 1:
        return CORNERS[across // 2, down // 2]
    if across == 1 and down == 1:
        return "middle"
    if across == 1:
        return "top edge" if down == 0 else "bottom edge"
    return "left edge" if across == 0 else "right edge"


def _third(center: float) -> int:
    return 0 if center < 0.4 else 2 if center > 0.6 else 1


def with_inset(caption: str, inset_caption: str, box: tuple[float, float, float, float]) -> str:
    """The caption of a picture into which another is pasted at `box`: both, and the place."""
    place = place_of(box)
    preposition = "At" if place.endswith("edge") else "In"
    return f"{sentence(caption)} {preposition} the {place}, {_inside(inset_caption)}"


def short_with_inset(
    short: str, inset_short: str, box: tuple[float, float, float, float], rng: random.Random
) -> str:
    """A few words for a pasted picture, as prompts are: both things and a relation, or the place of one.

    The same words mean nearly the same picture always, so that a network can draw it before it has learnt to
    choose: what is named first fills the picture, and `A photo of a fox and a cup.` has its cup below or on
    the right. Where it is above or on the left, a relation says so; where the two sides disagree, as in the
    top right corner, no relation is as clear as the place, which is told there.
    """
    lead, thing = _lead(short)
    _, inset = _lead(inset_short)
    sides = _sides(box)
    form = rng.random()
    if not sides:
        return sentence(f"{lead}{thing} with {inset} in the middle")
    after = {inset_is in ("right of", "below") for inset_is, _ in sides}
    if len(after) > 1 or form < 0.15:
        return with_inset(short, inset, box)
    if after == {True} and form < 0.65:
        return sentence(f"{lead}{thing} and {inset}")
    _, relation = rng.choice(sides)
    return sentence(f"{lead}{thing} {relation} {inset}")


def _lead(short: str) -> tuple[str, str]:
    """A short caption in two: `a photo of ` (or nothing) and the thing that it shows, without a full stop."""
    text = short.strip().rstrip(".")
    match = re.match(r"(?:an?|the) (?:\w+ )?(?:image|photo|photograph|picture|view) of ", text, re.IGNORECASE)
    lead = match.group() if match else ""
    return lead, _inside(text[len(lead) :]).rstrip(".")


def _sides(box: tuple[float, float, float, float]) -> list[tuple[str, str]]:
    """How a box lies from the picture's middle, and how the middle lies from it."""
    across, down = _third((box[0] + box[2]) / 2), _third((box[1] + box[3]) / 2)
    horizontal, vertical = {0: LEFT, 2: LEFT[::-1]}, {0: ABOVE, 2: ABOVE[::-1]}
    return [*filter(None, (horizontal.get(across), vertical.get(down)))]


def _inside(caption: str) -> str:
    """A caption continued inside a sentence: its first word small, unless it is a name or `I`."""
    first = caption.split(" ", 1)[0]
    keep = first != "A" and (not first[1:].islower() or first in ("I",))
    return sentence("x" + caption)[1:] if keep else sentence("x" + caption[:1].lower() + caption[1:])[1:]


def cropped(caption: str, box: tuple[float, float, float, float]) -> str:
    """The caption of a picture of which only a window is seen."""
    share = (box[2] - box[0]) * (box[3] - box[1])
    if share > 0.9:
        return f"{sentence(caption)} Nearly the whole picture is seen."
    place = place_of(box).replace(" corner", "").replace(" edge", "")
    return f"{sentence(caption)} Only the {place} part of the picture is seen, close up."
