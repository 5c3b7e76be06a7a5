"""The values that pass between libraries, and the legend of axis names in their shapes.

Axes, as written in jaxtyping shapes everywhere in kilopix:

    B  batch            C  channels of a latent or an image    H W  height and width
    N  text tokens      D  width of a text state               T  tokens inside a network
    K  classes          F  width of a feature                  S  steps
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from kilopix.errors import UserError as UserError

Prediction = Literal["noise", "velocity", "data"]


@dataclass(frozen=True)
class TextStates:
    """Per-token states of a text encoder; `mask` is true where a token is real."""

    states: Float[Tensor, "B N D"]
    mask: Bool[Tensor, "B N"]

    def to(self, device) -> "TextStates":
        """The same states on another device."""
        return TextStates(self.states.to(device), self.mask.to(device))


@dataclass(frozen=True)
class LatentMoments:
    """Mean and standard deviation of an autoencoder's latents; a deterministic codec has std 0."""

    mean: Float[Tensor, "B C H W"]
    std: Float[Tensor, "B C H W"]


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of every channel of a data set's latents."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def whiten(self, moments: LatentMoments) -> LatentMoments:
        """Latents of mean 0 and variance 1 in every channel."""
        mean, std = self._as_tensors(moments.mean)
        return LatentMoments((moments.mean - mean) / std, moments.std / std)

    def restore(self, latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The autoencoder's latents from whitened ones."""
        mean, std = self._as_tensors(latents)
        return latents * std + mean

    def _as_tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (like.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return mean, std


@dataclass(frozen=True)
class Detection:
    """One object that a detector found; `box` is (x1, y1, x2, y2) in pixels, `color` a name or None."""

    name: str
    box: tuple[float, float, float, float]
    score: float
    color: str | None = None
