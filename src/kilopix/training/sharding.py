"""FSDP2: a module of which every process holds a part, from its first value on.

In: a module on the meta device, or a whole one. Out: the same module, every parameter a DTensor, of which a
group of parts is gathered just before it computes and let go of after. Gradients are summed over processes
and reduced to parts after every micro-batch: held whole until the last one they would take as much memory as
the whole network, which is what sharding is to save; a step of n micro-batches then moves 3 n times the
weights instead of 2 n + 1, beside computation.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kilopix.training.parallel import Processes, local

_AT_ONCE = 6
"""Copies of the largest group that lie on a device at once: the one in use and the next one, the buffers of
both gathers, a gradient, and the buffer from which it is reduced."""


def shard(
    module: nn.Module,
    parts: Sequence[list[nn.Module]],
    processes: Processes,
    gather: torch.dtype = torch.float32,
    sent: torch.dtype = torch.float32,
) -> nn.Module:
    """Shard a module in place; each group of `parts` is gathered by itself.

    Parts are gathered in the type `gather`, and compute with what they were given. Norms among them compute
    with float32 copies of what was gathered. All outside of the parts (ends of the network, embeddings of
    times and levels, what the text passes first) is gathered in float32. Parameters, and the sums of
    gradients over micro-batches, are float32 always; `sent` is the type in which gradients are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    # Keys and values leave their layers as views, which nothing here changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(processes.device_type, (processes.count,))
    policy = MixedPrecisionPolicy(gather, sent, cast_forward_inputs=False)
    for group in parts:
        for part in group:
            norms_in_float32(part, gather)
        fully_shard(group[0] if len(group) == 1 else group, mesh=mesh, mp_policy=policy)
    policy = MixedPrecisionPolicy(reduce_dtype=sent, cast_forward_inputs=False)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
    return module


def norms_in_float32(part: nn.Module, gather: torch.dtype) -> None:
    """Let the norms of a part that is gathered in another type compute with float32 copies of theirs."""
    if gather == torch.float32:
        return
    for norm in part.modules():
        if isinstance(norm, nn.LayerNorm | nn.RMSNorm) and norm.weight is not None:
            norm.forward = partial(_norm, norm)  # pyright: ignore[reportAttributeAccessIssue]


def _norm(norm: nn.LayerNorm | nn.RMSNorm, x: Tensor) -> Tensor:
    shape, weight = list(norm.normalized_shape), norm.weight.float()
    if isinstance(norm, nn.RMSNorm):
        return F.rms_norm(x, shape, weight, norm.eps)
    return F.layer_norm(x, shape, weight, None if norm.bias is None else norm.bias.float(), norm.eps)


def materialise(module: nn.Module, device: str) -> None:
    """Give a module of the meta device memory on another one, its parameters (or their shards) no values yet.

    Buffers must have values, and keep them.
    """
    constants = dict(module.named_buffers())
    module.to_empty(device=device)
    for name, buffer in module.named_buffers():
        buffer.copy_(constants[name])


@torch.no_grad()
def scatter(network: nn.Module, whole: Mapping[str, Tensor] | None) -> None:
    """Give every process its part of the main one's tensors, of which one at a time is whole on a device.

    The others give None. All must call.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    for name, parameter in network.named_parameters():
        assert isinstance(parameter, DTensor)
        if whole is None:
            tensor = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        else:
            tensor = whole[name].detach().to(parameter.device, parameter.dtype)
        mine = distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
        local(parameter).copy_(local(mine))


@torch.no_grad()
def copy_parts(to: nn.Module, network: nn.Module) -> None:
    """Copy a network's parameters, or the parts of them that are here, to one that is sharded alike."""
    for ours, theirs in zip(to.parameters(), network.parameters(), strict=True):
        local(ours).copy_(local(theirs))


def reserve_for(network: nn.Module, parts: Sequence[list[nn.Module]], gather: torch.dtype) -> int:
    """Bytes that a step needs beside activations and what is there: parts of gradients, gathered groups."""
    gradients = sum(local(p).nbytes for p in network.parameters())
    largest = max(sum(p.numel() for part in group for p in part.parameters()) for group in parts)
    return gradients + _AT_ONCE * largest * gather.itemsize
