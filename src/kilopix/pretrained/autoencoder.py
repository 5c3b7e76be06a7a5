"""Frozen autoencoders: between images and the latents that a diffusion model learns.

In: images in [-1, 1]. Out: the mean and standard deviation of their latents, scaled to about unit variance,
and images decoded from latents.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kilopix.config import Config
from kilopix.pretrained.patch_codec import PatchCodec, PatchCodecConfig
from kilopix.pretrained.weights import find_model, weights_digest
from kilopix.types import LatentMoments, UserError

CODEC_FILE = "codec.safetensors"
_WEIGHTS = "diffusion_pytorch_model"


@runtime_checkable
class Autoencoder(Protocol):
    """A frozen network, or a linear map, between images and latents."""

    @property
    def name(self) -> str:
        """What shards and checkpoints record."""
        ...

    @property
    def channels(self) -> int:
        """Channels of a latent, C."""
        ...

    @property
    def downsampling(self) -> int:
        """Pixels per side of a latent position."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two autoencoders exactly if they give the same latents."""
        ...

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> LatentMoments:
        """Latents of images in [-1, 1], from one pass, on the autoencoder's device.

        Raises `UserError` if the sides are no multiples of `downsampling`.
        """
        ...

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images clamped to [-1, 1], on the autoencoder's device."""
        ...


class SDAutoencoderConfig(Config):
    """The autoencoder of Stable Diffusion from the Hugging Face hub or a folder, in diffusers' form.

    `decoder_name` names another model of the same latents for decoding; the paper decodes with the one in
    subfolder `vae` of Stable Diffusion 1.5. Latents are multiplied by `scale`.
    """

    kind: Literal["sd"] = "sd"
    name: str = "stabilityai/sd-vae-ft-ema"
    revision: str | None = None
    subfolder: str = ""
    decoder_name: str | None = None
    decoder_revision: str | None = None
    decoder_subfolder: str = ""
    scale: float = Field(default=0.18215, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"


AutoencoderConfig = Annotated[SDAutoencoderConfig | PatchCodecConfig, Field(discriminator="kind")]


class _SDAutoencoder:
    """diffusers' AutoencoderKL with scaled latents."""

    def __init__(self, config: SDAutoencoderConfig, folder: Path, model: Any, device: str):
        self.name = config.name if config.decoder_name is None else f"{config.name}+{config.decoder_name}"
        self.channels: int = model.config.latent_channels
        self.downsampling: int = _downsampling(model)
        self._scale = config.scale
        self._folder = folder
        self._device = device
        self._model = model.to(device).eval().requires_grad_(False)

    @property
    def fingerprint(self) -> str:
        # Of the encoder's weights: another decoder leaves the latents as they are.
        return f"sd-{weights_digest(self._folder, _WEIGHTS)}-{self._scale:g}"

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> LatentMoments:
        height, width = images.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise UserError(
                f"images of {height} x {width} pixels: {self.name} needs sides that are multiples of "
                f"{self.downsampling}."
            )
        with torch.inference_mode():
            latents = self._model.encode(images.to(self._device, self._model.dtype)).latent_dist
        # Outside of inference mode, so that autograd accepts the results as inputs.
        return LatentMoments(latents.mean.float() * self._scale, latents.std.float() * self._scale)

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        with torch.inference_mode():
            images = self._model.decode((latents / self._scale).to(self._device, self._model.dtype)).sample
        return images.float().clamp(-1, 1)


def load_autoencoder(config: AutoencoderConfig, folder: Path | None, device: str = "cpu") -> Autoencoder:
    """Load an autoencoder, frozen; a patch codec is read from `folder`, the data set's.

    Raises `UserError` if files are missing, cannot be had, or disagree with `config`.
    """
    if isinstance(config, SDAutoencoderConfig):
        return _load_sd(config, device)
    if folder is None:
        raise UserError("autoencoder patch: give the folder of the shards, where its codec is stored.")
    codec = PatchCodec.load(folder / CODEC_FILE)
    if codec.config != config:
        raise UserError(
            f"{folder / CODEC_FILE}: was fitted with {_values(codec.config)}, but {_values(config)} "
            "are asked for."
        )
    return codec.to(device)


def _values(config: PatchCodecConfig) -> str:
    return f"patch={config.patch}, channels={config.channels}, whitening={config.whitening:g}"


def _load_sd(config: SDAutoencoderConfig, device: str) -> Autoencoder:
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    folder = find_model(config.name, config.revision, config.subfolder, _WEIGHTS)
    model = _read_kl(folder, dtype)
    if config.decoder_name is not None:
        other_folder = find_model(
            config.decoder_name, config.decoder_revision, config.decoder_subfolder, _WEIGHTS
        )
        other = _read_kl(other_folder, dtype)
        ours = (model.config.latent_channels, _downsampling(model))
        theirs = (other.config.latent_channels, _downsampling(other))
        if ours != theirs:
            raise UserError(
                f"decoder_name={config.decoder_name!r}: its latents have {theirs[0]} channels and "
                f"{theirs[1]} pixels a side, those of {config.name!r} have {ours[0]} and {ours[1]}."
            )
        model.decoder, model.post_quant_conv = other.decoder, other.post_quant_conv
    return _SDAutoencoder(config, folder, model, device)


def _read_kl(folder: Path, dtype: torch.dtype) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL.from_pretrained(
        str(folder), torch_dtype=dtype, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
    )


def _downsampling(model: Any) -> int:
    return 2 ** (len(model.config.block_out_channels) - 1)
