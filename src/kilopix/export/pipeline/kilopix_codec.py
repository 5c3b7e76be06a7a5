"""kilopix's patch codec: an autoencoder that is only linear algebra. In: latents. Out: images in [-1, 1]."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


@dataclass
class Decoded:
    """Images, as autoencoders of diffusers return them."""

    sample: torch.Tensor


class KilopixPatchCodec(ModelMixin, ConfigMixin):
    """Each patch of the image from its own code and the eight around it."""

    @register_to_config
    def __init__(self, patch: int, channels: int):
        super().__init__()
        values = 3 * patch**2
        self.mean = nn.Parameter(torch.zeros(values))
        self.analysis = nn.Parameter(torch.zeros(channels, values))
        self.synthesis = nn.Parameter(torch.zeros(values, channels, 3, 3))

    def encode(self, images):
        """Latents of images in [-1, 1]."""
        patch = self.config.patch
        kernel = self.analysis.reshape(-1, 3, patch, patch)
        return F.conv2d(images, kernel, bias=-self.analysis @ self.mean, stride=patch)

    def decode(self, latents):
        """Images in [-1, 1]."""
        patches = F.conv2d(latents, self.synthesis, bias=self.mean, padding=1)
        return Decoded(F.pixel_shuffle(patches, self.config.patch).clamp(-1, 1))
