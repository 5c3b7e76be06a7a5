"""Samplers: from noise at t = 1 to data at t = 0, each a plain function of one signature.

In: a predictor of velocity-like answers (any prediction kind, any path), the starting noise, and the
times to visit. Out: latents. `on_step(i, x, data)` sees every step: the state and the data predicted.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kilopix.config import Config
from kilopix.diffusion.guidance import GuidanceConfig, Predict
from kilopix.diffusion.paths import PathConfig, shift_time
from kilopix.types import Prediction

SamplerName = Literal["euler", "heun"]
OnStep = Callable[[int, Tensor, Tensor], None]


class SamplingConfig(Config):
    """Sampler, number of steps, their spacing, and guidance."""

    sampler: SamplerName = "euler"
    steps: int = Field(default=25, ge=1, le=1000)
    shift: float = Field(default=1.0, gt=0, description="above 1 spends more steps near the noise")
    guidance: GuidanceConfig = GuidanceConfig()


@dataclass(frozen=True)
class SamplingChanges:
    """What a user changes of a model's own sampling settings; None leaves a setting as it is."""

    sampler: SamplerName | None = None
    steps: int | None = None
    guidance: float | None = None

    def apply(self, config: SamplingConfig) -> SamplingConfig:
        """The settings with the changes."""
        scale = config.guidance.scale if self.guidance is None else self.guidance
        return config.model_copy(
            update={
                "sampler": self.sampler or config.sampler,
                "steps": self.steps or config.steps,
                "guidance": config.guidance.model_copy(update={"scale": scale}),
            }
        )


UNCHANGED = SamplingChanges()


class Sampler(Protocol):
    """The signature that all samplers have."""

    def __call__(
        self,
        predict: Predict,
        noise: Float[Tensor, "B C H W"],
        times: Float[Tensor, " S"],
        path: PathConfig,
        prediction: Prediction,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """Walk from `noise` along `times`, which fall from 1 to 0."""
        ...


def times_for(config: SamplingConfig) -> Float[Tensor, " S"]:
    """The steps + 1 times that a sampler visits, from 1 down to 0."""
    return shift_time(torch.linspace(1, 0, config.steps + 1), config.shift)


def _velocity(
    predict: Predict, x: Tensor, t: Tensor, path: PathConfig, prediction: Prediction
) -> tuple[Tensor, Tensor]:
    """dx/dt and the data predicted at one time."""
    point = path.at(t)
    answer = predict(x, t.expand(len(x)))
    data, noise = point.data_and_noise(prediction, answer, x)
    return (answer if prediction == "velocity" else point.velocity(data, noise)), data


def euler(
    predict: Predict,
    noise: Float[Tensor, "B C H W"],
    times: Float[Tensor, " S"],
    path: PathConfig,
    prediction: Prediction,
    on_step: OnStep | None = None,
) -> Float[Tensor, "B C H W"]:
    """First order: one evaluation a step."""
    x = noise
    for i, (now, then) in enumerate(itertools.pairwise(times)):
        velocity, data = _velocity(predict, x, now, path, prediction)
        x = x + (then - now) * velocity
        if on_step:
            on_step(i, x, data)
    return x


def heun(
    predict: Predict,
    noise: Float[Tensor, "B C H W"],
    times: Float[Tensor, " S"],
    path: PathConfig,
    prediction: Prediction,
    on_step: OnStep | None = None,
) -> Float[Tensor, "B C H W"]:
    """Second order: two evaluations a step, one for the last (Karras et al. 2022, algorithm 1)."""
    x = noise
    last = len(times) - 2
    for i, (now, then) in enumerate(itertools.pairwise(times)):
        velocity, data = _velocity(predict, x, now, path, prediction)
        ahead = x + (then - now) * velocity
        if i < last:
            velocity_ahead, _ = _velocity(predict, ahead, then, path, prediction)
            ahead = x + (then - now) * 0.5 * (velocity + velocity_ahead)
        x = ahead
        if on_step:
            on_step(i, x, data)
    return x


SAMPLERS: dict[SamplerName, Sampler] = {"euler": euler, "heun": heun}
