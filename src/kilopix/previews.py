"""Pictures while they are sampled: what a step predicts, decoded well or cheaply.

In: latents of data predicted at a step. Out: PIL images of the final size. A patch codec decodes in no time;
for other autoencoders a linear map from latents to colours, fitted once to a few decoded latents, stands in.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from kilopix.pretrained.autoencoder import Autoencoder
from kilopix.pretrained.patch_codec import PatchCodec

_FIT_PICTURES, _FIT_SIDE = 16, 4


@dataclass(frozen=True)
class SamplingStep:
    """One step of one batch: `number` of `steps`, counted from 1; the first picture's place among all.

    `previews()` is what the pictures would be if sampling ended here: cheap, and coarse where the
    autoencoder is a network; `previews(exact=True)` decodes with the autoencoder itself.
    """

    number: int
    steps: int
    first: int
    latents: Float[Tensor, "B C H W"]
    decode: Callable[[Tensor, bool], list[Image.Image]]

    def previews(self, exact: bool = False) -> list[Image.Image]:
        """One image for every picture of the batch."""
        return self.decode(self.latents, exact)


OnSamplingStep = Callable[[SamplingStep], None]


def as_images(pixels: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """PIL images of pixels in [-1, 1]."""
    values = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(array) for array in values.permute(0, 2, 3, 1).cpu().numpy()]


@dataclass(frozen=True)
class LinearDecoder:
    """Colours of a latent position as a linear map of its channels."""

    weight: Float[Tensor, "3 C"]
    bias: Float[Tensor, " 3"]
    scale: int

    @staticmethod
    def fit(autoencoder: Autoencoder) -> "LinearDecoder":
        """Least squares on the mean colours that the autoencoder decodes from random latents."""
        shape = (_FIT_PICTURES, autoencoder.channels, _FIT_SIDE, _FIT_SIDE)
        # Neighbours are alike, as in pictures: single positions of noise decode to texture.
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        latents = 0.8 * latents.mean(dim=(2, 3), keepdim=True) * _FIT_SIDE + 0.6 * latents
        pixels = autoencoder.decode(latents).float().cpu()
        colors = F.avg_pool2d(pixels, autoencoder.downsampling)
        inputs = rearrange(latents, "b c h w -> (b h w) c")
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        solution = torch.linalg.lstsq(inputs, rearrange(colors, "b c h w -> (b h w) c")).solution
        return LinearDecoder(solution[:-1].T.contiguous(), solution[-1], autoencoder.downsampling)

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Coarse pixels in about [-1, 1], enlarged to the picture's size."""
        latents = latents.float().cpu()
        colors = torch.einsum("kc,bchw->bkhw", self.weight, latents) + self.bias[:, None, None]
        return F.interpolate(colors, scale_factor=self.scale, mode="bilinear").clamp(-1, 1)


def cheap_decoder(autoencoder: Autoencoder) -> Callable[[Tensor], Tensor]:
    """The fastest way to see latents: the codec itself where it is linear, else a linear stand-in."""
    if isinstance(autoencoder, PatchCodec):
        return autoencoder.decode
    return LinearDecoder.fit(autoencoder).decode
