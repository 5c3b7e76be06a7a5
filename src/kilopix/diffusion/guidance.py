"""Classifier-free guidance: two predictions in, one out. Scale 1 is off; the published w is scale - 1.

Each kind acts in an interval of times (Kynkaanniemi et al. 2024); outside it the conditional prediction is
taken as it is, at half the cost.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from kilopix.config import Config
from kilopix.diffusion.paths import PathConfig
from kilopix.types import Prediction

Predict = Callable[[Tensor, Tensor], Tensor]
"""A network at one time: latents `B C H W` and the time, a scalar on the CPU, to a prediction."""


class _Guidance(Config):
    scale: float = Field(default=4.0, ge=0)
    start: float = Field(default=1.0, ge=0, le=1, description="largest t at which guidance acts")
    stop: float = Field(default=0.0, ge=0, le=1, description="smallest t at which guidance acts")

    @model_validator(mode="after")
    def _start_is_above_stop(self):
        if self.start < self.stop:
            raise ValueError(f"start {self.start} is below stop {self.stop}; sampling goes from t = 1 to 0")
        return self


class ConstantGuidance(_Guidance):
    """uncond + scale (cond - uncond) (Ho and Salimans 2022, eq. 6)."""

    kind: Literal["constant"] = "constant"


class LinearGuidance(_Guidance):
    """Scale grows from 1 at t = 1 to 1 + 2 (scale - 1) at t = 0, as the published `linear`."""

    kind: Literal["linear"] = "linear"


class ZeroStarGuidance(_Guidance):
    """CFG-Zero* (Fan et al. 2025): the unconditional velocity scaled to fit, and none above `zero_above`."""

    kind: Literal["cfg_zero_star"] = "cfg_zero_star"
    zero_above: float = Field(default=0.96, ge=0, le=1, description="t above which the velocity is zero")


class ProjectedGuidance(_Guidance):
    """APG (Sadat et al. 2024): of the difference of data predictions, `parallel` of the part along the
    conditional one is kept; `momentum` of the last difference is added; its norm is at most `norm`."""

    kind: Literal["apg"] = "apg"
    parallel: float = Field(default=0.0, ge=0, le=1)
    momentum: float = Field(default=-0.5, gt=-1, lt=1)
    norm: float | None = Field(default=None, gt=0)


GuidanceConfig = Annotated[
    ConstantGuidance | LinearGuidance | ZeroStarGuidance | ProjectedGuidance, Field(discriminator="kind")
]


def guided(
    conditional: Predict,
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    config: GuidanceConfig,
    path: PathConfig,
    prediction: Prediction,
) -> Predict:
    """A predictor with guidance inside the interval of times.

    `both` gives the conditional and the unconditional prediction from one call of the network. The
    predictor keeps what a kind remembers from step to step, so make a new one for every batch of samples.
    """
    last: list[Tensor] = []

    def predict(x: Float[Tensor, "B C H W"], t: Float[Tensor, ""]) -> Float[Tensor, "B C H W"]:
        time = float(t)
        if config.scale == 1.0 or not config.stop <= time <= config.start:
            return conditional(x, t)
        if isinstance(config, ZeroStarGuidance) and time > config.zero_above:
            point = path.at(t)
            still = x / (point.alpha + point.sigma)  # data and noise that are equal: no velocity
            return point.target(prediction, still, still)
        with_text, without = both(x, t)
        if isinstance(config, ConstantGuidance):
            return torch.lerp(without, with_text, config.scale)
        if isinstance(config, LinearGuidance):
            return torch.lerp(without, with_text, 1 + 2 * (config.scale - 1) * (1 - time))
        point = path.at(t)
        pairs = [point.data_and_noise(prediction, answer, x) for answer in (with_text, without)]
        if isinstance(config, ZeroStarGuidance):
            first, second = (noise - data for data, noise in pairs)
            velocity = torch.lerp(_fit(first, second), first, config.scale)
            data, noise = straight_parts(point.alpha, point.sigma, velocity, x)
        else:
            (data, _), (other, _) = pairs
            difference = data - other
            if last:
                difference = difference + config.momentum * last[0]
            last[:] = [difference]
            if config.norm is not None:
                norm = difference.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
                difference = difference * (config.norm / norm).clamp(max=1)
            along = _fit(difference, data)
            difference = difference - along + config.parallel * along
            data = data + (config.scale - 1) * difference
            noise = point.noise_of(data, x)
        return point.target(prediction, data, noise)

    return predict


def straight_parts(alpha: Tensor, sigma: Tensor, velocity: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Data and noise at x = alpha data + sigma noise, of which noise - data is known."""
    data = (x - sigma * velocity) / (alpha + sigma)
    return data, data + velocity


def _fit(target: Tensor, direction: Tensor) -> Tensor:
    """The projection of each sample's target on its direction."""
    precise = torch.float32 if target.device.type == "mps" else torch.float64  # MPS has no float64
    a, b = target.flatten(1).to(precise), direction.flatten(1).to(precise)
    share = (a * b).sum(1) / b.square().sum(1).clamp(min=1e-24)
    return share.to(direction.dtype)[:, None, None, None] * direction
