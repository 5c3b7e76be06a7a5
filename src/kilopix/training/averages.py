"""Averaged weights: the copy of a network that is sampled from.

In: a network after every step. Out: the exponential moving average of its weights, on the clock of
images seen, so that the batch size does not change its meaning.
"""

import copy

import torch
from pydantic import Field
from torch import Tensor, nn

from kilopix.config import Config


class AverageConfig(Config):
    """Half-life in images, at most a share of the images seen so far (EDM2, appendix B: the ramp-up)."""

    half_life_images: float = Field(default=500_000, gt=0)
    ramp: float = Field(default=0.05, gt=0, le=1)


class ExponentialAverage:
    """average <- beta average + (1 - beta) weights, with beta = 2^(-batch / half-life)."""

    def __init__(self, network: nn.Module, config: AverageConfig):
        self.config = config
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.networks = [self.network]

    def beta(self, images_seen: int, batch: int) -> float:
        """The weight that the old average keeps at this step."""
        half_life = min(self.config.half_life_images, self.config.ramp * images_seen)
        return 0.5 ** (batch / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, network: nn.Module, images_seen: int, batch: int) -> None:
        """Take in the weights after a step; `images_seen` counts that step's batch."""
        averages: list[Tensor] = list(self.network.parameters())
        weights: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averages, weights, 1 - self.beta(images_seen, batch))
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)
