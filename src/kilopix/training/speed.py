"""How a network is made to run fast and fit: precision, compilation, checkpointed activations, micro-batch.

In: the blocks of a network, and the device. Out: the same blocks, changed in place; and numbers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Precision = Literal["auto", "float32", "bfloat16"]
MOST_ON_CPU = 64
"""Images of a micro-batch on a CPU, where larger ones are no faster."""


def pick_precision(name: Precision, device_type: str) -> torch.dtype:
    """The type in which layers multiply; weights, their averages and optimizer states are always float32."""
    if name == "auto":
        has_it = device_type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_it else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def speed_up(blocks: Sequence[nn.Module], compiled: bool, checkpointed: bool) -> None:
    """Compile every block by itself, and keep no activations inside it; names of weights stay."""
    for block in blocks:
        if checkpointed:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if compiled:
            block.compile()


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest of most, most / 2, ... 1 (rounded up) that fits; 0 if none does."""
    size = most
    while not fits(size):
        if size == 1:
            return 0
        size = (size + 1) // 2
    return size


def fits_on_gpu(work: Callable[[], object], reserve: int) -> bool:
    """Whether a piece of work leaves `reserve` bytes of the GPU free, and a margin of a twelfth."""
    _, total = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        work()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return torch.cuda.max_memory_allocated() + reserve <= total * 11 // 12
