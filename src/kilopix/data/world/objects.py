"""The 64 objects of the embedded world and their colours.

In: the object pack in `assets`. Out: the table `OBJECTS`, cut-out pictures in any of their colours, and the
pairs of object and colour that training never shows.
"""

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from kilopix.types import UserError

HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")

# Shadow, middle and highlight of each colour, chosen so that the eight are told apart at a glance.
_RAMPS = {
    "red": ((122, 6, 16), (218, 26, 32), (255, 118, 104)),
    "orange": ((172, 62, 0), (250, 122, 8), (255, 186, 104)),
    "yellow": ((204, 142, 0), (252, 210, 16), (255, 242, 138)),
    "green": ((10, 88, 28), (34, 160, 56), (142, 222, 122)),
    "cyan": ((0, 120, 132), (22, 200, 208), (154, 244, 244)),
    "blue": ((14, 30, 118), (30, 76, 216), (116, 160, 252)),
    "purple": ((72, 10, 112), (142, 46, 194), (204, 142, 238)),
    "pink": ((206, 52, 122), (252, 126, 184), (255, 200, 226)),
}
_ASSETS = resources.files("kilopix.data.world") / "assets"


@dataclass(frozen=True)
class WorldObject:
    """One kind of object: its own `colors`, most dominant first, or the degrees of `hue` to recolour."""

    name: str
    category: str
    colors: tuple[str, ...]
    hue: tuple[int, int] | None
    box: tuple[int, int, int, int]

    @property
    def recolorable(self) -> bool:
        """Whether the object comes in all of `HUES`."""
        return self.hue is not None

    @property
    def folder(self) -> str:
        """The name of its class folder."""
        return self.name.replace(" ", "_")


def _read(row: dict[str, Any]) -> WorldObject:
    hue = (row["hue"][0], row["hue"][1]) if row["hue"] else None
    left, top, right, bottom = row["box"]
    return WorldObject(row["name"], row["category"], tuple(row["colors"]), hue, (left, top, right, bottom))


OBJECTS = tuple(_read(row) for row in json.loads((_ASSETS / "objects.json").read_text(encoding="utf-8")))
_BY_NAME = {item.name: item for item in OBJECTS}


def find_object(name: str) -> WorldObject:
    """The object with this name; an unknown one is a `UserError`."""
    if name not in _BY_NAME:
        raise UserError(f"no object {name!r} in the embedded world; it has {', '.join(_BY_NAME)}.")
    return _BY_NAME[name]


def colors_of(name: str, color: str | None) -> tuple[str, ...]:
    """The colour names that describe an object: the hue it was given, or its own."""
    return (color,) if color else find_object(name).colors


@cache
def held_out_colors(name: str) -> tuple[str, ...]:
    """The colours in which training never shows an object: one or two of eight, none if it has its own."""
    recolorable = [item.name for item in OBJECTS if item.recolorable]
    if not find_object(name).recolorable:
        return ()
    place = recolorable.index(name)
    # Every other object has two. The colours are dealt in turn, so that each is held out equally often.
    dealt = place + place // 2
    return tuple(HUES[3 * turn % len(HUES)] for turn in range(dealt, dealt + 1 + place % 2))


def training_colors(name: str) -> tuple[str | None, ...]:
    """The colours in which training shows an object; `(None,)` if it has its own."""
    if not find_object(name).recolorable:
        return (None,)
    return tuple(hue for hue in HUES if hue not in held_out_colors(name))


@cache
def _atlas() -> Image.Image:
    with (_ASSETS / "objects.webp").open("rb") as file, Image.open(file) as image:
        return image.convert("RGBA")


@lru_cache(maxsize=512)
def sprite(name: str, color: str | None = None) -> Image.Image:
    """An object's cut-out, its longer side 128 pixels, in a hue of `HUES` or in its own colours (None)."""
    item = find_object(name)
    picture = _atlas().crop(item.box)
    if color is None:
        return picture
    if item.hue is None or color not in HUES:
        raise UserError(
            f"{name!r} cannot be drawn in {color!r}; only {', '.join(HUES)}, and not every object."
        )
    pixels = np.asarray(picture)
    return Image.fromarray(np.dstack([_recolor(pixels, item.hue, color), pixels[..., 3]]), "RGBA")


def _recolor(pixels: np.ndarray, hue: tuple[int, int], color: str) -> np.ndarray:
    """Lay the colour's ramp over the saturated pixels in the range of hues, by their lightness."""
    rgb = pixels[..., :3].astype(np.float32)
    weight = _weight(rgb, hue)
    light = rgb @ np.array([0.35, 0.45, 0.2], np.float32)
    chosen = light[(weight > 0.5) & (pixels[..., 3] > 128)]
    low, middle, high = np.percentile(chosen, [4, 50, 96])
    # A flat surface keeps its flatness: its few shades are not stretched over the whole ramp.
    below, above = max(middle - low, 28.0), max(high - middle, 28.0)
    place = np.where(
        light < middle, 0.5 + 0.5 * (light - middle) / below, 0.5 + 0.5 * (light - middle) / above
    )
    place = np.clip(place, -0.25, 1.25)
    ramp = np.array(_RAMPS[color], np.float32)
    shade = np.stack(
        [np.interp(place, [-0.25, 0.0, 0.5, 1.0, 1.25], _extended(ramp[:, c])) for c in range(3)], -1
    )
    mixed = rgb + weight[..., None] * (shade - rgb)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _extended(stops: np.ndarray) -> np.ndarray:
    """The three stops with a little beyond either end: darker below, lighter above."""
    low, middle, high = stops
    return np.array([0.8 * low, low, middle, high, high + 0.35 * (255 - high)])


def _weight(rgb: np.ndarray, hue: tuple[int, int]) -> np.ndarray:
    """How much each pixel belongs to the recolourable part, 0 to 1, with soft edges."""
    top, bottom = rgb.max(-1), rgb.min(-1)
    chroma = np.maximum(top - bottom, 1e-3)
    r, g, b = (rgb[..., c] for c in range(3))
    sector = np.select(
        [top == r, top == g], [(g - b) / chroma % 6, (b - r) / chroma + 2], (r - g) / chroma + 4
    )
    degrees = sector * 60
    width = (hue[1] - hue[0]) % 360
    offset = (degrees - hue[0]) % 360
    inside = np.where(offset <= width, 0.0, np.minimum(offset - width, 360 - offset))
    return np.clip(1 - inside / 10, 0, 1) * np.clip((chroma / np.maximum(top, 1) - 0.14) / 0.16, 0, 1)
