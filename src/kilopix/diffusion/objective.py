"""The training objective: which time, which version of a sample, which text, and the loss.

In: clean latents, text, a network, a `torch.Generator`. Out: a loss per sample. The random decisions are
drawn first (`draw`), so that a loader reads only the version of a sample that is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from kilopix.config import Config
from kilopix.diffusion.paths import EDMPath, GammaPath, PathConfig, StraightPath, expand, shift_time
from kilopix.types import Prediction


class UniformTime(Config):
    """t uniform in [0, 1]."""

    kind: Literal["uniform"] = "uniform"


class LogitNormalTime(Config):
    """t = sigmoid(z), z normal (Esser et al. 2024, eq. 19); mean above 0 leans to noise."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)


class LogNormalSigma(Config):
    """EDM's log-normal noise levels (Karras et al. 2022, table 1), for the path `edm` alone."""

    kind: Literal["lognormal_sigma"] = "lognormal_sigma"
    mean: float = -1.2
    std: float = Field(default=1.2, gt=0)


TimeConfig = Annotated[UniformTime | LogitNormalTime | LogNormalSigma, Field(discriminator="kind")]


class ObjectiveConfig(Config):
    """What the network predicts, along which path, and which version of a sample and its text is used.

    `short_captions` is the share of samples, plain or augmented, that are shown with their short caption;
    `self_conditioning` the share that sees the latents of a first pass, in networks that have them.
    """

    path: PathConfig = StraightPath()
    prediction: Prediction = "velocity"
    time: TimeConfig = LogitNormalTime()
    time_shift: float = Field(default=1.0, gt=0)
    stratified: bool = True
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    short_captions: float = Field(default=0.0, ge=0, le=1)
    augment_above: float = Field(default=0.4, ge=0, le=1)
    augment_probability: float = Field(default=0.5, ge=0, le=1)
    self_conditioning: float = Field(default=0.9, ge=0, le=1)

    @model_validator(mode="after")
    def _times_and_predictions_fit_the_path(self):
        if isinstance(self.time, LogNormalSigma) and not isinstance(self.path, EDMPath):
            raise ValueError("time 'lognormal_sigma' is for path 'edm'")
        if self.prediction == "noise" and not isinstance(self.path, GammaPath):
            raise ValueError(
                f"prediction 'noise' says nothing of the data at t = 1 of path {self.path.kind!r}; "
                "choose 'velocity' or 'data'"
            )
        if self.prediction == "data" and isinstance(self.path, EDMPath):
            raise ValueError("path 'edm' is trained with prediction 'velocity', which is EDM's own target")
        return self


@dataclass(frozen=True)
class Draw:
    """The decisions for a batch: times, and of each sample the version, the caption, and what it sees."""

    t: Float[Tensor, " B"]
    augmented: Bool[Tensor, " B"]
    short: Bool[Tensor, " B"]
    drop_text: Bool[Tensor, " B"]
    self_condition: Bool[Tensor, " B"]


def draw(config: ObjectiveConfig, batch: int, generator: torch.Generator) -> Draw:
    """Draw the decisions; an augmented version is taken where t > tau, with probability p."""
    u = torch.rand(batch, generator=generator)
    if config.stratified:
        u = (torch.randperm(batch, generator=generator) + u) / batch
    t = shift_time(_times(config, u), config.time_shift)
    chosen = torch.rand(batch, generator=generator) < config.augment_probability
    dropped = torch.rand(batch, generator=generator) < config.caption_dropout
    short = torch.rand(batch, generator=generator) < config.short_captions
    self_conditioned = torch.rand(batch, generator=generator) < config.self_conditioning
    augmented = chosen & (t > config.augment_above)
    return Draw(t, augmented, short, dropped, self_conditioned)


def _times(config: ObjectiveConfig, u: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Times of the quantiles u."""
    if isinstance(config.time, UniformTime):
        return u
    z = torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6)).float()
    levels = config.time.mean + config.time.std * z
    if isinstance(config.time, LogitNormalTime):
        return torch.sigmoid(levels)
    assert isinstance(config.path, EDMPath)
    return config.path.time_of(levels.exp())


def loss_per_sample(
    config: ObjectiveConfig,
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Float[Tensor, "B C H W"],
    noise: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """Mean squared error of the prediction at x_t, per sample."""
    point = config.path.at(expand(t))
    prediction = predict(point.mix(latents, noise), t)
    target = point.target(config.prediction, latents, noise)
    return (prediction - target).square().mean(dim=(1, 2, 3))
