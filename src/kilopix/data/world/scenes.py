"""Scenes of the embedded world: what is in a picture, drawn at random from a seed.

In: a seed and the name of a picture. Out: a `Scene`, the same on every machine; also scenes read back from
the `scenes.jsonl` beside the pictures.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kilopix.data.world.backgrounds import Background, random_background
from kilopix.data.world.lights import LIGHTS
from kilopix.data.world.objects import HUES, colors_of, find_object, training_colors
from kilopix.runtime import seed_from, text_lines
from kilopix.types import UserError

LARGEST_TILT = 20.0
ONE_OBJECT_SIZES = (0.45, 0.9)


@dataclass(frozen=True)
class SceneObject:
    """One object: centre and `size` (its longer side) as fractions of the picture's side, `tilt` in degrees
    anticlockwise, `color` a hue or None for its own colours.
    """

    name: str
    color: str | None
    x: float
    y: float
    size: float
    tilt: float = 0.0
    mirror: bool = False

    @property
    def colors(self) -> tuple[str, ...]:
        """The colour names that describe it."""
        return colors_of(self.name, self.color)


@dataclass(frozen=True)
class Scene:
    """Objects, from back to front, on a background in a light of `LIGHTS`."""

    objects: tuple[SceneObject, ...]
    background: Background
    light: str

    @property
    def object(self) -> SceneObject:
        """The object of a one-object scene."""
        assert len(self.objects) == 1
        return self.objects[0]


def one_object_scene(name: str, seed: int, split: str, image_id: str) -> Scene:
    """The scene of one picture of a class; it shows no pair of `held_out_colors`."""
    rng = random.Random(seed_from(seed, "world", split, image_id))
    color = rng.choice(training_colors(name))
    size = round(rng.uniform(*ONE_OBJECT_SIZES), 4)
    width, height = _sides(name, size)
    x, y = _somewhere(rng, width, spill=0.12), _somewhere(rng, height, spill=0.12)
    tilt, mirror = _pose(rng)
    item = SceneObject(name, color, x, y, size, tilt, mirror)
    return Scene((item,), random_background(rng, [(name, color)]), rng.choice(tuple(LIGHTS)))


def _sides(name: str, size: float) -> tuple[float, float]:
    left, top, right, bottom = find_object(name).box
    longer = max(right - left, bottom - top)
    return size * (right - left) / longer, size * (bottom - top) / longer


def _somewhere(rng: random.Random, side: float, spill: float) -> float:
    """A centre that leaves an object of this side inside the picture, but for at most `spill` of its side."""
    room = max(0.5 - side / 2 + spill * side, 0.0)
    # The mean of two draws: objects stand near the middle more often than at the edge, as in photographs.
    offset = (rng.uniform(-room, room) + rng.uniform(-room, room)) / 2
    return round(0.5 + 1.25 * offset if abs(1.25 * offset) <= room else 0.5 + offset, 4)


def _pose(rng: random.Random) -> tuple[float, bool]:
    return round(rng.uniform(-LARGEST_TILT, LARGEST_TILT), 2), rng.random() < 0.5


def scene_to_json(scene: Scene, file: str) -> dict[str, Any]:
    """The line of `scenes.jsonl` for a one-object scene."""
    item, ground = scene.object, scene.background
    return {
        "file": file,
        "object": item.name,
        "colors": list(item.colors),
        "color": item.color,
        "size": item.size,
        "x": item.x,
        "y": item.y,
        "tilt": item.tilt,
        "mirror": item.mirror,
        "background": {
            "kind": ground.kind,
            "colors": list(ground.colors),
            "direction": ground.direction,
            "scale": ground.scale,
            "seed": ground.seed,
        },
        "light": scene.light,
    }


def scene_from_json(row: dict[str, Any]) -> Scene:
    """The one-object scene of a line of `scenes.jsonl`; a missing key is a `KeyError`."""
    keys = ("color", "x", "y", "size", "tilt", "mirror")
    item = SceneObject(row["object"], *(row[key] for key in keys))
    ground = row["background"]
    keys = ("direction", "scale", "seed")
    background = Background(ground["kind"], tuple(ground["colors"]), *(ground[key] for key in keys))
    return Scene((item,), background, row["light"])


def load_scenes(split: Path) -> dict[str, Scene]:
    """The scenes of one split (`OUT/train` or `OUT/val`) by file name, in the order of `scenes.jsonl`."""
    path = split / "scenes.jsonl"
    if not path.exists():
        raise UserError(f"{path}: no such file; `kilopix mini` makes it.")
    scenes = {}
    for number, line in enumerate(text_lines(path), 1):
        try:
            row = json.loads(line)
            scenes[row["file"]] = scene_from_json(row)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not a scene ({error!r}); make it again.") from None
    return scenes


def random_color(rng: random.Random, name: str) -> str | None:
    """Any colour in which the object can be drawn, those held out of training included."""
    return rng.choice(HUES) if find_object(name).recolorable else None
