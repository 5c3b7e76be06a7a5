"""Averaged weights: the copies of a network that are sampled from.

In: a network after every step. Out: averages of its weights, on the clock of images seen, so that the
batch size does not change their meaning. `network` is the average that is used, `networks` are all.
"""

import copy
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from kilopix.config import Config
from kilopix.training.parallel import local
from kilopix.training.posthoc import WIDEST, decay


class ExponentialConfig(Config):
    """Half-life in images, at most a share of the images seen so far (EDM2, appendix B: the ramp-up)."""

    kind: Literal["exponential"] = "exponential"
    half_life_images: float = Field(default=500_000, gt=0)
    ramp: float = Field(default=0.05, gt=0, le=1)


class PowerConfig(Config):
    """Averages whose length grows with the run (EDM2, section 3.1), of which snapshots are stored.

    `sigma_rel` are their widths, as shares of the run; the first is the one that is used. Snapshots are
    taken every `snapshot_every` images; when more than `snapshots` would be kept, every second one goes
    and the interval doubles.
    """

    kind: Literal["power"] = "power"
    sigma_rel: tuple[float, ...] = Field(default=(0.10, 0.05), min_length=1)
    snapshot_every: int = Field(default=10_000, ge=1, description="images between snapshots at first")
    snapshots: int = Field(default=32, ge=4, le=10_000, description="the most moments that are kept")
    snapshot_dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    @model_validator(mode="after")
    def _widths_are_possible(self):
        for width in self.sigma_rel:
            if not 0 < width <= WIDEST:
                raise ValueError(f"sigma_rel {width} must be above 0 and at most {WIDEST}")
        if len(set(self.sigma_rel)) < len(self.sigma_rel):
            raise ValueError(f"sigma_rel names a width twice: {self.sigma_rel}")
        return self


def _exponential_unless_named(values: Any) -> Any:
    """Recipes in the headers of older weights do not name the kind, of which there was one."""
    return {"kind": "exponential", **values} if isinstance(values, dict) else values


AverageConfig = Annotated[
    ExponentialConfig | PowerConfig,
    Field(discriminator="kind"),
    BeforeValidator(_exponential_unless_named),
]


class ExponentialAverage:
    """average <- beta average + (1 - beta) weights, with beta = 2^(-batch / half-life)."""

    def __init__(self, network: nn.Module, config: ExponentialConfig):
        self.config = config
        self.network = _copied(network)
        self.networks = [self.network]

    def beta(self, images_seen: int, batch: int) -> float:
        """The weight that the old average keeps at this step."""
        half_life = min(self.config.half_life_images, self.config.ramp * images_seen)
        return 0.5 ** (batch / max(half_life, 1e-8))

    def update(self, network: nn.Module, images_seen: int, batch: int, taken: Tensor | None = None) -> None:
        """Take in the weights after a step, unless `taken` is 0; `images_seen` counts that step's batch."""
        move_towards(self.network, network, 1 - self.beta(images_seen, batch), taken)


class PowerAverages:
    """average <- beta average + (1 - beta) weights, with beta = (1 - batch / images seen)^(gamma + 1).

    The network of time tau has then the weight tau^gamma, however long the run becomes; what the weights
    were before the first step is gone after it.
    """

    def __init__(self, network: nn.Module, config: PowerConfig):
        self.config = config
        self.networks = [_copied(network) for _ in config.sigma_rel]
        self.network = self.networks[0]

    def update(self, network: nn.Module, images_seen: int, batch: int, taken: Tensor | None = None) -> None:
        """Take in the weights after a step, unless `taken` is 0; `images_seen` counts that step's batch."""
        for average, width in zip(self.networks, self.config.sigma_rel, strict=True):
            move_towards(average, network, 1 - decay(width, images_seen, batch), taken)


Average = ExponentialAverage | PowerAverages


def build_average(network: nn.Module, config: ExponentialConfig | PowerConfig) -> Average:
    """The averages of a config, which begin as copies of the network."""
    if isinstance(config, PowerConfig):
        return PowerAverages(network, config)
    return ExponentialAverage(network, config)


@torch.no_grad()
def move_towards(average: nn.Module, network: nn.Module, share: float, taken: Tensor | None = None) -> None:
    """Move an average's parameters by a share of the way to the network's, and copy its buffers.

    The tensors may be shards, as long as both networks are sharded alike. `taken`, on the device and not
    waited for, is 1, or 0 after a step that was left out, which leaves the average where it is.
    """
    averages: list[Tensor] = [local(p) for p in average.parameters()]
    weights: list[Tensor] = [local(p) for p in network.parameters()]
    if taken is None:
        torch._foreach_lerp_(averages, weights, share)
    else:
        torch._foreach_lerp_(averages, weights, [share * taken] * len(weights))
    for old, new in zip(average.buffers(), network.buffers(), strict=True):
        old.copy_(new)


def _copied(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).eval().requires_grad_(False)
