"""Write the weights that are installed with kilopix: one small file that needs nothing beside it.

    python tools/ship_weights.py RUN src/kilopix/assets/weights/mini.safetensors

In: a run or checkpoint whose autoencoder is a patch codec. Out: one safetensors file with the averaged
weights in float16, the codec, and the recipe in the header.
"""

import argparse
from pathlib import Path

import torch

from kilopix.export.weights_file import write_weights
from kilopix.generator import Generator
from kilopix.pretrained.patch_codec import PatchCodec
from kilopix.runtime import say
from kilopix.types import UserError

LARGEST = 8_000_000
"""Bytes; what every install of kilopix can carry."""


def ship(run: Path, out: Path) -> None:
    """Write `out`; raises `UserError` if it would be too large, or need a file beside it."""
    generator = Generator.from_pretrained(run, "cpu")
    if not isinstance(generator.autoencoder, PatchCodec):
        raise UserError(f"{run}: its autoencoder is no patch codec, so that it cannot ship with the weights.")
    size = sum(2 * value.numel() for value in generator.network.state_dict().values())
    if size > LARGEST:
        raise UserError(f"{run}: {size / 1e6:.1f} MB of weights; at most {LARGEST / 1e6:.0f} MB can ship.")
    write_weights(generator, out, torch.float16)
    say(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {generator.images_seen:,} images seen.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    ship(arguments.run, arguments.out)
