"""Paths from data to noise, and the conversions between what a network may predict.

The convention of all kilopix: t = 0 is data, t = 1 is noise, x_t = alpha(t) x_0 + sigma(t) eps. The
velocity is d_alpha x_0 + d_sigma eps, where d_alpha and d_sigma are derivatives in the path's own clock.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from kilopix.config import Config
from kilopix.types import Prediction

_CLIP_MIN, _CLIP_MAX = 1e-9, 1 - 1e-4


class StraightPath(Config):
    """alpha = 1 - t, sigma = t (rectified flow; Liu et al. 2022, eq. 1)."""

    kind: Literal["straight"] = "straight"

    def at(self, t: Float[Tensor, "..."]) -> "PathPoint":
        """Coefficients and their derivatives at t."""
        one = torch.ones_like(t)
        return PathPoint(alpha=1 - t, sigma=t, d_alpha=-one, d_sigma=one)


class GammaPath(Config):
    """alpha^2 = gamma(t), sigma^2 = 1 - gamma(t): the variance-preserving paths of DDPM.

    Schedules: `linear` 1 - t, as CAD-I is trained; `cosine` and `sigmoid` from `start` to `end` with
    temperature `tau` (Chen 2023, section 2.2); `cosine_simple` (Nichol and Dhariwal 2021, eq. 17);
    `vp`, the diffusion of Song et al. (2021, eq. 32). Only `cosine` and `sigmoid` take parameters.
    """

    kind: Literal["gamma"] = "gamma"
    schedule: Literal["linear", "cosine", "sigmoid", "cosine_simple", "vp"] = "linear"
    start: float | None = None
    end: float | None = None
    tau: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _parameters_are_used(self):
        if self.schedule not in ("cosine", "sigmoid"):
            if self.start is not None or self.end is not None or self.tau != 1.0:
                raise ValueError(f"schedule {self.schedule!r} takes no start, end or tau")
        elif self._ends()[0] == self._ends()[1]:
            raise ValueError("start and end are the same, so all times have one noise level")
        return self

    def _ends(self) -> tuple[float, float]:
        default = (1.0, 0.0) if self.schedule == "cosine" else (-3.0, 3.0)
        start = default[0] if self.start is None else self.start
        return start, default[1] if self.end is None else self.end

    def gamma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Signal level at t, kept at least 1e-9, so that noise can always be divided by it."""
        if self.schedule == "linear":
            return (1 - t).clamp(min=_CLIP_MIN)
        if self.schedule == "cosine_simple":
            return torch.cos((t + 0.0002) / 1.00025 * math.pi / 2) ** 2
        if self.schedule == "vp":
            return torch.exp(-(0.5 * 19.9 * t**2 + 0.1 * t))
        start, end = self._ends()
        if self.schedule == "cosine":
            first, last, here = (
                math.cos(start * math.pi / 2) ** (2 * self.tau),
                math.cos(end * math.pi / 2) ** (2 * self.tau),
                torch.cos((t * (end - start) + start) * math.pi / 2) ** (2 * self.tau),
            )
            return ((here - last) / (first - last)).clamp(_CLIP_MIN, _CLIP_MAX)
        first, last = _sigmoid(start / self.tau), _sigmoid(end / self.tau)
        here = torch.sigmoid((t * (end - start) + start) / self.tau)
        return ((last - here) / (last - first)).clamp(_CLIP_MIN, _CLIP_MAX)

    def at(self, t: Float[Tensor, "..."]) -> "PathPoint":
        """Coefficients at t; the clock is the angle phi with cos(phi) = alpha (Salimans and Ho 2022)."""
        gamma = self.gamma(t)
        alpha, sigma = gamma.sqrt(), (1 - gamma).sqrt()
        return PathPoint(alpha, sigma, d_alpha=-sigma, d_sigma=alpha)


class EDMPath(Config):
    """EDM (Karras et al. 2022), scaled to unit variance: t = 2/pi arctan(sigma_EDM / sigma_data).

    x_t = cos(phi) x_0 / sigma_data + sin(phi) eps with phi = t pi/2, which is c_in times EDM's noisy
    input; EDM's network target is minus the velocity in phi, at a loss weight of 1 (the equivalence is
    that of Lu and Song 2024, section 3).
    """

    kind: Literal["edm"] = "edm"
    sigma_data: float = Field(default=0.5, gt=0)

    def at(self, t: Float[Tensor, "..."]) -> "PathPoint":
        """Coefficients at t; the clock is phi. At t = 0 the state is x_0 / sigma_data."""
        angle = t * math.pi / 2
        cos, sin = angle.cos(), angle.sin()
        return PathPoint(cos / self.sigma_data, sin, d_alpha=-sin / self.sigma_data, d_sigma=cos)

    def time_of(self, sigma: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The time of EDM's noise level sigma."""
        return torch.arctan(sigma / self.sigma_data) * 2 / math.pi


PathConfig = Annotated[StraightPath | GammaPath | EDMPath, Field(discriminator="kind")]


@dataclass(frozen=True)
class PathPoint:
    """alpha, sigma and their derivatives, all of one shape that broadcasts against latents."""

    alpha: Float[Tensor, "..."]
    sigma: Float[Tensor, "..."]
    d_alpha: Float[Tensor, "..."]
    d_sigma: Float[Tensor, "..."]

    @property
    def gamma(self) -> Float[Tensor, "..."]:
        """Share of the signal in the variance, 1 at data and 0 at noise: alpha^2 / (alpha^2 + sigma^2)."""
        signal = self.alpha.square()
        return signal / (signal + self.sigma.square())

    def mix(self, data: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"]) -> Tensor:
        """x_t of data and noise."""
        return self.alpha * data + self.sigma * noise

    def velocity(self, data: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"]) -> Tensor:
        """Derivative of x_t along the path."""
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
            return prediction, self.noise_of(prediction, x)
        determinant = self.alpha * self.d_sigma - self.d_alpha * self.sigma
        data = (self.d_sigma * x - self.sigma * prediction) / determinant
        noise = (self.alpha * prediction - self.d_alpha * x) / determinant
        return data, noise

    def noise_of(self, data: Tensor, x: Tensor) -> Tensor:
        """The noise that data leave in x_t; zero where there is none."""
        return (x - self.alpha * data) / self.sigma.clamp(min=1e-12)


def expand(t: Float[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
    """Times of a batch, in a shape that broadcasts against latents."""
    return t[:, None, None, None]


def shift_time(t: Float[Tensor, "..."], shift: float) -> Float[Tensor, "..."]:
    """Move times towards noise for larger images (Esser et al. 2024, eq. 23); shift 1 changes nothing."""
    return shift * t / (1 + (shift - 1) * t)


def data_of_state(path: PathConfig, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The data that the state at t = 0 stands for."""
    return path.sigma_data * x if isinstance(path, EDMPath) else x


def log_snr(path: PathConfig, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """lambda(t) = log(alpha / sigma), which falls with t; infinite where one of them is 0."""
    point = path.at(t)
    return point.alpha.log() - point.sigma.log()


def time_of_log_snr(path: PathConfig, target: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The times at which the path has these log signal-to-noise ratios, found by bisection in float64."""
    target = target.double()
    low, high = torch.zeros_like(target), torch.ones_like(target)
    for _ in range(60):
        middle = (low + high) / 2
        cleaner = log_snr(path, middle) >= target  # the time sought lies above
        low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
    return (low + high) / 2


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
