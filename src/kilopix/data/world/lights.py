"""Lights of the embedded world: gentle changes of a whole picture.

In: a picture with values 0 to 1, and a light's name. Out: the picture in that light.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Light:
    """Gains of red, green and blue; contrast about the middle; and how much brighter the lit side is.

    `side` is where the light comes from: (-1, 0) is left, (0, -1) is above; `tint` colours that side.
    """

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 1.0
    side: tuple[int, int] | None = None
    strength: float = 0.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


LIGHTS = {
    "even": Light(),
    "bright": Light(gain=(1.13, 1.13, 1.13), contrast=1.06),
    "soft": Light(gain=(1.03, 1.03, 1.03), contrast=0.8),
    "dim": Light(gain=(0.76, 0.76, 0.79)),
    "cool": Light(gain=(0.9, 0.98, 1.1)),
    "warm": Light(gain=(1.07, 1.0, 0.87)),
    "warm from the left": Light(side=(-1, 0), strength=0.25, tint=(1.0, 0.86, 0.5)),
    "warm from the right": Light(side=(1, 0), strength=0.25, tint=(1.0, 0.86, 0.5)),
    "from above": Light(side=(0, -1), strength=0.25),
}


@lru_cache(maxsize=64)
def _gain_map(name: str, size: int) -> np.ndarray:
    """Gains per pixel and channel, shape (size, size, 3)."""
    light = LIGHTS[name]
    gain = np.broadcast_to(np.array(light.gain, np.float32), (size, size, 3)).copy()
    if light.side is not None:
        ramp = np.linspace(-1, 1, size, dtype=np.float32)
        toward = light.side[0] * ramp[None, :] + light.side[1] * ramp[:, None]
        # The lit side gains in the light's colour; the far side loses the same of every channel.
        lit, far = np.maximum(toward, 0), np.minimum(toward, 0)
        tint = np.array(light.tint, np.float32)
        gain += light.strength * (far[..., None] + lit[..., None] * (2 * tint - 1) * 0.8)
    return gain


def shine(picture: np.ndarray, name: str) -> np.ndarray:
    """The square picture (values 0 to 1) in a light, clipped to 0 to 1."""
    light = LIGHTS[name]
    if light.contrast != 1.0:
        picture = (picture - 0.5) * light.contrast + 0.5
    return np.clip(picture * _gain_map(name, picture.shape[0]), 0, 1)
