"""Several processes that train one network: who this one is, and how gradients become sums over all.

In: what `torchrun` (or `srun`) puts into the environment, and a module. Out: the module, replicated (DDP);
`kilopix.training.sharding` shards one. Gradients are summed, never averaged: the loss carries the weight of
every image.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import count as counting
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from kilopix.faults import explain, first_line
from kilopix.runtime import pick_device
from kilopix.types import UserError

Style = Literal["ddp", "fsdp"]
Result = TypeVar("Result")
_WAITS = counting()  # every process waits as often


@dataclass(frozen=True)
class Processes:
    """This process among those that train; alone, all of its methods do nothing or the obvious."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"
    style: Style = "ddp"

    @property
    def main(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.rank == 0

    @property
    def device_type(self) -> str:
        """cpu, cuda or mps."""
        return torch.device(self.device).type

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of every parameter."""
        return self.count > 1 and self.style == "fsdp"

    def share(self, total: int) -> range:
        """The part of `total` things that is this process's; the parts, one after the other, are all."""
        return range(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def wait_for_main(self) -> None:
        """Wait until the main process is here, however long that takes.

        A barrier gives up after the patience of `watchdog.timeout_minutes`, which scoring may take longer
        than; here the others look from time to time whether the main process is done.
        """
        if self.count == 1:
            return
        store, key = torch.distributed.distributed_c10d._get_default_store(), f"kilopix/{next(_WAITS)}"
        if self.main:
            store.set(key, "here")
        while not store.check([key]):
            time.sleep(0.05)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def all_agree(self, taken: Tensor) -> Tensor:
        """The smallest of all processes' values, in place: what one of them leaves out, all leave out."""
        if self.count > 1:
            torch.distributed.all_reduce(taken, torch.distributed.ReduceOp.MIN)
        return taken

    def smallest(self, value: int) -> int:
        """The smallest of all processes' numbers."""
        return min(self.gather(value))

    def gather(self, value: Any) -> list[Any]:
        """Every process's value (of plain types), in the order of ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def once(self, work: Callable[[], Result]) -> Result:
        """What `work` gives in the main process, for all; its `UserError`, or the machine's, all raise."""
        if self.count == 1:
            return work()
        answer: list[Any] = [None, None]
        if self.main:
            try:
                answer[0] = work()
            except (UserError, OSError) as error:
                answer[1] = str(error) if isinstance(error, UserError) else explain(error) or str(error)
        torch.distributed.broadcast_object_list(answer)
        if answer[1] is not None:
            raise UserError(answer[1])
        return answer[0]

    def replicate(self, module: nn.Module, sent: torch.dtype = torch.float32) -> nn.Module:
        """Wrap a module so that its gradients are summed over processes, if they do not shard.

        `sent` is the type in which they are sent; they are added up over micro-batches in float32.
        """
        if self.count == 1 or self.sharded:
            return module
        from torch.nn.parallel import DistributedDataParallel

        ids = [torch.device(self.device).index] if self.device_type == "cuda" else None
        with warnings.catch_warnings():
            # The name that follows `broadcast_buffers` is not known to all versions of torch.
            warnings.simplefilter("ignore", FutureWarning)
            replica = DistributedDataParallel(
                module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        replica.register_comm_hook(sent, _summed)
        return replica

    def accumulate(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Inside, gradients stay with this process unless it is the last micro-batch of the step.

        Where processes shard they never stay: see `kilopix.training.sharding`.
        """
        if self.count > 1 and not self.sharded and not last:
            assert isinstance(module, nn.parallel.DistributedDataParallel)
            return module.no_sync()
        return nullcontext()


def _summed(sent: torch.dtype, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's reduction without its division, in the type in which gradients are sent."""
    buffer = bucket.buffer()
    work = torch.distributed.all_reduce(buffer.to(sent), async_op=True)
    assert work is not None

    def as_it_was(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        summed = done.value()[0]
        return summed if summed.dtype == buffer.dtype else buffer.copy_(summed)

    return work.get_future().then(as_it_was)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor."""
    if not torch.distributed.is_initialized():  # and DTensor need not be imported
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each process may hold a part; all processes must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, in the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients to a joint norm of at most `limit`; returns the norm, which is not waited for.

    `nn.utils.clip_grad_norm_` would go through sharded gradients one by one, for the norm and again to scale.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    parts = [local(grad) for grad in grads]
    norm = torch.stack(torch._foreach_norm(parts)).norm()
    if is_sharded(grads[0]):
        square = norm.square()
        torch.distributed.all_reduce(square)
        norm = square.sqrt()
    torch._foreach_mul_(parts, (limit / (norm + 1e-6)).clamp(max=1.0))  # pyright: ignore[reportArgumentType, reportCallIssue]
    return norm


@contextmanager
def join_processes(device: str, style: Style, timeout_minutes: float) -> Iterator[Processes]:
    """Join the processes that `torchrun` started, each on its own device; alone if it started none."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        device = pick_device(device)
        if torch.device(device).type == "cuda":
            grow_segments()
        if torch.device(device).index is not None and device.startswith("cuda"):
            torch.cuda.set_device(device)  # streams, events and memory are asked of the current one
        yield Processes(device=device, style=style)
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    device = pick_device(device)
    if device == "mps":
        raise UserError("device 'mps' trains in one process only; start without torchrun, or on the CPU.")
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {rank}: there are {torch.cuda.device_count()} GPUs here and this is number "
                f"{local + 1}; start as many processes a node as it has GPUs."
            )
        device = f"cuda:{local}"
        grow_segments()
        torch.cuda.set_device(device)
    joined_before = torch.distributed.is_initialized()
    if not joined_before:
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=timedelta(minutes=timeout_minutes)
        )
    try:
        yield Processes(rank, count, device, style)
    except RuntimeError as error:
        if not _of_communication(error):
            raise
        if "shared memory" in str(error):
            raise UserError(
                f"process {rank} of {count}: /dev/shm is full or too small ({first_line(error)}). Give a "
                "container more with `--shm-size=8g`, or set NCCL_SHM_DISABLE=1; the same command goes on."
            ) from error
        raise UserError(
            f"process {rank} of {count}: another process ended or answered no more ({first_line(error)}). "
            "Look above for what happened to it; the same command goes on from the last checkpoint."
        ) from error
    else:
        if not joined_before:
            torch.distributed.destroy_process_group()


def grow_segments() -> None:
    """Let a GPU's allocator grow its segments, so that batches of many shapes leave no holes in its memory.

    What users set in the environment stays.
    """
    if any(os.environ.get(name) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")):
        return
    # By the environment it can be asked for under one name up to torch 2.11 and under another one later.
    by_any_name = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    (by_any_name or torch.cuda.memory._set_allocator_settings)("expandable_segments:True")


def _of_communication(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return any(word in str(error) for word in ("gloo", "NCCL", "Connection closed", "Connection reset"))
