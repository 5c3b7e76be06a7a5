"""The training objective: which time, which version of a sample, which text, and the loss.

In: clean latents, text, a network, a `torch.Generator`. Out: a loss per sample. The random decisions are
drawn first (`draw`), so that a loader reads only the version of a sample that is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from kilopix.config import Config
from kilopix.diffusion.paths import PathConfig, StraightPath, expand, shift_time
from kilopix.types import Prediction, TextStates


class UniformTime(Config):
    """t uniform in [0, 1]."""

    kind: Literal["uniform"] = "uniform"


class LogitNormalTime(Config):
    """t = sigmoid(z), z normal (Esser et al. 2024, eq. 19); mean above 0 leans to noise."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)


class ObjectiveConfig(Config):
    """What the network predicts, along which path, and which version of a sample and its text is used.

    `short_captions` is the share of plain samples that are shown with their short caption.
    """

    path: PathConfig = StraightPath()
    prediction: Prediction = "velocity"
    time: Annotated[UniformTime | LogitNormalTime, Field(discriminator="kind")] = LogitNormalTime()
    time_shift: float = Field(default=1.0, gt=0)
    stratified: bool = True
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    short_captions: float = Field(default=0.0, ge=0, le=1)
    augment_above: float = Field(default=0.4, ge=0, le=1)
    augment_probability: float = Field(default=0.5, ge=0, le=1)


@dataclass(frozen=True)
class Draw:
    """The decisions for a batch: times, and of each sample the version, the caption, and if it has one."""

    t: Float[Tensor, " B"]
    augmented: Bool[Tensor, " B"]
    short: Bool[Tensor, " B"]
    drop_text: Bool[Tensor, " B"]


def draw(config: ObjectiveConfig, batch: int, generator: torch.Generator) -> Draw:
    """Draw the decisions; an augmented version is taken where t > tau, with probability p."""
    u = torch.rand(batch, generator=generator)
    if config.stratified:
        u = (torch.randperm(batch, generator=generator) + u) / batch
    if isinstance(config.time, LogitNormalTime):
        z = torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6)).float()
        u = torch.sigmoid(config.time.mean + config.time.std * z)
    t = shift_time(u, config.time_shift)
    chosen = torch.rand(batch, generator=generator) < config.augment_probability
    dropped = torch.rand(batch, generator=generator) < config.caption_dropout
    short = torch.rand(batch, generator=generator) < config.short_captions
    augmented = chosen & (t > config.augment_above)
    return Draw(t, augmented, short & ~augmented, dropped)


def drop_text(text: TextStates, empty: TextStates, dropped: Bool[Tensor, " B"]) -> TextStates:
    """Replace the text of dropped samples by the empty text's states, in new tensors."""

    def padded(x: Tensor, length: int) -> Tensor:
        missing = length - x.shape[1]
        return torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], dim=1) if missing else x

    length = max(text.states.shape[1], empty.states.shape[1])
    states = torch.where(dropped[:, None, None], padded(empty.states, length), padded(text.states, length))
    mask = torch.where(dropped[:, None], padded(empty.mask, length), padded(text.mask, length))
    return TextStates(states, mask)


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
