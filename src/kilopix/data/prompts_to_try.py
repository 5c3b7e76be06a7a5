"""Prompts to try: such as a model can draw, by what it was trained on."""

import random
import re
from itertools import cycle

from kilopix.data.captions import aio
from kilopix.data.trained_on import TrainedOn, spread
from kilopix.data.world.backgrounds import colors_behind
from kilopix.data.world.objects import training_colors
from kilopix.english import indefinite_article, with_article

_OF_IMAGENET = (
    "a fox on a pale blue background",
    "a golden retriever puppy that sits in tall grass, in warm evening light",
    "a lighthouse on a cliff above a stormy sea",
    "a red sports car before snowy mountains",
    "a bowl of ripe lemons on a wooden table, soft light from a window",
    "a macro photograph of a dragonfly on a purple flower",
    "a hot-air balloon over a desert at sunrise",
    "a wooden bridge across a misty forest stream",
    "a blue bird and a yellow bird on the same branch",
    "a cup of coffee to the left of an open book",
)
_PAIRS = (("penguin", "pizza"), ("cat", "banana"))
"""Two objects that the installed model drew in seven of eight pictures."""
_SHORT, _FEWEST_WORDS = 120, 4


def prompts_to_try(trained_on: TrainedOn, count: int = 10) -> list[str]:
    """Prompts that show what a model can do, the same at every call.

    Of the embedded world, those that the installed model was measured to draw: one object, its colour, its
    background, and a pair. Of other images, captions that it was trained on.
    """
    if trained_on.objects:
        return _of_world(trained_on, count)
    captions = trained_on.captions or [aio(name) for name in trained_on.classes]
    own = list(dict.fromkeys(filter(None, (_first_sentence(caption) for caption in captions))))
    return spread(own, count) or list(_OF_IMAGENET[:count])


def _first_sentence(caption: str) -> str:
    """A caption, or of a long one its first sentence, cut where that is long itself."""
    text = " ".join(caption.split())
    if len(text) <= _SHORT:
        return text
    first = re.split(r"(?<=[.!?])\s", text)[0]
    if len(first.split()) >= _FEWEST_WORDS and len(first) <= _SHORT:
        return first
    return text[:_SHORT].rsplit(" ", 1)[0].rstrip(" ,;:.")


def _of_world(trained_on: TrainedOn, count: int) -> list[str]:
    """Every object as it is, in a colour that training showed, and before a background that suits it."""
    rng = random.Random(5)
    items = rng.sample(trained_on.objects, len(trained_on.objects))
    every, colored = cycle(items), cycle([item for item in items if item.recolorable] or items)
    named = trained_on.captioner == "aio"  # captions that tell neither colours nor backgrounds
    prompts: list[str] = []
    for turn in range(3 * count):  # some come up twice where few objects are known
        name = next(colored if turn % 3 == 1 else every).name
        color = rng.choice(training_colors(name))
        ground = rng.choice(colors_behind(name, color))
        thing = with_article(f"{color} {name}" if color and turn % 3 and not named else name)
        told = turn % 3 == 2 and not named
        before = f" on {indefinite_article(ground)} {ground} background" if told else ""
        prompts.append(f"a photo of {thing}{before}")
    known = {item.name for item in items}
    pairs = [f"a photo of {with_article(a)} and {with_article(b)}" for a, b in _PAIRS if {a, b} <= known]
    return list(dict.fromkeys([*prompts[: count - 1], *pairs[:1], *prompts]))[:count]
