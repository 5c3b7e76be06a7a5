"""Batches that may be too large for the device: halved until they fit, instead of failing.

In: a function of a batch. Out: its results for the halves, so that a batch size need only be about right.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from kilopix.types import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_halves(work: Callable[[Sequence[Item]], Result], items: Sequence[Item]) -> list[Result]:
    """The results of `work` on all items at once, or on halves of them where memory does not suffice."""
    try:
        return [work(items)]
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise UserError("the device's memory does not hold a single item; use another device.") from None
    # Outside of the handler, so that what the failed try held is let go first.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(items) // 2
    return in_halves(work, items[:half]) + in_halves(work, items[half:])
