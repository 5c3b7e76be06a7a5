"""Frozen autoencoders: between images and the latents that a diffusion model learns.

In: images in [-1, 1]. Out: the mean and standard deviation of their latents, scaled to about unit variance,
and images decoded from latents.
"""

from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kilopix.config import Config
from kilopix.pretrained.memory import BatchSize, in_batches
from kilopix.pretrained.patch_codec import PatchCodec, PatchCodecConfig
from kilopix.pretrained.weights import DtypeName, check_size, find_model, reading, torch_dtype, weights_digest
from kilopix.runtime import read_json
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
    subfolder `vae` of Stable Diffusion 1.5. Latents are multiplied by `scale`; with `whiten`, every channel
    is whitened besides, with the data set's statistics. `auto` is bfloat16 on CUDA and float32 elsewhere.
    """

    kind: Literal["sd"] = "sd"
    name: str = "stabilityai/sd-vae-ft-ema"
    revision: str | None = None
    subfolder: str = ""
    decoder_name: str | None = None
    decoder_revision: str | None = None
    decoder_subfolder: str = ""
    scale: float = Field(default=0.18215, gt=0)
    whiten: bool = False
    dtype: DtypeName = "auto"


class DiffusersAutoencoderConfig(Config):
    """Any image autoencoder of diffusers, by name: AutoencoderKL (SDXL, FLUX), AutoencoderDC (DC-AE), ...

    Latents are (latents - shift) * scale, with the model's own values where none are given, and whitened by
    channel with the data set's statistics unless `whiten` is off. `downsampling` is checked against the
    model; it stands here since a recipe is checked before a model is loaded.
    """

    kind: Literal["diffusers"] = "diffusers"
    name: str
    revision: str | None = None
    subfolder: str = ""
    downsampling: int = Field(default=8, ge=1, le=256)
    scale: float | None = Field(default=None, gt=0)
    shift: float | None = None
    whiten: bool = True
    dtype: DtypeName = "auto"


HubAutoencoderConfig = SDAutoencoderConfig | DiffusersAutoencoderConfig
AutoencoderConfig = Annotated[HubAutoencoderConfig | PatchCodecConfig, Field(discriminator="kind")]


class _DiffusersAutoencoder:
    """An autoencoder of diffusers with shifted and scaled latents."""

    def __init__(self, name: str, folder: Path, model: Any, scale: float, shift: float, device: str):
        self.name = name
        self.channels: int = model.config.latent_channels
        self.downsampling: int = _downsampling(model)
        self._scale, self._shift = scale, shift
        self._folder = folder
        self._device = device
        # The order of the bytes for which convolutions are fastest, on GPUs and with large pictures on CPUs.
        model = model.to(device, memory_format=torch.channels_last)
        self._model = model.eval().requires_grad_(False)

    @property
    def fingerprint(self) -> str:
        # Of the encoder's weights: another decoder leaves the latents as they are.
        kind = "sd" if self._shift == 0 else f"shifted{self._shift:g}"
        return f"{kind}-{weights_digest(self._folder, _WEIGHTS)}-{self._scale:g}"

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> LatentMoments:
        height, width = images.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise UserError(
                f"images of {height} x {width} pixels: {self.name} needs sides that are multiples of "
                f"{self.downsampling}."
            )
        with torch.inference_mode():
            images = images.to(self._device, self._model.dtype, memory_format=torch.channels_last)
            mean, std = _moments(self._model.encode(images))
        # Outside of inference mode, so that autograd accepts the results as inputs.
        return LatentMoments((mean.float() - self._shift) * self._scale, std.float() * self._scale)

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        with torch.inference_mode():
            raw = latents / self._scale + self._shift
            images = self._model.decode(raw.to(self._device, self._model.dtype)).sample
        return images.float().clamp(-1, 1)


def save_autoencoder(autoencoder: Autoencoder, folder: Path) -> tuple[str, float, float]:
    """Write an autoencoder of diffusers as its folder; the name of its class, and scale and shift."""
    assert isinstance(autoencoder, _DiffusersAutoencoder)
    autoencoder._model.save_pretrained(str(folder))
    return type(autoencoder._model).__name__, autoencoder._scale, autoencoder._shift


def _moments(output: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what a model's `encode` gives; a deterministic one has std 0."""
    if "latent_dist" in output:
        return output.latent_dist.mean, output.latent_dist.std
    mean = output.latent if "latent" in output else output.latents
    return mean, torch.zeros_like(mean)


