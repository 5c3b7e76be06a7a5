"""Published weights to safetensors: FID's Inception-v3 and LAION's aesthetic heads.

In: a .pth file as published. Out: a safetensors file of the same tensors, the source's hash in its header.
The pickle is read by PyTorch's restricted loader, which builds tensors and runs no code.
"""

import pickle
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kilopix.artefacts.locks import own_file
from kilopix.faults import first_line
from kilopix.jobs import check_weights
from kilopix.pretrained.aesthetic import aesthetic_layers
from kilopix.pretrained.inception import PUBLISHED, check_inception
from kilopix.runtime import cache_folder, say, sha256_of_file, write_tensors
from kilopix.types import UserError

Kind = Literal["inception", "aesthetic"]


def run(kind: Kind, source: Path, out: Path | None = None, overwrite: bool = False) -> Path:
    """Convert a file; without `out` it goes where `kilopix fidelity` looks for it."""
    out = out or cache_folder() / "weights" / f"{kind}.safetensors"
    tensors = _read(source)
    sha256 = sha256_of_file(source)
    if kind == "inception":
        check_inception(tensors, source)
    else:
        aesthetic_layers(tensors, source)
    with own_file(out, "convert"):
        check_weights(out, {"source_sha256": sha256}, "convert", overwrite)
        _write(tensors, out, sha256)
    if kind == "inception" and not sha256.startswith(PUBLISHED):
        say(
            f"{source}: these are not the published weights, whose SHA-256 begins with {PUBLISHED}; "
            "FID with them compares with no one else's."
        )
    say(f"{out}: {len(tensors)} tensors of {kind}.")
    return out


def _read(source: Path) -> dict[str, Tensor]:
    if not source.is_file():
        raise UserError(f"{source}: no such file.")
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{source}: not weights that can be read safely ({first_line(error)}).") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{source}: not a plain dictionary of tensors.")
    return {name: value.contiguous() for name, value in loaded.items()}


def _write(tensors: dict[str, Tensor], out: Path, sha256: str) -> None:
    write_tensors(out, tensors, {"format": "pt", "source_sha256": sha256})
