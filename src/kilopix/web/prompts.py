"""Prompts to try: such as a model can draw, by what it was trained on."""

import random

from kilopix.data.world.objects import OBJECTS, training_colors
from kilopix.english import indefinite_article, plural, with_article
from kilopix.recipe import Recipe

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


def prompts_to_try(recipe: Recipe, count: int = 10) -> list[str]:
    """Prompts that show what the model of this recipe can do, the same at every call."""
    if recipe.data.captioner != "structured":
        return list(_OF_IMAGENET[:count])
    rng = random.Random(5)
    known = list(OBJECTS[: recipe.world.classes])
    colored = [item.name for item in known if item.recolorable] or [item.name for item in known]
    names = [item.name for item in known]

    def in_color(name: str) -> str:
        colors = [color for color in training_colors(name) if color]
        color = rng.choice(colors) if colors else "red"
        return f"{indefinite_article(color)} {color} {name}"

    def three() -> list[str]:
        """Names that do not come up again soon, where there are enough of them."""
        if len(left) < 3:
            left[:] = rng.sample(names, len(names))
        return [left.pop() for _ in range(3)]

    left: list[str] = []
    prompts: list[str] = []
    for _ in range(4 * count):  # some come up twice where few objects are known
        first, second, third = three()
        fourth, fifth, sixth = three()
        prompts += [
            f"a photo of {with_article(first)}",
            f"a photo of {in_color(rng.choice(colored))}",
            f"a photo of {with_article(second)} and {with_article(third)}",
            f"a photo of three {plural(fourth)}",
            f"a photo of {with_article(fifth)} left of {with_article(sixth)}",
        ]
    return list(dict.fromkeys(prompts))[:count]
