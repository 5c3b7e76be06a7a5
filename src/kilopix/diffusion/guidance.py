"""Classifier-free guidance: two predictions in, one out. Scale 1 is off; the published w is scale - 1."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from kilopix.config import Config

Predict = Callable[[Tensor, Tensor], Tensor]


class GuidanceConfig(Config):
    """Scale, and the interval of times in which it acts (Kynkaanniemi et al. 2024); outside it is off."""

    scale: float = Field(default=4.0, ge=0)
    start: float = Field(default=1.0, ge=0, le=1, description="largest t at which guidance acts")
    stop: float = Field(default=0.0, ge=0, le=1, description="smallest t at which guidance acts")

    @model_validator(mode="after")
    def _start_is_above_stop(self):
        if self.start < self.stop:
            raise ValueError(f"start {self.start} is below stop {self.stop}; sampling goes from t = 1 to 0")
        return self


def guided(
    conditional: Predict, both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], config: GuidanceConfig
) -> Predict:
    """A predictor with guidance: uncond + scale (cond - uncond) inside the interval of times.

    `both` gives the conditional and the unconditional prediction from one call of the network;
    `conditional` alone is used where guidance is off, at half the cost.
    """

    def predict(x: Float[Tensor, "B C H W"], t: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
        time = float(t[0])
        if config.scale == 1.0 or not config.stop <= time <= config.start:
            return conditional(x, t)
        with_text, without = both(x, t)
        return torch.lerp(without, with_text, config.scale)

    return predict
