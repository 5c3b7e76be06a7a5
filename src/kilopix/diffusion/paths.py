"""Paths from data to noise, and the conversions between what a network may predict.

The convention of all kilopix: t = 0 is data, t = 1 is noise, x_t = alpha(t) x_0 + sigma(t) eps.
The velocity is dx_t/dt = alpha'(t) x_0 + sigma'(t) eps.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kilopix.config import Config
from kilopix.types import Prediction


class StraightPath(Config):
    """alpha = 1 - t, sigma = t (rectified flow; Liu et al. 2022, eq. 1)."""

    kind: Literal["straight"] = "straight"

    def at(self, t: Float[Tensor, "..."]) -> "PathPoint":
        """Coefficients and their derivatives at t."""
        one = torch.ones_like(t)
        return PathPoint(alpha=1 - t, sigma=t, d_alpha=-one, d_sigma=one)


PathConfig = StraightPath


@dataclass(frozen=True)
class PathPoint:
    """alpha, sigma and their derivatives in t, all of one shape that broadcasts against latents."""

    alpha: Float[Tensor, "..."]
    sigma: Float[Tensor, "..."]
    d_alpha: Float[Tensor, "..."]
    d_sigma: Float[Tensor, "..."]

    def mix(self, data: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"]) -> Tensor:
        """x_t of data and noise."""
        return self.alpha * data + self.sigma * noise

    def velocity(self, data: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"]) -> Tensor:
        """dx_t/dt of data and noise."""
        return self.d_alpha * data + self.d_sigma * noise

    def target(self, kind: Prediction, data: Tensor, noise: Tensor) -> Tensor:
        """What a network that predicts `kind` should answer."""
        return {"noise": noise, "data": data, "velocity": self.velocity(data, noise)}[kind]

    def data_and_noise(self, kind: Prediction, prediction: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The data and the noise that a prediction at x_t stands for.

        From noise it divides by alpha (unbounded where alpha is 0), from data by sigma.
        """
        if kind == "noise":
            return (x - self.sigma * prediction) / self.alpha, prediction
        if kind == "data":
            return prediction, (x - self.alpha * prediction) / self.sigma
        determinant = self.alpha * self.d_sigma - self.d_alpha * self.sigma
        data = (self.d_sigma * x - self.sigma * prediction) / determinant
        noise = (self.alpha * prediction - self.d_alpha * x) / determinant
        return data, noise


def expand(t: Float[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
    """Times of a batch, in a shape that broadcasts against latents."""
    return t[:, None, None, None]


def shift_time(t: Float[Tensor, "..."], shift: float) -> Float[Tensor, "..."]:
    """Move times towards noise for larger images (Esser et al. 2024, eq. 23); shift 1 changes nothing."""
    return shift * t / (1 + (shift - 1) * t)
