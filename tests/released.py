"""Random weights in the layout of the released CAD-I, with tiny encoders beside them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from hub_models import write_kl, write_t5
from kilopix.models.published import published_config, to_published
from kilopix.models.rin import RIN

TINY = {
    "data_size": 8,
    "data_dim": 32,
    "num_input_channels": 4,
    "num_latents": 8,
    "latents_dim": 32,
    "label_dim": 16,
    "num_processing_layers": 1,
    "num_blocks": 2,
    "path_size": 2,
    "num_cond_tokens": 128,
    "read_write_heads": 2,
    "compute_heads": 2,
    "latent_mlp_multiplier": 4,
    "data_mlp_multiplier": 4,
    "use_cond_token": True,
    "concat_cond_token_to_latents": False,
    "use_cond_rin_block": True,
    "num_text_registers": 2,
}


def write_released(folder: Path, arguments: dict[str, object], kind: str = "CADRINTextCond") -> Path:
    """`config.json` and `model.safetensors`, as the hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    config, channels, width, side = published_config(kind, arguments)
    torch.manual_seed(0)
    network = RIN(config, channels, width, side)
    save_file({k: v.contiguous() for k, v in to_published(network).items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(arguments), encoding="utf-8")
    return folder


def write_encoders(folder: Path, text_width: int = 16) -> tuple[Path, Path]:
    """A small T5, and an autoencoder of four channels and eight pixels a latent."""
    return write_t5(folder / "t5", text_width), write_kl(folder / "vae", levels=4)
