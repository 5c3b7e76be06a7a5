"""How much fits on a device at once: batch sizes by measured memory, and smaller ones where it is short.

In: a function of a batch. Out: its results, and sizes for it. A size is measured before the work begins and
then kept, so that the same command on the same card computes the same batches; running out of memory halves
it, and nothing that was done is done again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kilopix.types import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

SHARE = 0.7
"""Of the memory that is free, the share that a batch may take: the rest is for what is not measured."""
LARGEST_TENSOR = 2**31 - 1
"""The numbers that one tensor may hold: kernels count in 32 bits, and fail, or are wrong, beyond."""
_GROWTH = 8
"""How many times the last measured size the next one may be."""
NOT_ONE = "the device's memory does not hold a single item; use another device."


@dataclass
class BatchSize:
    """How much is computed at once; halved for good where memory does not suffice."""

    most: int


def in_batches(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], size: BatchSize
) -> list[Result]:
    """The results of `work` on batches of at most `size`, which shrinks where memory does not suffice."""
    results: list[Result] = []
    begun = 0
    while begun < len(items):
        batch = items[begun : begun + size.most]
        try:
            results.append(work(batch))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise UserError(NOT_ONE) from None
        else:
            begun += len(batch)
            continue
        # Outside of the handler, so that what the failed try held is let go first.
        _let_go()
        size.most = len(batch) // 2
    return results


def _let_go() -> None:
    """Give back what torch keeps for later use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@runtime_checkable
class Memory(Protocol):
    """A device's memory, in bytes."""

    def free(self) -> int:
        """What is not in use."""
        ...

    def peak(self, work: Callable[[], object]) -> int:
        """The most that a piece of work takes beside what was in use before; may run out of memory."""
        ...


@dataclass(frozen=True)
class GpuMemory:
    """The memory of a CUDA device, as torch's allocator counts it, which waits for nothing."""

    device: str

    def free(self) -> int:
        """What the driver has free, and what torch holds without using it."""
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + held

    def peak(self, work: Callable[[], object]) -> int:
        """The most that was allocated at a time, workspaces included."""
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before


def fitting(peaks: Mapping[int, int], free: int, most: int) -> int:
    """The largest power of two, up to `most`, that takes no more than the share of free memory.

    `peaks` are measured bytes by size. What the largest size took for each item is taken for the cost of
    one, so that what is the same for all sizes is counted too often rather than left out.
    """
    largest = max(peaks)
    for_each = max(peaks[largest] / largest, 1.0)
    return _power_of_two(min(most, int(SHARE * free / for_each)))


def _power_of_two(number: int) -> int:
    """The largest up to a number, at least 1: sizes are then the same though memory differs a bit."""
    return 1 << max(number.bit_length() - 1, 0)


def measured_size(run: Callable[[int], object], memory: Memory, most: int) -> int:
    """The batch size for `run`, which computes so many items: found by running ever larger ones.

    What is returned has run once and fitted.
    """
    free, most = memory.free(), _power_of_two(most)
    peaks: dict[int, int] = {}
    size = 1
    while size not in peaks:
        try:
            peaks[size] = memory.peak(partial(run, size))
        except torch.OutOfMemoryError:
            most = size // 2
        if not peaks:  # the first one is of a single item
            raise UserError(NOT_ONE)
        _let_go()
        size = min(fitting(peaks, free, most), _GROWTH * max(peaks))
        if size < max(peaks):
            return size
    return size


class _Widest(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.numbers = max(self.numbers, value.numel())
        return out


def widest(work: Callable[[], object]) -> int:
    """The numbers in the largest tensor that a piece of work makes, on whatever device, or on none."""
    with _Widest() as seen:
        work()
    return seen.numbers


def most_at_once(work: Callable[[], object]) -> int:
    """How many items can be computed at once before a tensor is too large, by the work for one of them."""
    return max(LARGEST_TENSOR // max(widest(work), 1), 1)