def encode_images(
    autoencoder: Autoencoder, images: Float[Tensor, "B 3 H W"], size: BatchSize | None = None
) -> LatentMoments:
    """Latents of a batch, at most `size` images at a time, in as few passes as memory allows."""
    size = size or BatchSize(len(images))
    parts = in_batches(
        lambda some: autoencoder.encode(images[some[0] : some[-1] + 1]), range(len(images)), size
    )
    return LatentMoments(torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts]))


def load_autoencoder(config: AutoencoderConfig, folder: Path | None, device: str = "cpu") -> Autoencoder:
    """Load an autoencoder, frozen; a patch codec is read from `folder`, the data set's.

    Raises `UserError` if files are missing, cannot be had, or disagree with `config`.
    """
    if isinstance(config, SDAutoencoderConfig):
        return _load_sd(config, device)
    if isinstance(config, DiffusersAutoencoderConfig):
        return _load_diffusers(config, device)
    if folder is None:
        raise UserError("autoencoder patch: give the folder of the shards, where its codec is stored.")
    codec = PatchCodec.load(folder / CODEC_FILE)
    codec.check(config, str(folder / CODEC_FILE))
    return codec.to(device)


def _load_sd(config: SDAutoencoderConfig, device: str) -> Autoencoder:
    dtype = torch_dtype(config.dtype, device)
    folder = find_model(config.name, config.revision, config.subfolder, _WEIGHTS)
    model = _read_model(folder, dtype)
    name = config.name
    if config.decoder_name is not None:
        name = f"{config.name}+{config.decoder_name}"
        other_folder = find_model(
            config.decoder_name, config.decoder_revision, config.decoder_subfolder, _WEIGHTS
        )
        other = _read_model(other_folder, dtype)
        ours = (model.config.latent_channels, _downsampling(model))
        theirs = (other.config.latent_channels, _downsampling(other))
        if ours != theirs:
            raise UserError(
                f"decoder_name={config.decoder_name!r}: its latents have {theirs[0]} channels and "
                f"{theirs[1]} pixels a side, those of {config.name!r} have {ours[0]} and {ours[1]}."
            )
        model.decoder, model.post_quant_conv = other.decoder, other.post_quant_conv
    return _DiffusersAutoencoder(name, folder, model, config.scale, 0.0, device)


def _load_diffusers(config: DiffusersAutoencoderConfig, device: str) -> Autoencoder:
    folder = find_model(config.name, config.revision, config.subfolder, _WEIGHTS)
    model = _read_model(folder, torch_dtype(config.dtype, device))
    if (found := _downsampling(model)) != config.downsampling:
        raise UserError(
            f"autoencoder.downsampling={config.downsampling}: {config.name} has {found} pixels a side for "
            f"each latent position; set autoencoder.downsampling={found}."
        )
    own = model.config
    scale = config.scale or getattr(own, "scaling_factor", None) or 1.0
    shift = config.shift if config.shift is not None else getattr(own, "shift_factor", None) or 0.0
    numbers = [type(value) in (int, float) and isfinite(value) for value in (scale, shift)]
    if not all(numbers) or scale <= 0:
        raise UserError(
            f"{folder / 'config.json'}: scales its latents by {scale!r} and shifts them by {shift!r}."
        )
    return _DiffusersAutoencoder(config.name, folder, model, scale, shift, device)


def _read_model(folder: Path, dtype: torch.dtype) -> Any:
    import diffusers

    name = str(read_json(folder / "config.json").get("_class_name", "AutoencoderKL"))
    cls = getattr(diffusers, name, None) if name.startswith("Autoencoder") else None
    if cls is None:
        raise UserError(f"{folder / 'config.json'}: {name} is no image autoencoder of this diffusers.")
    wrong = "its autoencoder cannot be read"
    with reading(folder, wrong), torch.device("meta"):
        empty = cls.from_config(cls.load_config(str(folder), local_files_only=True))
    check_size(folder, empty)
    with reading(folder, wrong):
        return cls.from_pretrained(
            str(folder),
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
        )


def _downsampling(model: Any) -> int:
    config = model.config
    if "encoder_block_out_channels" in config:  # AutoencoderDC and AutoencoderTiny name it so
        return 2 ** (len(config.encoder_block_out_channels) - 1)
    return 2 ** (len(config.block_out_channels) - 1)
