"""Optimizers and learning-rate schedules.

In: a network and a config. Out: an optimizer, and the factor of its learning rates after so many images.
Weights of layers are decayed; norms, biases, registers and offsets are not.
"""

import math
import re
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from kilopix.config import Config
from kilopix.training.lamb import Lamb, LambConfig
from kilopix.training.muon import AdamWConfig, Muon, MuonConfig
from kilopix.training.parallel import Processes

IN_A_BLOCK = re.compile(r"(.*\.)?\w*blocks\.\d+\.")
"""Names of what lies in a block: `blocks.0` of a DiT, `rin_blocks.0` and `transformers_blocks.0` of a RIN."""

OptimizerConfig = Annotated[AdamWConfig | MuonConfig | LambConfig, Field(discriminator="kind")]


class ScheduleConfig(Config):
    """Linear warm-up, then constant, then a decay over the last part, down to `final` of the peak.

    The warm-up is at most `warmup_share` of the run. A `cosine_rate` below 1 stops the cosine early: 0.7,
    as CAD-I is trained, ends at 0.206 of the peak.
    """

    warmup_images: int = Field(default=2_000, ge=0)
    warmup_share: float = Field(default=0.1, ge=0, le=1)
    decay: Literal["cosine", "linear", "sqrt", "constant"] = "cosine"
    cosine_rate: float = Field(default=1.0, gt=0, le=1)
    decay_fraction: float = Field(default=1.0, ge=0, le=1, description="share of the run that decays")
    final: float = Field(default=0.0, ge=0, le=1)


def lr_factor(config: ScheduleConfig, images_seen: int, images_total: int) -> float:
    """Factor of the learning rate at a moment of training, in [0, 1]."""
    warmup = min(config.warmup_images, int(images_total * config.warmup_share))
    if images_seen < warmup:
        return images_seen / warmup
    start = max(warmup, round(images_total * (1 - config.decay_fraction)))
    if images_seen <= start or images_total <= start:
        return 1.0
    done = min(1.0, (images_seen - start) / (images_total - start))
    shape = {
        "constant": 1.0,
        "cosine": 0.5 * (1 + math.cos(math.pi * config.cosine_rate * done)),
        "linear": 1 - done,
        "sqrt": 1 - math.sqrt(done),
    }[config.decay]
    return config.final + (1 - config.final) * shape


def build_optimizer(
    config: AdamWConfig | MuonConfig | LambConfig, network: nn.Module, processes: Processes | None = None
) -> torch.optim.Optimizer:
    """An optimizer over the network's parameters, each group with the key `peak_lr`.

    `processes` are those that train the network together, which Muon shares its work with.
    """
    if isinstance(config, AdamWConfig):
        return _adamw(config, *_decayed_and_not(network.named_parameters()))
    if isinstance(config, LambConfig):
        return Lamb(config, *_layers_and_not(network))
    in_blocks = {
        id(p)
        for name, p in network.named_parameters()
        if p.ndim == 2 and name.endswith(".weight") and IN_A_BLOCK.match(name)
    }
    if not in_blocks:
        raise ValueError("muon: no part of the network is a list named ...blocks, whose matrices it is for")
    others = [(name, p) for name, p in network.named_parameters() if id(p) not in in_blocks]
    matrices = [p for p in network.parameters() if id(p) in in_blocks]
    return Muon(config, matrices, *_decayed_and_not(others), processes=processes)


def _decayed_and_not(
    named: Iterable[tuple[str, nn.Parameter]],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights of linear and convolution layers, which are decayed, and all the rest, which are not."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        is_weight = parameter.ndim >= 2 and name.rsplit(".")[-1] == "weight"
        (decayed if is_weight else others).append(parameter)
    return decayed, others


def _layers_and_not(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """All but norms and biases, as published (learned tokens and layer scales count as layers), and those."""
    layers: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            small = isinstance(module, nn.LayerNorm | nn.RMSNorm) or "bias" in name
            (others if small else layers).append(parameter)
    return layers, others


def _adamw(config: AdamWConfig, matrices: list[nn.Parameter], vectors: list[nn.Parameter]):
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "peak_lr": config.lr},
        {"params": vectors, "weight_decay": 0.0, "peak_lr": config.lr},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]
