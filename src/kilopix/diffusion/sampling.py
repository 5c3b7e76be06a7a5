"""Sampling as a user sets it: sampler, steps, spacing, guidance, thresholds; presets; and the walk itself.

In: a predictor, starting noise and a `SamplingConfig`. Out: latents.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kilopix.config import Config, parse
from kilopix.diffusion.guidance import ConstantGuidance, GuidanceConfig, Predict
from kilopix.diffusion.paths import PathConfig, data_of_state
from kilopix.diffusion.samplers import SAMPLERS, Denoise, FreshNoise, OnStep, SamplerName
from kilopix.diffusion.schedule import EvenSpacing, FlowSpacing, SpacingConfig, times_for
from kilopix.types import Prediction, UserError


class NoThreshold(Config):
    """The predicted data are taken as they are."""

    kind: Literal["none"] = "none"


class Clamp(Config):
    """Predicted data are cut at +-value."""

    kind: Literal["clamp"] = "clamp"
    value: float = Field(default=1.2, gt=0)


class DynamicThreshold(Config):
    """Predicted data are cut at a percentile of their absolute values and divided by it, where it is above
    `least` (Imagen, section 2.3); with `per_channel`, for each channel apart."""

    kind: Literal["dynamic"] = "dynamic"
    percentile: float = Field(default=0.995, gt=0, le=1)
    least: float = Field(default=1.0, gt=0)
    per_channel: bool = False


ThresholdConfig = Annotated[NoThreshold | Clamp | DynamicThreshold, Field(discriminator="kind")]


class SamplingConfig(Config):
    """Sampler, steps, their spacing, guidance, and what the network is told.

    `negative_prompt` takes the place of the empty text in guidance. The coherence pair is for networks with
    a coherence token, `carry_latents` for those that condition on their own latents of the step before.
    """

    sampler: SamplerName = "euler"
    steps: int = Field(default=25, ge=1, le=1000)
    spacing: SpacingConfig = EvenSpacing()
    guidance: GuidanceConfig = ConstantGuidance()
    threshold: ThresholdConfig = NoThreshold()
    negative_prompt: str = ""
    coherence: float = Field(default=1.0, ge=0, le=1)
    coherence_without_text: float = Field(default=0.0, ge=0, le=1)
    carry_latents: bool = True


PresetName = Literal["recommended", "published"]
PRESETS: dict[PresetName, SamplingConfig] = {
    "recommended": SamplingConfig(sampler="dpmpp_2m", steps=25, spacing=FlowSpacing(shift=2.0)),
    "published": SamplingConfig(
        sampler="ddim",
        steps=250,
        guidance=ConstantGuidance(scale=16.0, start=0.999),
        threshold=Clamp(value=1.2),
    ),
}
"""`recommended`: the fewest steps for what they reach, for every network and path (docs/sampling.md).
`published`: the released CAD-I pipeline (w = 15, which is scale 16, and none at the first step)."""


@dataclass(frozen=True)
class SamplingChanges:
    """What a user changes of a model's own sampling settings; None leaves a setting as it is."""

    sampler: SamplerName | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    preset: PresetName | None = None

    def apply(self, config: SamplingConfig) -> SamplingConfig:
        """The settings with the changes, checked; a preset replaces all of them first."""
        if self.preset is not None:
            if not isinstance(self.preset, str) or self.preset not in PRESETS:
                raise UserError(f"preset {self.preset!r}: {' and '.join(PRESETS)} are known.")
            config = PRESETS[self.preset]
        for name, value in (("steps", self.steps), ("guidance", self.guidance)):
            if isinstance(value, bool):  # which would pass for 0 or 1
                raise UserError(f"{name}: must be a number (got {value}).")
        values = config.model_dump()
        for name in ("sampler", "steps", "negative_prompt"):
            given = getattr(self, name)
            values[name] = values[name] if given is None else given
        if self.guidance is not None:
            values["guidance"]["scale"] = self.guidance
        return parse(SamplingConfig, values, "sampling settings")


UNCHANGED = SamplingChanges()


def sample(
    predict: Predict,
    noise: Float[Tensor, "B C H W"],
    config: SamplingConfig,
    path: PathConfig,
    prediction: Prediction,
    fresh_noise: FreshNoise,
    on_step: OnStep | None = None,
) -> Float[Tensor, "B C H W"]:
    """Latents from standard noise; `fresh_noise` is asked by the samplers that add noise on their way."""
    times = times_for(config.spacing, config.steps, path)
    denoise = denoiser(predict, path, prediction, config.threshold)
    start = path.at(times[0]).sigma * noise
    end = SAMPLERS[config.sampler](denoise, start, times, path, fresh_noise, on_step)
    return data_of_state(path, end)


def denoiser(
    predict: Predict, path: PathConfig, prediction: Prediction, threshold: ThresholdConfig
) -> Denoise:
    """What data and noise a predictor sees; after a threshold, the noise is what the data leave."""

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        point = path.at(t)
        data, noise = point.data_and_noise(prediction, predict(x, t), x)
        if isinstance(threshold, NoThreshold):
            return data, noise
        data = limited(data, threshold)
        return data, point.noise_of(data, x)

    return denoise


def limited(data: Float[Tensor, "B C H W"], threshold: ThresholdConfig) -> Float[Tensor, "B C H W"]:
    """Predicted data after a threshold."""
    if isinstance(threshold, NoThreshold):
        return data
    if isinstance(threshold, Clamp):
        return data.clamp(-threshold.value, threshold.value)
    values = data.abs().flatten(2 if threshold.per_channel else 1)
    limit = torch.quantile(values, threshold.percentile, dim=-1).clamp(min=threshold.least)
    limit = limit.view(len(data), -1, 1, 1)
    return data.clamp(-limit, limit) / limit
