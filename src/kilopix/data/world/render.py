"""From scenes to pictures.

In: a `Scene` and a side in pixels. Out: an RGB picture, and the boxes of its objects.
"""

import math
from functools import lru_cache

import numpy as np
from PIL import Image

from kilopix.data.world.backgrounds import draw_background
from kilopix.data.world.lights import shine
from kilopix.data.world.objects import sprite
from kilopix.data.world.scenes import Scene, SceneObject


def render(scene: Scene, size: int) -> np.ndarray:
    """Draw a scene, shape (size, size, 3), uint8; edges are smooth, since it is drawn at twice the size."""
    side = 2 * size
    canvas = Image.fromarray(draw_background(scene.background, side))
    for item in scene.objects:
        _paste(canvas, item, side)
    picture = np.asarray(canvas.reduce(2)).astype(np.float32) / 255
    return (shine(picture, scene.light) * 255 + 0.5).astype(np.uint8)


@lru_cache(maxsize=4096)
def _reduced(name: str, color: str | None, factor: int) -> Image.Image:
    picture = sprite(name, color)
    return picture.reduce(factor) if factor > 1 else picture


def _paste(canvas: Image.Image, item: SceneObject, side: int) -> None:
    """Draw one object with its rotation, mirroring and exact place."""
    full = sprite(item.name, item.color)
    longer = max(full.size)
    pixels = item.size * side
    # Bicubic sampling is clean down to half of the source's size; below, it starts from a reduced copy.
    factor = 4 if pixels < 0.28 * longer else 2 if pixels < 0.55 * longer else 1
    source = _reduced(item.name, item.color, factor)
    x1, y1, x2, y2 = (edge * side for edge in object_box(item))
    left, top = math.floor(x1) - 2, math.floor(y1) - 2
    width, height = math.ceil(x2) + 2 - left, math.ceil(y2) + 2 - top
    scale = longer / factor / pixels
    cos, sin = math.cos(math.radians(item.tilt)), math.sin(math.radians(item.tilt))
    flip = -1 if item.mirror else 1
    # Output pixel -> offset from the centre -> turned back, mirrored back, scaled to the source.
    a, b, d, e = flip * cos * scale, -flip * sin * scale, sin * scale, cos * scale
    dx, dy = left - item.x * side, top - item.y * side
    c = a * dx + b * dy + full.width / factor / 2
    f = d * dx + e * dy + full.height / factor / 2
    matrix = (a, b, c, d, e, f)
    piece = source.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    canvas.paste(piece, (left, top), piece)


@lru_cache(maxsize=128)
def _outline(name: str) -> np.ndarray:
    """Points (x, y) around an object's cut-out, from its centre, in units of its longer side."""
    alpha = np.asarray(sprite(name).getchannel("A")) > 96
    height, width = alpha.shape
    rows = np.flatnonzero(alpha.any(1))
    first, last = alpha[rows].argmax(1), width - alpha[rows][:, ::-1].argmax(1)
    corners = [(x, y + up) for y, *ends in zip(rows, first, last, strict=True) for x in ends for up in (0, 1)]
    points = (np.array(corners, np.float64) - (width / 2, height / 2)) / max(width, height)
    # Only the points that are outermost in some direction can touch a box.
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    outermost = (points @ np.stack([np.cos(angles), np.sin(angles)])).argmax(0)
    return points[np.unique(outermost)]


def object_box(item: SceneObject) -> tuple[float, float, float, float]:
    """The box (x1, y1, x2, y2) around an object as fractions of the side; it may reach out of the picture."""
    points = _outline(item.name) * item.size
    cos, sin = math.cos(math.radians(item.tilt)), math.sin(math.radians(item.tilt))
    x, y = points[:, 0] * (-1 if item.mirror else 1), points[:, 1]
    turned_x, turned_y = cos * x + sin * y, cos * y - sin * x
    return (
        item.x + float(turned_x.min()),
        item.y + float(turned_y.min()),
        item.x + float(turned_x.max()),
        item.y + float(turned_y.max()),
    )
