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


SpacingConfig = Annotated[EvenSpacing | LogSNRSpacing | KarrasSpacing, Field(discriminator="kind")]


def times_for(spacing: SpacingConfig, steps: int, path: PathConfig) -> Float[Tensor, " S"]:
    """The times that a sampler visits; the first is 1 and the last 0 whatever the spacing's ends."""
    if isinstance(spacing, EvenSpacing):
        return shift_time(1 - torch.arange(steps + 1, dtype=torch.float64) / steps, spacing.shift)
    first, last = _ends(spacing, path)
    done = torch.arange(1, steps, dtype=torch.float64) / max(steps - 1, 1)
    if isinstance(spacing, LogSNRSpacing):
        levels = first + (last - first) * done
    else:
        first, last = math.exp(-first / spacing.rho), math.exp(-last / spacing.rho)
        levels = -spacing.rho * torch.log(first + (last - first) * done)
    inner = time_of_log_snr(path, levels)
    return torch.cat([torch.ones(1, dtype=torch.float64), inner, torch.zeros(1, dtype=torch.float64)])


def _ends(spacing: LogSNRSpacing | KarrasSpacing, path: PathConfig) -> tuple[float, float]:
    """Log signal-to-noise ratios between which to walk: the spacing's, where the path goes as far."""
    if isinstance(spacing, LogSNRSpacing):
        first, last = spacing.noisiest, spacing.cleanest
    else:
        first, last = -math.log(spacing.sigma_max), -math.log(spacing.sigma_min)
    noisiest, cleanest = log_snr(path, torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    return max(first, noisiest), min(last, cleanest)
