"""Loads a golden network file."""

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from kilopix.models.published import load_published, published_config
from kilopix.models.rin import RIN


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and its metadata."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def network_of(path: Path) -> RIN:
    """The network of a golden file, with its weights."""
    tensors, metadata = read(path)
    config, channels, text_width, side = published_config(metadata["class"], json.loads(metadata["config"]))
    network = RIN(config, channels, text_width, side)
    load_published(network, below(tensors, "weights"))
    return network.eval()


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix.`, without it."""
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
