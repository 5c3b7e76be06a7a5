"""Looks into shards: a caption, its picture decoded, its latents, and what training sees at each noise level.

In: shards and the model that is trained on them. Out: pictures. The latents are mixed with noise along the
model's own path, and decoded, so that one sees why an augmented picture does no harm above a noise level.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kilopix.data.shards import Sample, Shards
from kilopix.diffusion.objective import ObjectiveConfig
from kilopix.diffusion.paths import data_of_state
from kilopix.errors import UserError
from kilopix.runtime import torch_generator
from kilopix.types import LatentMoments
from kilopix.web.models import ServedModel

TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_REACH = 2.5  # standard deviations of a channel that the colours of its map span
_BLUE, _WHITE, _RED = np.array([33, 102, 172.0]), np.array([247, 247, 247.0]), np.array([178, 24, 43.0])


@dataclass(frozen=True)
class Version:
    """A plain or augmented picture: its caption, itself, its latents, and itself at each of `TIMES`."""

    kind: str
    caption: str
    picture: Image.Image
    latents: Image.Image
    noisy: list[Image.Image]


@dataclass(frozen=True)
class Look:
    """One picture of the shards in its versions, the plain one first."""

    path: str
    class_name: str
    tokens: int
    versions: list[Version]


class DataView:
    """Shards, looked at through the autoencoder of a model; call it on the thread that owns the model."""

    def __init__(self, folder: Path, model: ServedModel):
        self.shards = Shards(folder)
        index = self.shards.index
        if index.autoencoder_fingerprint != model.generator.autoencoder_fingerprint:
            raise UserError(
                f"{folder}: was encoded with autoencoder {index.autoencoder_fingerprint}, {model.name} with "
                f"{model.generator.autoencoder_fingerprint}; give the shards that it was trained on."
            )
        self.model = model
        self._captions = self.shards.column("augmented", "caption")
        self._classes = self.shards.column("plain", "class_name")
        self._kinds = self.shards.column("augmented", "kind")

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def objective(self) -> ObjectiveConfig:
        """How the model is trained."""
        return self.model.generator.recipe.objective

    def about(self) -> str:
        """The shards in a sentence."""
        index = self.shards.index
        return (
            f"{index.plain:,} plain and {index.augmented:,} augmented pictures of {index.image_size} pixels; "
            f"latents {' x '.join(map(str, index.latent_shape))} by {index.autoencoder_name}; text by "
            f"{index.text_encoder_name}."
        )

    def look(self, i: int) -> Look:
        """Picture number i, and its first augmented version, if it has one."""
        plain = self.shards.plain(i)
        versions = [self._version(plain, "plain", " / ".join(self.shards.captions(i)))]
        if (augmented := self.shards.augmented(i)) is not None:
            j = self.shards.versions(i)[0]
            caption = self._captions[j].as_py()
            versions.append(self._version(augmented, self._kinds[j].as_py(), caption))
        return Look(plain.path, self._classes[i].as_py(), len(plain.text), versions)

    @torch.inference_mode()
    def _version(self, sample: Sample, kind: str, caption: str) -> Version:
        latents = torch.from_numpy(sample.mean.astype(np.float32))[None]
        maps = self._maps(latents[0])
        if whitening := self.shards.whitening:
            latents = whitening.whiten(LatentMoments(latents, torch.zeros_like(latents))).mean
        noise = torch.randn(latents.shape, generator=torch_generator("look", sample.path))
        path = self.objective.path
        states = [data_of_state(path, path.at(torch.tensor(t)).mix(latents, noise)) for t in TIMES]
        pictures = self.model.pictures(torch.cat([latents, *states]).to(self.model.generator.device))
        return Version(kind, caption, pictures[0], maps, pictures[1:])

    def _maps(self, latents: Tensor) -> Image.Image:
        """The channels of latents side by side: blue below their mean, red above."""
        statistics = self.shards.index.latent_statistics
        mean, std = np.array(statistics.mean), np.array(statistics.std)
        levels = (latents.numpy() - mean[:, None, None]) / (_REACH * np.maximum(std, 1e-6)[:, None, None])
        levels = np.clip(levels, -1, 1)[..., None]
        colors = (
            np.where(levels < 0, _WHITE + (_WHITE - _BLUE) * levels, _WHITE + (_RED - _WHITE) * levels)
            .round()
            .astype(np.uint8)
        )
        channels, height, width, _ = colors.shape
        columns = int(np.ceil(channels**0.5))
        rows = -(-channels // columns)
        gap = 1
        sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
        for number, channel in enumerate(colors):
            y, x = (number // columns) * (height + gap), (number % columns) * (width + gap)
            sheet[y : y + height, x : x + width] = channel
        return Image.fromarray(sheet)
