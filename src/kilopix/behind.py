"""Work that follows behind a device: copies to the CPU, packing and writing, while the device computes on.

In: steps that begin work on a device and say how it is finished. Out: what finishing gives, in their order.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def behind(steps: Iterable[Callable[[], Result]], most: int = 2) -> Iterator[Result]:
    """The results of the steps in order, each finished in a thread while the next ones are begun.

    At most `most` that are begun wait for the thread, so that no more memory is held. An error in the thread
    is raised here, and begins no further step.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1, "finish") as pool:
        for step in steps:
            waiting.append(pool.submit(step))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def to_host(*tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Begin to copy tensors to the CPU, which the device goes on beside; what is returned waits for them."""
    if not tensors or tensors[0].device.type != "cuda":
        here = tuple(tensor.cpu() for tensor in tensors)
        return lambda: here
    copies = tuple(torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors)
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensors[0].device))

    def wait() -> tuple[Tensor, ...]:
        arrived.synchronize()
        return copies

    return wait


def to_device(tensor: Tensor, device: str | torch.device) -> Tensor:
    """A tensor of the CPU on a device; the host does not wait for a copy to a CUDA device."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
