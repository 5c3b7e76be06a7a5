"""Products in float8: layers of blocks exchanged for torchao's, which scale and round what they multiply.

In: blocks, and the kind of scaling. Out: the same blocks, changed in place; weights, their names and what is
saved of them stay as they are, in float32.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from kilopix.types import UserError

Float8 = Literal["off", "tensorwise", "rowwise"]
UNIT = 16
"""Of what number the sides of a matrix must be a multiple for the float8 products of GPUs."""
_LAYERS = re.compile(r"(^|\.)(qkv|(mlp|ffn)\.\w+)$")


def to_float8(blocks: Sequence[nn.Module], scaling: Float8, emulate: bool = False) -> tuple[int, list[str]]:
    """Let the qkv and MLP layers of blocks multiply in float8; how many do, and the widths of those left.

    `emulate` computes in float32 what a GPU would compute, for tests.
    """
    try:
        from torchao.float8 import (  # pyright: ignore[reportMissingImports]
            Float8LinearConfig,
            convert_to_float8_training,
        )
    except ImportError:
        raise UserError("training.float8 needs torchao: pip install 'kilopix[float8]'.") from None
    # Gradients of weights sum over a batch's tokens, of whose number 16 is not always a divisor.
    config = replace(Float8LinearConfig.from_recipe_name(scaling), pad_inner_dim=True, emulate=emulate)
    done, left = 0, set[str]()

    def fits(module: nn.Module, name: str) -> bool:
        nonlocal done
        if type(module) is not nn.Linear or not _LAYERS.search(name):
            return False
        good = module.in_features % UNIT == 0 and module.out_features % UNIT == 0
        if good:
            done += 1
        else:
            left.add(f"{module.in_features} to {module.out_features}")
        return good

    for block in blocks:
        convert_to_float8_training(block, config=config, module_filter_fn=fits)
    if not done:
        raise UserError(
            f"training.float8: no layer of this network has sides that are multiples of {UNIT} "
            f"({', '.join(sorted(left))}); take another model.width, or leave it off."
        )
    return done, sorted(left)


def check_float8(precision: torch.dtype, compiled: bool, device: str) -> None:
    """Refuse float8 where it cannot be had, or would be slower than bfloat16."""
    if torch.device(device).type != "cuda":
        raise UserError(
            f"training.float8 needs an NVIDIA GPU, and this is {device}; set training.float8=off."
        )
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError(
            f"training.float8: {torch.cuda.get_device_name(device)} has no float8 products (H100, L40, "
            "RTX 4090 and newer have them); set training.float8=off."
        )
    if precision != torch.bfloat16:
        raise UserError("training.float8 goes with bfloat16 around it; set training.precision=bfloat16.")
    if not compiled:
        raise UserError("training.float8 is slower than bfloat16 uncompiled; set training.compile=true.")
