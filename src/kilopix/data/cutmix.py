"""The geometry of CutMix and Crop, and the pasting of pixels.

In: square uint8 arrays and a `random.Random`. Out: arrays and boxes in pixels. The five settings are
those of the published data set: half, quarter, ninth, sixteenth of the area, or one of them at random.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kilopix.types import UserError

Setting = Literal["1/2", "1/4", "1/9", "1/16"]
SETTINGS: tuple[Setting, ...] = ("1/2", "1/4", "1/9", "1/16")
SettingChoice = Literal["1/2", "1/4", "1/9", "1/16", "all"]
_MARGIN = 0.05
_CENTER = 0.10


def one_class(names: Iterable[str]) -> str:
    """Why CutMix cannot be made of images of at most one class, whose names these are, and what can."""
    only = next((name for name in names if name), "")
    there = f"there is only {only!r}" if only else "the manifest says the class of no image"
    return (
        f"CutMix pastes a picture of another class, and {there}. Take `--kind crop` "
        "(data.augment.kind=crop), or train without augmented images, as `kilopix encode` and `train` can."
    )


@dataclass(frozen=True)
class Paste:
    """Where a partner goes, in pixels of the result: its box, and the side at which it is rendered.

    The partner is shown whole at `partner_side`; `partner_box` is the part of it that is pasted.
    """

    setting: Setting
    box: tuple[int, int, int, int]
    partner_side: int
    partner_box: tuple[int, int, int, int]


def choose_paste(setting: SettingChoice, side: int, rng: random.Random) -> Paste:
    """Choose the place of a paste into a picture of `side` pixels.

    1/2: the right or bottom half, unscaled, from the same half of the partner. 1/4: side S/2 in one of
    the corners. 1/9: side S//3 touching a border at a random offset. 1/16: side S//4, at least 5% from
    every border, outside the central square of +-10%.
    """
    check_size(side)
    one: Setting = rng.choice(SETTINGS) if setting == "all" else setting
    if one == "1/2":
        half = side // 2
        box = rng.choice([(half, 0, side, side), (0, half, side, side)])
        return Paste(one, box, side, box)
    if one == "1/4":
        part = side // 2
        x, y = rng.choice([0, side - part]), rng.choice([0, side - part])
    elif one == "1/9":
        part = side // 3
        x, y = _on_border(side, part, rng)
    else:
        part = side // 4
        x, y = _off_center(side, part, rng)
    return Paste(one, (x, y, x + part, y + part), part, (0, 0, part, part))


def check_size(side: int) -> None:
    """Refuse pictures too small for the geometry."""
    if side < 20:
        raise UserError(f"CutMix needs pictures of at least 20 pixels, not {side}.")


def _on_border(side: int, part: int, rng: random.Random) -> tuple[int, int]:
    offset, far = rng.randint(0, side - part), side - part
    return rng.choice([(0, offset), (far, offset), (offset, 0), (offset, far)])


def _off_center(side: int, part: int, rng: random.Random) -> tuple[int, int]:
    low, high = -int(-_MARGIN * side // 1), int((1 - _MARGIN) * side) - part
    center_low, center_high = (0.5 - _CENTER) * side, (0.5 + _CENTER) * side
    while True:  # about five places of six are free, so this ends soon
        x, y = rng.randint(low, high), rng.randint(low, high)
        outside_x = x + part <= center_low or x >= center_high
        outside_y = y + part <= center_low or y >= center_high
        if outside_x or outside_y:
            return x, y


def paste_at(setting: str, box: tuple[float, float, float, float], side: int) -> Paste:
    """The paste that a row of a manifest describes; `box` is in fractions of the side."""
    x0, y0, x1, y1 = (round(v * side) for v in box)
    if setting == "1/2":
        return Paste("1/2", (x0, y0, x1, y1), side, (x0, y0, x1, y1))
    one: Setting = next(s for s in SETTINGS if s == setting)
    return Paste(one, (x0, y0, x1, y1), x1 - x0, (0, 0, x1 - x0, y1 - y0))


def paste(base: np.ndarray, partner: np.ndarray, where: Paste) -> np.ndarray:
    """Paste a partner, already square at `where.partner_side`, into the base, which is returned."""
    x0, y0, x1, y1 = where.box
    a, b, c, d = where.partner_box
    base[y0:y1, x0:x1] = partner[b:d, a:c]
    return base


def choose_crop(rng: random.Random, smallest: float = 0.5) -> tuple[float, float, float, float]:
    """A random square window of 50 to 100% of the side: (x0, y0, x1, y1) in fractions of the square."""
    part = rng.uniform(smallest, 1.0)
    x, y = rng.uniform(0, 1 - part), rng.uniform(0, 1 - part)
    return (x, y, x + part, y + part)
