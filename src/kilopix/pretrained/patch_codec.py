"""An autoencoder that is only linear algebra: whitened principal components of square patches.

In: images in [-1, 1]. Out: latents, one position per patch, and images again. It is fitted to a data set
in seconds and needs no download; it stands in for a trained autoencoder in small runs.

A patch is decoded from its own code and the eight around it, by the linear regression that has the least
squared error. What the neighbours add lies outside of the components that were kept, so an image decoded
without clamping has exactly the latents that it was decoded from. It joins the patches' edges.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from kilopix.config import Config
from kilopix.english import counted
from kilopix.faults import first_line
from kilopix.runtime import read_tensors, sha256_of_text, write_tensors
from kilopix.types import LatentMoments, UserError

_HEADER_KEY = "kilopix.patch_codec"
_FIT_BATCH = 256  # images in float64 at once
_RIDGE = 1e-3  # against unit-variance codes; keeps the regression sane on few images
_RANK_TOLERANCE = 1e-12


class PatchCodecConfig(Config):
    """Size of a patch in pixels, number of components kept, and how far they are whitened.

    `whitening` 1 gives every channel variance 1; below, a component of standard deviation s keeps
    s^(1 - whitening) of it, so that noise covers fine detail before it covers the large forms. All latents
    together have variance 1 whatever it is.
    """

    kind: Literal["patch"] = "patch"
    patch: int = Field(default=8, ge=1, le=64)
    channels: int = Field(default=16, ge=1, le=4096)
    whitening: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _has_so_many_components(self) -> "PatchCodecConfig":
        if self.channels > 3 * self.patch**2:
            raise ValueError(
                f"channels={self.channels} is too many: a patch of {self.patch} x {self.patch} pixels "
                f"has {3 * self.patch**2} components."
            )
        return self


@dataclass(frozen=True)
class PatchCodec:
    """A fitted codec, with P = 3 patch^2 values in a patch and C channels."""

    config: PatchCodecConfig
    mean: Float[Tensor, " P"]
    analysis: Float[Tensor, "C P"]
    synthesis: Float[Tensor, "P C 3 3"]

    @property
    def name(self) -> str:
        """What shards and checkpoints record."""
        return f"patch{self.config.patch}-{self.config.channels}"

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.config.channels

    @property
    def downsampling(self) -> int:
        """Pixels per side of a latent position."""
        return self.config.patch

    @property
    def fingerprint(self) -> str:
        """Equal for two codecs exactly if they give the same latents and images."""
        values = torch.cat([self.mean.flatten(), self.analysis.flatten(), self.synthesis.flatten()])
        text = f"{self.config.model_dump_json()} {values.cpu().numpy().tobytes().hex()}"
        return f"patch-{sha256_of_text(text)[:16]}"

    @staticmethod
    def fit(images: Float[Tensor, "B 3 H W"], config: PatchCodecConfig) -> "PatchCodec":
        """Fit to images in [-1, 1]; every latent channel has mean 0 on them, and variance 1 where
        `whitening` is 1.

        Raises `UserError` if the images have fewer independent components than `channels`.
        """
        mean, covariance = _patch_statistics(images, config.patch)
        variances, components = torch.linalg.eigh(covariance)
        variances = variances.flip(0)[: config.channels]
        components = components.flip(1)[:, : config.channels]
        if variances[-1] <= _RANK_TOLERANCE * variances[0].clamp(min=1.0):
            rank = int((variances > _RANK_TOLERANCE * variances[0].clamp(min=1.0)).sum())
            raise UserError(
                f"autoencoder.channels={config.channels}: the patches of {counted(len(images), 'image')} "
                f"have only {rank} independent components; fit to more images, set at most "
                f"autoencoder.channels={rank}, or take the codec of other shards or of a model with --codec."
            )
        # An eigenvector's sign is arbitrary: its largest entry is made positive.
        peaks = components.gather(0, components.abs().argmax(0, keepdim=True))
        components = components * peaks.sign()
        scales = variances.sqrt() ** config.whitening
        scales = scales * (variances / scales.square()).mean().sqrt()
        analysis = (components / scales).T
        own = components * scales
        synthesis = _regress_on_neighbours(images, config, mean, analysis, own)
        return PatchCodec(config, mean.float(), analysis.float().contiguous(), synthesis.float().contiguous())

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> LatentMoments:
        """Latents of images in [-1, 1]; the standard deviation is 0, since the codec is deterministic."""
        _check_size(images, self.config.patch)
        side = self.config.patch
        kernel = rearrange(self.analysis, "c (rgb p q) -> c rgb p q", p=side, q=side)
        latents = F.conv2d(images.to(self.mean.device), kernel, bias=-self.analysis @ self.mean, stride=side)
        return LatentMoments(latents, torch.zeros_like(latents))

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [-1, 1]; outside of the picture a neighbour's code counts as its mean, 0."""
        patches = F.conv2d(latents.to(self.mean.device), self.synthesis, bias=self.mean, padding=1)
        side = self.config.patch
        return rearrange(patches, "b (c p q) h w -> b c (h p) (w q)", p=side, q=side).clamp(-1, 1)

    def psnr(self, images: Float[Tensor, "B 3 H W"]) -> float:
        """Peak signal-to-noise ratio of the decoded images, in dB, over all of them together."""
        error = (self.decode(self.encode(images).mean) - images.to(self.mean.device)).double().square().mean()
        return float(10 * torch.log10(4.0 / error))

    def check(self, config: PatchCodecConfig, origin: str) -> None:
        """Raise `UserError` if the codec was fitted with other settings than these."""
        if self.config != config:
            raise UserError(
                f"{origin}: was fitted with {_values(self.config)}, but {_values(config)} are asked for."
            )

    def to(self, device: str) -> "PatchCodec":
        """The same codec on another device."""
        tensors = (self.mean.to(device), self.analysis.to(device), self.synthesis.to(device))
        return replace(self, mean=tensors[0], analysis=tensors[1], synthesis=tensors[2])

    def tensors(self) -> dict[str, Tensor]:
        """The codec's tensors by name, on the CPU; with its config they are the whole of it."""
        own = {"mean": self.mean, "analysis": self.analysis, "synthesis": self.synthesis}
        return {name: value.cpu() for name, value in own.items()}

    @staticmethod
    def from_tensors(config: PatchCodecConfig, tensors: dict[str, Tensor], origin: Path) -> "PatchCodec":
        """The codec of a config and what `tensors` gave; raises `UserError` if they do not fit."""
        values, channels = 3 * config.patch**2, config.channels
        shapes = {
            "mean": (values,),
            "analysis": (channels, values),
            "synthesis": (values, channels, 3, 3),
        }
        for name, shape in shapes.items():
            if name not in tensors:
                raise UserError(f"{origin}: the codec's {name} is missing.")
            if tensors[name].shape != shape:
                raise UserError(f"{origin}: {name} has the shape {tuple(tensors[name].shape)}, not {shape}.")
            if not tensors[name].is_floating_point():
                raise UserError(f"{origin}: {name} is of type {tensors[name].dtype}, and no fraction.")
        return PatchCodec(config, tensors["mean"], tensors["analysis"], tensors["synthesis"])

    def save(self, path: Path) -> None:
        """Write the codec as safetensors, with its config in the header."""
        header = {_HEADER_KEY: self.config.model_dump_json()}
        write_tensors(path, self.tensors(), header)

    @staticmethod
    def load(path: Path) -> "PatchCodec":
        """Read what `save` wrote; raises `UserError` for a missing file or another kind of file."""
        if not path.is_file():
            raise UserError(f"{path}: no such file; a patch codec is fitted by `kilopix encode`.")
        tensors, header = read_tensors(path)
        try:
            config = PatchCodecConfig.model_validate(json.loads(header[_HEADER_KEY]))
        except (KeyError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: is not a patch codec's file ({first_line(error)}).") from None
        return PatchCodec.from_tensors(config, tensors, path)


def _check_size(images: Tensor, patch: int) -> None:
    height, width = images.shape[-2:]
    if height % patch or width % patch:
        raise UserError(
            f"images of {height} x {width} pixels do not divide into patches of {patch} x {patch}; "
            "choose another size or another patch."
        )


def _patches(images: Float[Tensor, "B 3 H W"], patch: int) -> Float[Tensor, "B h w P"]:
    return rearrange(images.double(), "b c (h p) (w q) -> b h w (c p q)", p=patch, q=patch)


def _patch_statistics(
    images: Float[Tensor, "B 3 H W"], patch: int
) -> tuple[Float[Tensor, " P"], Float[Tensor, "P P"]]:
    """Mean and population covariance of all patches, in float64."""
    _check_size(images, patch)
    count = 0
    total = torch.zeros(3 * patch**2, dtype=torch.float64, device=images.device)
    for batch in images.split(_FIT_BATCH):
        flat = rearrange(_patches(batch, patch), "b h w p -> (b h w) p")
        count += len(flat)
        total += flat.sum(0)
    mean = total / count
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=images.device)
    for batch in images.split(_FIT_BATCH):
        flat = rearrange(_patches(batch, patch) - mean, "b h w p -> (b h w) p")
        covariance += flat.T @ flat / count
    return mean, covariance


