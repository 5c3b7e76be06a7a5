"""What is looked at inside of two processes that share or replicate a network, for tests/test_distributed.py.

Each check gives values that JSON can hold; the test says what they must be.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jaxtyping
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kilopix import computing
from kilopix.computing import gathered_in, prepare
from kilopix.network import build_network, compiled_of, shards_of
from kilopix.recipe import Recipe, load_recipe
from kilopix.step import StepBatch, StepLoss, synthetic_batch
from kilopix.training.averages import Average
from kilopix.training.parallel import Processes, full, is_sharded, local
from kilopix.training.sharding import reserve_for
from kilopix.training.speed import speed_up, uncompiled

SIZES = 4, 16
FLOAT, HALF = torch.float32, torch.bfloat16


class Alive(TorchDispatchMode):
    """The most bytes of tensors with values that were alive at once, of those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                storage = local(tensor).untyped_storage()
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._made = {place: made for place, made in self._made.items() if not made[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._made.values()))
        return out


def prepared(
    recipe: Recipe,
    processes: Processes,
    precision: torch.dtype = FLOAT,
    sent: torch.dtype = FLOAT,
    **how: Any,
) -> tuple[StepLoss, Average]:
    """As a run prepares them."""
    return prepare(recipe, SIZES, processes, precision, sent, how.pop("compiled", False), **how)


def start(recipe: Recipe, processes: Processes) -> dict[str, Any]:
    """How a shared network begins: with what types, how much memory, and which values."""
    with Alive() as alive:
        loss, average = prepared(recipe, processes)
    one = build_network(recipe, *SIZES)
    torch.manual_seed(1)
    others = {name: torch.randn_like(value).half() for name, value in one.state_dict().items()}
    begun = prepared(recipe, processes, weights=others if processes.main else None)
    networks = {"network": loss.network, "average": average.network}
    wrong = [f"{kind} {name}" for kind, ours in networks.items() for name in unlike(ours, one.state_dict())]
    wrong += [
        f"begun {name}" for ours in (begun[0].network, begun[1].network) for name in unlike(ours, others)
    ]
    parameters = list(loss.network.parameters())
    buffers = [b for _, b in loss.network.named_buffers()]
    return {
        "alive": alive.most,
        "whole": sum(p.nbytes for p in one.parameters()),
        "largest": max(p.nbytes for p in one.parameters()),
        "part": sum(local(p).nbytes for p in parameters),
        "sharded": all(is_sharded(p) for p in (*parameters, *average.network.parameters())),
        "wrong": wrong,
        "buffers": all(torch.equal(a, b) for a, b in zip(buffers, one.buffers(), strict=True)),
        "reserve": reserve_for(loss.network, shards_of(loss.network), FLOAT),
    }


def unlike(network: nn.Module, whole: dict[str, Tensor]) -> list[str]:
    """The names of the parameters that are not to the bit what they are in one process."""
    named = network.named_parameters()
    return [name for name, p in named if not torch.equal(full(p.detach()), whole[name].float())]


def randomized(network: nn.Module) -> None:
    """Values without zeros, so that no gradient is zero, the same in all processes and styles."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in network.parameters():
            local(p).copy_(part_of(torch.randn(p.shape, generator=generator) * 0.1, p))


def part_of(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that all have."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


def batches(recipe: Recipe, processes: Processes) -> list[StepBatch]:
    """Two micro-batches of a process, some of whose images see the latents of a first pass."""
    made = []
    for i in range(2):
        batch = synthetic_batch(recipe, 4, *SIZES, 7 + 2 * i, FLOAT, "cpu")
        generator = torch.Generator().manual_seed(10 * processes.rank + i)
        for tensor in (batch.latents, batch.noise, batch.states):
            tensor.normal_(generator=generator)
        # One process has a micro-batch of which no image sees any.
        batch.self_condition[:] = (torch.arange(4) < 3) & ((processes.rank, i) != (1, 1))
        made.append(batch)
    return made


def gradients(
    recipe: Recipe, processes: Processes, *dtypes: torch.dtype, **how: Any
) -> tuple[dict[str, Tensor], StepLoss, bool]:
    """Whole gradients of a step of two micro-batches, the loss, and whether any was whole before the end."""
    loss, _ = prepared(recipe, processes, *dtypes, **how)
    randomized(loss.network)
    whole = processes.replicate(loss, dtypes[1] if dtypes else FLOAT)
    parts = batches(recipe, processes)
    held = False
    for i, part in enumerate(parts):
        with processes.accumulate(whole, last=i == len(parts) - 1):
            whole(part).backward()
        held |= not all(p.grad is not None and is_sharded(p.grad) for p in loss.network.parameters())
    named = loss.network.named_parameters()
    return {name: full(p.grad) for name, p in named if p.grad is not None}, loss, held


def compiled(recipe: Recipe, processes: Processes, backend: str = "aot_eager") -> dict[str, Any]:
    """Whether a compiled step's gradients are those of an uncompiled one, and what was compiled."""
    jaxtyping.config.update("jaxtyping_disable", True)  # which users do not check inside of blocks
    computing.speed_up = partial(speed_up, backend=backend)
    try:
        plain, loss, _ = gradients(recipe, processes)
        torch._dynamo.reset()
        counters.clear()
        fast, quick, _ = gradients(recipe, processes, compiled=True)
        gaps = {name: float((fast[name] - plain[name]).abs().max()) for name in plain}
        return {
            "gaps": {name: gap for name, gap in gaps.items() if gap},
            "missing": sorted(plain.keys() - fast.keys()),
            "graphs": counters["stats"]["unique_graphs"],
            "breaks": list(counters["graph_break"]),
            "uncompiled": uncompiled(compiled_of(quick.network)),
            "names": list(quick.network.state_dict()) == list(loss.network.state_dict()),
        }
    finally:
        computing.speed_up = speed_up
        torch._dynamo.reset()
        jaxtyping.config.update("jaxtyping_disable", False)


def lower(recipe: Recipe, processes: Processes) -> dict[str, Any]:
    """How far gradients that are sent in bfloat16 are from those in float32, both computed in bfloat16."""
    exact, loss, _ = gradients(recipe, processes, FLOAT, FLOAT)
    plain, _, _ = gradients(recipe, processes, HALF, FLOAT)
    sent, _, held = gradients(recipe, processes, HALF, HALF)
    return {
        "gathered": str(gathered_in(HALF, HALF)),
        "distance": distance(sent, exact),
        "of computing": distance(plain, exact),
        "changed": any(not torch.equal(sent[name], plain[name]) for name in plain),
        "missing": sorted({name for name, _ in loss.network.named_parameters()} - sent.keys()),
        "zero": [name for name, grad in sent.items() if not grad.any()],
        "types": sorted({str(grad.dtype) for grad in sent.values()}),
        "held": held,
    }


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """How far gradients are from others, as a share of these."""
    off = sum(float((ours[name] - theirs[name]).square().sum()) for name in theirs)
    return (off / sum(float(value.square().sum()) for value in theirs.values())) ** 0.5


CHECKS: dict[str, Callable[..., dict[str, Any]]] = {"start": start, "compiled": compiled, "lower": lower}


def check(name: str, style: str, recipe: str, overrides: list[str], *more: str) -> dict[str, Any]:
    """Do a check in this process, which is one of those that torchrun started."""
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    processes = Processes(rank, count, "cpu", "fsdp" if style == "fsdp" else "ddp")
    return CHECKS[name](load_recipe(recipe, overrides), processes, *more)
