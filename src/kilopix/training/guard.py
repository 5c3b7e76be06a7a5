"""The guard: which steps are taken, and when a run goes back.

In: loss and gradient norm of every step, on the device. Out: whether the step may be taken, as a tensor that
optimizers read as `found_inf`, so that nothing is waited for; and, once the numbers have arrived on the
host, what to do: go on, go back to the last good checkpoint, or give up.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kilopix.config import Config

Action = Literal["go on", "go back", "give up"]


class GuardConfig(Config):
    """When a step is left out: loss or gradient norm not finite, or far above the usual.

    Far above: more than the factor and more than `deviations` standard deviations above the running mean,
    both on the logarithmic scale, of the last `window` steps or so. Not before `warmup` steps were taken.
    """

    norm_factor: float = Field(default=10.0, gt=1)
    loss_factor: float = Field(default=3.0, gt=1)
    deviations: float = Field(default=6.0, gt=0)
    window: int = Field(default=100, ge=2, le=1_000_000, description="steps")
    warmup: int = Field(default=100, ge=1, le=1_000_000, description="steps before spikes are looked for")
    patience: int = Field(default=5, ge=1, description="steps left out in a row before the run goes back")
    returns: int = Field(default=3, ge=0, description="times that a run goes back before it gives up")


@dataclass(frozen=True)
class Outcome:
    """A step as the host sees it, once the numbers have arrived."""

    loss: float
    norm: float
    taken: bool

    @property
    def reason(self) -> str:
        """Why the step was left out."""
        if not math.isfinite(self.loss):
            return f"the loss was {self.loss}"
        if not math.isfinite(self.norm):
            return f"the gradient norm was {self.norm}"
        return f"loss {self.loss:.4g} or gradient norm {self.norm:.4g} was far above the usual"


class Guard:
    """Running statistics of log loss and log norm on the device, and counts of bad steps on the host."""

    def __init__(self, config: GuardConfig, device: str):
        self.config = config
        self.statistics = torch.zeros(5, device=device)
        """Steps taken; mean and variance of log norm; mean and variance of log loss."""
        self.in_a_row = 0
        self.went_back = 0
        factors = torch.tensor([config.norm_factor, config.loss_factor])
        self._margins = factors.log().to(device)

    @torch.no_grad()
    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1 where the step may be taken, else 0; a step that is taken enters the statistics."""
        config, statistics = self.config, self.statistics
        values = torch.stack([norm, loss]).float()
        logs = values.clamp(min=1e-20).log()
        steps, means, variances = statistics[0], statistics[1::2], statistics[2::2]
        margins = torch.maximum(self._margins, config.deviations * variances.sqrt())
        usual = (logs <= means + margins).all() | (steps < config.warmup)
        taken = values.isfinite().all() & usual
        rate = 1 / (steps + 1).clamp(max=config.window)
        away = logs - means
        fresh = torch.stack([means + rate * away, (1 - rate) * (variances + rate * away.square())], dim=1)
        fresh = torch.cat([(steps + 1)[None], fresh.flatten()])
        statistics.copy_(torch.where(taken, fresh, statistics))
        return taken.float()

    def count(self, taken: bool) -> Action:
        """Take note of a step's outcome, in the order of steps, and say what to do."""
        self.in_a_row = 0 if taken else self.in_a_row + 1
        if self.in_a_row < self.config.patience:
            return "go on"
        return "go back" if self.went_back < self.config.returns else "give up"
