"""Backgrounds of the embedded world: plain, graded or patterned, in named colours.

In: a `random.Random` and the objects that must stand out. Out: a `Background`, and its picture.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from kilopix.data.world.objects import sprite

COLORS = {
    "white": (248, 248, 248),
    "light grey": (200, 202, 205),
    "grey": (130, 132, 136),
    "black": (22, 22, 24),
    "brown": (118, 76, 46),
    "beige": (232, 216, 184),
    "pale blue": (178, 214, 244),
    "pale green": (188, 230, 184),
    "pale pink": (248, 208, 216),
    "pale yellow": (252, 242, 180),
    "lavender": (208, 196, 240),
    "dark blue": (24, 36, 92),
    "dark green": (20, 72, 46),
    "dark red": (104, 20, 28),
    "teal": (20, 122, 124),
}
# Directions are where the second colour lies (gradient) or how the stripes run.
DIRECTIONS = {
    "gradient": ("down", "right", "diagonal"),
    "stripes": ("horizontal", "vertical", "diagonal"),
}
KINDS = ("plain", "gradient", "stripes", "dots", "checker", "speckle")
_KIND_WEIGHTS = (48, 32, 6, 5, 4, 5)
_STAND_OUT = 78.0  # distance in RGB below which an edge is hard to see


@dataclass(frozen=True)
class Background:
    """One colour (plain) or two; `scale` is the period of a pattern as a fraction of the side."""

    kind: str
    colors: tuple[str, ...]
    direction: str = ""
    scale: float = 0.0
    seed: int = 0


@cache
def _rim(name: str, color: str | None) -> np.ndarray:
    """The colours of an object's outermost pixels, shape (pixels, 3)."""
    pixels = np.asarray(sprite(name, color)).astype(np.int32)
    solid = np.pad(pixels[..., 3] > 160, 1)
    inner = solid.copy()
    for _ in range(4):
        grown = np.pad(inner, 1)
        inner = inner & grown[:-2, 1:-1] & grown[2:, 1:-1] & grown[1:-1, :-2] & grown[1:-1, 2:]
    return pixels[..., :3][(solid & ~inner)[1:-1, 1:-1]]


@cache
def vanishing_share(name: str, color: str | None, ground: str) -> float:
    """The share of an object's outline that is hardly told from a background colour."""
    apart = _rim(name, color) - np.array(COLORS[ground])
    return float(np.mean((apart**2).sum(-1) < _STAND_OUT**2))


@lru_cache(maxsize=4096)
def colors_behind(name: str, color: str | None) -> tuple[str, ...]:
    """The background colours before which an object stands out; never fewer than four."""
    shares = {ground: vanishing_share(name, color, ground) for ground in COLORS}
    clear = [ground for ground in COLORS if shares[ground] < 0.3]
    return tuple(clear if len(clear) >= 4 else sorted(COLORS, key=shares.__getitem__)[:4])


def random_background(rng: random.Random, objects: Sequence[tuple[str, str | None]]) -> Background:
    """A background before which all the (name, colour) pairs stand out."""
    allowed = [ground for ground in COLORS if all(ground in colors_behind(*item) for item in objects)]
    if not allowed:
        worst = {ground: max(vanishing_share(*item, ground) for item in objects) for ground in COLORS}
        allowed = sorted(COLORS, key=worst.__getitem__)[:2]
    kind = rng.choices(KINDS, _KIND_WEIGHTS)[0] if len(allowed) > 1 else "plain"
    if kind == "plain":
        return Background("plain", (rng.choice(allowed),))
    first, second = rng.sample(allowed, 2)
    direction = rng.choice(DIRECTIONS[kind]) if kind in DIRECTIONS else ""
    scale = 0.0 if kind == "gradient" else round(rng.uniform(0.16, 0.34), 3)
    return Background(kind, (first, second), direction, scale, rng.randrange(1 << 16))


@lru_cache(maxsize=16)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    return centres[None, :], centres[:, None]


def draw_background(ground: Background, side: int) -> np.ndarray:
    """The background's picture, shape (side, side, 3), uint8."""
    first = np.array(COLORS[ground.colors[0]], np.float32)
    if ground.kind == "plain":
        return np.broadcast_to(first.astype(np.uint8), (side, side, 3)).copy()
    second = np.array(COLORS[ground.colors[1]], np.float32)
    share = np.broadcast_to(_share_of_second(ground, side), (side, side))
    return (first + share[..., None] * (second - first) + 0.5).astype(np.uint8)


def _share_of_second(ground: Background, side: int) -> np.ndarray:
    """How much of the second colour each pixel has, 0 to 1."""
    x, y = _grid(side)
    if ground.kind == "gradient":
        return {"down": y, "right": x, "diagonal": (x + y) / 2}[ground.direction]
    if ground.kind == "speckle":
        return _speckle(ground, side)
    rng = random.Random(ground.seed)
    u, v = (x + rng.random()) / ground.scale, (y + rng.random()) / ground.scale
    if ground.kind == "stripes":
        across = {"horizontal": v, "vertical": u, "diagonal": (u + v) * 0.7071}[ground.direction]
        return (across % 1 < 0.5).astype(np.float32)
    if ground.kind == "checker":
        return ((np.floor(u * 1.4) + np.floor(v * 1.4)) % 2).astype(np.float32)
    assert ground.kind == "dots"
    return ((u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.075).astype(np.float32)


def _speckle(ground: Background, side: int) -> np.ndarray:
    """Soft cloudy noise: a small random grid, enlarged smoothly."""
    cells = max(4, round(2.2 / ground.scale))
    noise = np.random.Generator(np.random.PCG64(ground.seed)).integers(0, 256, (cells, cells), np.uint8)
    image = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).astype(np.float32) / 255
