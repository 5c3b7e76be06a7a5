"""Write the weights that are installed with kilopix: one small file that needs nothing beside it.

    python tools/ship_weights.py RUN src/kilopix/assets/weights/mini.safetensors

In: a run or checkpoint whose autoencoder is a patch codec. Out: one safetensors file with the averaged
weights in float16, the codec, and the recipe in the header.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from kilopix.generator import Generator
from kilopix.model_files import CODEC_PREFIX
from kilopix.pretrained.patch_codec import PatchCodec
from kilopix.runtime import atomic_path, say
from kilopix.training.checkpoint import read_weights
from kilopix.types import UserError

LARGEST = 12_000_000
"""Bytes; what every install of kilopix can carry."""


def ship(run: Path, out: Path) -> None:
    """Write `out`; raises `UserError` if it would be too large, or if a weight has no place in float16."""
    generator = Generator.from_pretrained(run, "cpu")
    codec = generator.autoencoder
    if not isinstance(codec, PatchCodec):
        raise UserError(f"{run}: its autoencoder is no patch codec, so that it cannot ship with the weights.")
    _, header = read_weights(generator.weights)
    tensors = {}
    for name, value in generator.network.state_dict().items():
        tensors[name] = value.to(torch.float16).contiguous()
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f"{run}: {name} has values that float16 cannot hold.")
    # The codec's fingerprint is of its float32 values.
    tensors |= {f"{CODEC_PREFIX}{name}": value.contiguous() for name, value in codec.tensors().items()}
    header["codec"] = codec.config.model_dump(mode="json")
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    if size > LARGEST:
        raise UserError(f"{run}: {size / 1e6:.1f} MB of weights; at most {LARGEST / 1e6:.0f} MB can ship.")
    with atomic_path(out) as temporary:
        save_file(tensors, temporary, {key: json.dumps(value) for key, value in header.items()})
    say(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {generator.images_seen:,} images seen.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    ship(arguments.run, arguments.out)
