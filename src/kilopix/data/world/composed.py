"""Scenes of several objects, for teaching and testing a judge of pictures; no training set has them.

In: a seed and an index. Out: a `Scene` with one to four objects that overlap little.
"""

import random

from kilopix.data.world.backgrounds import random_background
from kilopix.data.world.lights import LIGHTS
from kilopix.data.world.objects import HUES, OBJECTS
from kilopix.data.world.render import object_box
from kilopix.data.world.scenes import LARGEST_TILT, Scene, SceneObject, random_color
from kilopix.runtime import seed_from

TASKS = ("single", "two", "counting", "position", "color", "attribution")
LARGEST_OVERLAP = 0.1  # intersection over union of two boxes
_SPILL = 0.06  # how far a box may reach out of the picture
_TRIES = 60

Box = tuple[float, float, float, float]
Pair = tuple[str, str | None]


def composed_task(index: int) -> str:
    """Which of `TASKS` a scene belongs to."""
    return TASKS[index % len(TASKS)]


def composed_scene(seed: int, index: int) -> Scene:
    """The scene number `index`: any pair of object and colour, also those held out of training."""
    rng = random.Random(seed_from(seed, "composed", index))
    pairs = _cast(rng, composed_task(index))
    while (objects := _place(rng, pairs, composed_task(index))) is None:
        pass
    return Scene(objects, random_background(rng, pairs), rng.choice(tuple(LIGHTS)))


def _cast(rng: random.Random, task: str) -> list[Pair]:
    """Names and colours of the objects of a task."""
    names = [item.name for item in OBJECTS]
    recolorable = [item.name for item in OBJECTS if item.recolorable]
    if task == "color":
        return [(rng.choice(recolorable), rng.choice(HUES))]
    if task == "attribution":
        return list(zip(rng.sample(recolorable, 2), rng.sample(HUES, 2), strict=True))
    if task == "counting":
        name = rng.choice(names)
        alike = rng.random() < 0.5
        first, many = random_color(rng, name), rng.randint(2, 4)
        return [(name, first if alike else random_color(rng, name)) for _ in range(many)]
    chosen = rng.sample(names, 1 if task == "single" else 2)
    return [(name, random_color(rng, name)) for name in chosen]


def _place(rng: random.Random, pairs: list[Pair], task: str) -> tuple[SceneObject, ...] | None:
    """Sizes and places, or None if the objects did not fit this time."""
    low, high = {1: (0.3, 0.9), 2: (0.22, 0.6)}.get(len(pairs), (0.22, 0.42))
    axis = rng.choice("xy") if task == "position" else None
    objects: list[SceneObject] = []
    for pair in pairs:
        for _ in range(_TRIES):
            size = round(rng.uniform(low, high), 4)
            x, y = (round(rng.uniform(0.1, 0.9), 4) for _ in range(2))
            tilt = round(rng.uniform(-LARGEST_TILT, LARGEST_TILT), 2)
            item = SceneObject(*pair, x, y, size, tilt, rng.random() < 0.5)
            if _fits(item, objects, axis):
                objects.append(item)
                break
        else:
            return None
    return tuple(objects)


def _fits(item: SceneObject, others: list[SceneObject], axis: str | None) -> bool:
    box = object_box(item)
    if min(box[:2]) < -_SPILL or max(box[2:]) > 1 + _SPILL:
        return False
    if any(overlap(box, object_box(other)) >= LARGEST_OVERLAP for other in others):
        return False
    # A scene about positions has one clear relation: the objects lie apart along one axis.
    return axis is None or all(_apart(box, object_box(other), axis) for other in others)


def _apart(first: Box, second: Box, axis: str) -> bool:
    i = "xy".index(axis)
    return min(first[i + 2], second[i + 2]) - max(first[i], second[i]) < 0.04


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return width * height / (areas - width * height)
