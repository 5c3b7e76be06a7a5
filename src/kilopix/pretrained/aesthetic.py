"""LAION's aesthetic predictors: a small head on normalised CLIP ViT-L/14 image embeddings.

In: embeddings, and the head's weights as safetensors (`kilopix convert` makes them of the published .pth).
Out: one score a picture, about 1 to 10. Both published heads are read: the linear one of
`aesthetic-predictor` and the deeper one of `improved-aesthetic-predictor`, which has no activations either.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kilopix.pretrained.weights import file_digest, read_weights_file
from kilopix.types import UserError

_LAYERS = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
"""Numbers of the published layers, between which dropout stands, and their widths."""


class AestheticHead:
    """A head that scores CLIP embeddings."""

    name = "aesthetic"

    def __init__(self, layers: nn.Sequential, weights: Path, device: str):
        self._layers = layers.to(device).eval().requires_grad_(False)
        self._weights = weights
        self.width: int = layers[0].in_features  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def fingerprint(self) -> str:
        """Equal for two heads exactly if they give the same scores."""
        return f"{self.name}-{file_digest(self._weights)}"

    def score(self, embeddings: Float[Tensor, "B F"]) -> Float[Tensor, " B"]:
        """One score for each embedding, which is normalised here."""
        with torch.inference_mode():
            return self._layers(F.normalize(embeddings.float(), dim=1)).squeeze(1)


def load_aesthetic(weights: Path, device: str = "cpu") -> AestheticHead:
    """Either published head from a safetensors file; another file is a `UserError`."""
    return AestheticHead(aesthetic_layers(read_weights_file(weights), weights), weights, device)


def aesthetic_layers(tensors: dict[str, Tensor], origin: Path) -> nn.Sequential:
    """The layers of either published head; other tensors are a `UserError` that names where they are from."""
    if tensors.keys() == {"weight", "bias"}:
        return nn.Sequential(_linear(tensors, "", tensors["weight"].shape[1], 1, origin))
    expected = {f"layers.{i}.{kind}" for i in _LAYERS for kind in ("weight", "bias")}
    if tensors.keys() != expected:
        different = min(expected ^ tensors.keys())
        raise UserError(f"{origin}: not the weights of an aesthetic predictor ({different} does not fit).")
    return nn.Sequential(
        *(_linear(tensors, f"layers.{i}.", *widths, origin) for i, widths in _LAYERS.items())
    )


def _linear(tensors: dict[str, Tensor], prefix: str, inputs: int, outputs: int, origin: Path) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    if tensors[f"{prefix}weight"].shape != layer.weight.shape:
        raise UserError(
            f"{origin}: {prefix}weight is not {outputs} x {inputs}, as an aesthetic predictor's is."
        )
    layer.load_state_dict({name: tensors[prefix + name] for name in ("weight", "bias")})
    return layer