def _regress_on_neighbours(
    images: Float[Tensor, "B 3 H W"],
    config: PatchCodecConfig,
    mean: Float[Tensor, " P"],
    analysis: Float[Tensor, "C P"],
    own: Float[Tensor, "P C"],
) -> Float[Tensor, "P C 3 3"]:
    """Kernel that decodes a patch: `own` in its centre, and what the 3 x 3 codes tell of the rest."""
    kernel = F.pad(own[..., None, None], (1, 1, 1, 1))
    if config.channels == len(mean):
        return kernel  # nothing is left out
    size = 9 * config.channels
    gram = torch.zeros(size, size, dtype=torch.float64, device=images.device)
    moments = torch.zeros(size, len(mean), dtype=torch.float64, device=images.device)
    count = 0
    for batch in images.split(_FIT_BATCH):
        patches = _patches(batch, config.patch) - mean
        codes = patches @ analysis.T
        rest = rearrange(patches - codes @ own.T, "b h w p -> (b h w) p")
        padded = F.pad(codes, (0, 0, 1, 1, 1, 1))
        around = rearrange(padded.unfold(1, 3, 1).unfold(2, 3, 1), "b h w c i j -> (b h w) (c i j)")
        gram += around.T @ around
        moments += around.T @ rest
        count += len(rest)
    gram.diagonal().add_(_RIDGE * count)
    weights = torch.linalg.solve(gram, moments)
    return kernel + rearrange(weights, "(c i j) p -> p c i j", i=3, j=3)


def _values(config: PatchCodecConfig) -> str:
    return f"patch={config.patch}, channels={config.channels}, whitening={config.whitening:g}"
