"""A model in one safetensors file, which needs no other file of kilopix beside it.

In: a generator. Out: its averaged weights and its patch codec, with the recipe in the header.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kilopix.generator import Generator
from kilopix.model_files import CODEC_PREFIX
from kilopix.network import inputs_of
from kilopix.pretrained.patch_codec import PatchCodec, PatchCodecConfig
from kilopix.training.checkpoint import save_tensors
from kilopix.types import UserError


def header_of(generator: Generator) -> dict[str, Any]:
    """What a weights file says of itself beside the weights."""
    channels, width = inputs_of(generator.network)
    whitening = generator.whitening
    header: dict[str, Any] = {
        "recipe": generator.recipe.model_dump(mode="json"),
        "latent_channels": channels,
        "text_width": width,
        "text_fingerprint": generator.text_fingerprint,
        "autoencoder_fingerprint": generator.autoencoder_fingerprint,
        "latent_whitening": {"mean": whitening.mean, "std": whitening.std} if whitening else None,
        "images_seen": generator.images_seen,
        "trained_on": generator.trained_on.model_dump(mode="json"),
    }
    if isinstance(generator.recipe.autoencoder, PatchCodecConfig):
        header["codec"] = generator.recipe.autoencoder.model_dump(mode="json")
    return header


def write_weights(generator: Generator, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the file; raises `UserError` if a weight has no place in `dtype`.

    The codec stays in float32, since its fingerprint is of its values.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in generator.network.state_dict().items():
        tensors[name] = value.to("cpu", dtype).contiguous()
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f"{generator.weights}: {name} has values that {dtype} cannot hold.")
    if isinstance(generator.recipe.autoencoder, PatchCodecConfig):
        assert isinstance(generator.autoencoder, PatchCodec)
        codec = generator.autoencoder.tensors()
        tensors |= {f"{CODEC_PREFIX}{name}": value.contiguous() for name, value in codec.items()}
    save_tensors(out, tensors, header_of(generator))
