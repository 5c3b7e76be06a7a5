"""Write the weights that are installed with kilopix: one small file that needs nothing beside it.

    python tools/ship_weights.py RUN src/kilopix/assets/weights/mini.safetensors

In: a run or checkpoint whose autoencoder is a patch codec. Out: one safetensors file with the averaged
weights in float16, the codec, and the recipe in the header. Images seen are those of all runs, from the first
on, where one started from the weights of another. Put its SHA-256 into `SHIPPED_SHA256` of
kilopix.model_files.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kilopix.export.weights_file import write_weights
from kilopix.generator import Generator
from kilopix.pretrained.patch_codec import PatchCodec
from kilopix.runtime import read_json, say
from kilopix.stages.train import RECIPE
from kilopix.types import UserError

LARGEST = 8_000_000
"""Bytes; what every install of kilopix can carry."""


def seen_before(record: dict[str, Any]) -> int:
    """The images of the runs that a run started from, as its `recipe.json` records them."""
    start = record.get("started_from")
    return int(start["images_seen"]) + seen_before(start) if start else 0


def ship(run: Path, out: Path) -> None:
    """Write `out`; raises `UserError` if it would be too large, or need a file beside it."""
    generator = Generator.from_pretrained(run, "cpu")
    if not isinstance(generator.autoencoder, PatchCodec):
        raise UserError(f"{run}: its autoencoder is no patch codec, so that it cannot ship with the weights.")
    size = sum(2 * value.numel() for value in generator.network.state_dict().values())
    if size > LARGEST:
        raise UserError(f"{run}: {size / 1e6:.1f} MB of weights; at most {LARGEST / 1e6:.0f} MB can ship.")
    record = run / RECIPE
    before = seen_before(read_json(record)) if record.exists() else 0
    generator = replace(generator, images_seen=generator.images_seen + before)
    write_weights(generator, out, torch.float16)
    say(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {generator.images_seen:,} images seen.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    ship(arguments.run, arguments.out)
