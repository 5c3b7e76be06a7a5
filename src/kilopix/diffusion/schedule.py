"""Which times a sampler visits.

In: a spacing, a number of steps and a path. Out: steps + 1 times in float64, from 1 down to 0.
"""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from kilopix.config import Config
from kilopix.diffusion.paths import PathConfig, log_snr, shift_time, time_of_log_snr


class EvenSpacing(Config):
    """Even in t, moved towards the noise by `shift` (Esser et al. 2024, eq. 23)."""

    kind: Literal["even"] = "even"
    shift: float = Field(default=1.0, gt=0, description="above 1 spends more steps near the noise")


class FlowSpacing(Config):
    """Even in r = sigma / (alpha + sigma), the time of the straight path that every path can be written as,
    moved towards the noise by `shift`: on the straight path it is `even`, on others it is better.
    """

    kind: Literal["flow"] = "flow"
    shift: float = Field(default=2.0, gt=0)


class LogSNRSpacing(Config):
    """Even in the log signal-to-noise ratio log(alpha / sigma), between two ends (Lu et al. 2022)."""

    kind: Literal["log_snr"] = "log_snr"
    noisiest: float = -4.4
    cleanest: float = 4.4

    @model_validator(mode="after")
    def _ends_are_in_order(self):
        if self.noisiest >= self.cleanest:
            raise ValueError(f"noisiest {self.noisiest} must be below cleanest {self.cleanest}")
        return self


class KarrasSpacing(Config):
    """Even in (sigma / alpha)^(1 / rho) between two ends (Karras et al. 2022, eq. 5)."""

    kind: Literal["karras"] = "karras"
    sigma_max: float = Field(default=80.0, gt=0)
    sigma_min: float = Field(default=0.002, gt=0)
    rho: float = Field(default=7.0, gt=0)

    @model_validator(mode="after")
    def _ends_are_in_order(self):
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"sigma_max {self.sigma_max} must be above sigma_min {self.sigma_min}")
        return self


SpacingConfig = Annotated[
    EvenSpacing | FlowSpacing | LogSNRSpacing | KarrasSpacing, Field(discriminator="kind")
]


def times_for(spacing: SpacingConfig, steps: int, path: PathConfig) -> Float[Tensor, " S"]:
    """The times that a sampler visits; the first is 1 and the last 0 whatever the spacing's ends."""
    even = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    if isinstance(spacing, EvenSpacing):
        return shift_time(even, spacing.shift)
    noisiest, cleanest = log_snr(path, torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    if isinstance(spacing, FlowSpacing):
        levels = -torch.logit(shift_time(even[1:-1], spacing.shift))
    else:
        levels = _levels(spacing, steps, noisiest, cleanest)
    inner = time_of_log_snr(path, levels.clamp(noisiest, cleanest))
    return torch.cat([torch.ones(1, dtype=torch.float64), inner, torch.zeros(1, dtype=torch.float64)])


def _levels(spacing: LogSNRSpacing | KarrasSpacing, steps: int, noisiest: float, cleanest: float) -> Tensor:
    """Log signal-to-noise ratios of the inner times, between the spacing's ends or the path's."""
    done = torch.arange(1, steps, dtype=torch.float64) / max(steps - 1, 1)
    if isinstance(spacing, LogSNRSpacing):
        first, last = max(spacing.noisiest, noisiest), min(spacing.cleanest, cleanest)
        return first + (last - first) * done
    first = max(-math.log(spacing.sigma_max), noisiest)
    last = min(-math.log(spacing.sigma_min), cleanest)
    first, last = math.exp(-first / spacing.rho), math.exp(-last / spacing.rho)
    return -spacing.rho * torch.log(first + (last - first) * done)
