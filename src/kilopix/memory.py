"""What training keeps in a device's memory, counted before anything is made.

In: a recipe, and what its encoders give. Out: bytes. A real micro-batch goes forward and backward through
the real network on tensors that have shapes and no values, and what is alive is added up at every operation.
Such tensors say that they lie on a CPU, so that every build of torch can count; a mode casts what autocast
casts on a GPU and not on a CPU. Attention is that of a fused kernel, as GPUs have, in which the scores of all
pairs never lie in memory.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kilopix.data.text_storage import STORED
from kilopix.network import Network, build_network, compiled_of
from kilopix.recipe import Recipe
from kilopix.step import StepBatch, StepLoss, padded_length, padding_of, synthetic_batch
from kilopix.training.speed import speed_up

COMPILED = {"dit": 0.62, "rin": 0.98}
"""What compiled blocks keep for the backward pass, over what uncompiled ones do: pointwise work between
products is done again. As torch's partitioner decides for the large networks; a longer test counts anew."""
CONTEXT = 1.0e9
"""What a GPU's driver and libraries take."""
BATCHES = 2
"""Batches of a process on its GPU during a step: the one that it trains on, and the next."""
_USABLE = 0.92
"""Share of a device's memory that an allocator can fill."""
_BLOCK = 512
"""Bytes of which every allocation on a GPU is a multiple."""
_FLOAT32_ON_CUDA = frozenset(
    [
        "acos",
        "asin",
        "cosh",
        "erfinv",
        "exp",
        "expm1",
        "log",
        "log10",
        "log2",
        "log1p",
        "reciprocal",
        "rsqrt",
        "sinh",
        "tan",
        "pow",
        "softplus",
        "layer_norm",
        "rms_norm",
        "group_norm",
        "cosine_similarity",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "cdist",
        "renorm",
        "logsumexp",
        "prod",
        "softmax",
        "log_softmax",
        "cumprod",
        "cumsum",
        "norm",
        "sum",
        "square",
        "__pow__",
        "__rpow__",
    ]
)
"""What CUDA's autocast computes in float32 and a CPU's does not, of what has a name in Python."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a micro-batch is trained, everything in float32 but activations.

    `per_image` is of a micro-batch's images, `held` of those of the whole step's share: batches lie on the
    device as they are stored.
    """

    weights: float
    gradients: float
    optimizer: float
    averages: float
    casts: float
    per_image: float
    held: float
    context: float

    def fixed(self, sharded_over: int = 1) -> float:
        """What does not grow with the micro-batch; weights and what belongs to them may be sharded."""
        shared = self.weights + self.gradients + self.optimizer + self.averages
        return shared / sharded_over + self.casts + self.context

    def peak(self, images: int, share: int | None = None, sharded_over: int = 1) -> float:
        """All of it, at a micro-batch of a step of which the device has `share` images."""
        return self.fixed(sharded_over) + images * self.per_image + (share or images) * self.held

    def largest(self, device_bytes: float, most: int) -> int:
        """The largest power of two of images, up to `most`, that fits; 0 if none does."""
        fits = [2**i for i in range(17) if self.peak(2**i, most) <= _USABLE * device_bytes and 2**i <= most]
        return max(fits, default=0)


class CudaAutocast(TorchFunctionMode):
    """On a CPU, autocast as it is on a GPU: norms, sums and powers in float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, with what it is given in float32 where a GPU's autocast would."""
        if func.__name__ in _FLOAT32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            args = tuple(_in_float32(value) for value in args)
        return func(*args, **(kwargs or {}))


def _in_float32(value: Any) -> Any:
    lower = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if lower else value


class Alive(TorchDispatchMode):
    """The bytes of all tensors made inside that are still alive, and the most there were at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._held: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call an operation, and take note of the memory that it takes."""
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return out

    def leave_out(self, tensors: Iterator[Tensor]) -> None:
        """Count these tensors not, whatever is made of them in their place."""
        self._held.update(value.untyped_storage()._cdata for value in tensors)

    def _note(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place in self._held:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._held.add(place)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self._held.discard(place)
        self.now -= size


@contextmanager
def without_values(recipe: Recipe, channels: int, text_width: int) -> Iterator[Network]:
    """A recipe's network whose tensors have shapes and no values; inside, so have all that are made."""
    with torch.device("meta"):
        network = build_network(recipe, channels, text_width).train()
    with FakeTensorMode():
        take_values(network)
        yield network


def take_values(network: nn.Module, device: str = "cpu") -> None:
    """Put tensors without values in the place of a network's; unlike those of meta they have a device."""
    for module in network.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(value.shape, dtype=value.dtype, device=device)))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(value.shape, dtype=value.dtype, device=device))


def batch_as_loaded(
    recipe: Recipe, channels: int, text_width: int, images: int, tokens: int, keep: Tensor
) -> StepBatch:
    """A batch in which texts lie as they are stored; `keep`, made outside, are the self-conditioned."""
    dtype = STORED[recipe.data.text_storage]
    batch = synthetic_batch(recipe, images, channels, text_width, tokens, dtype, "cpu")
    return replace(batch, self_condition=keep)


def longest_text(recipe: Recipe, gpu: bool) -> int:
    """Tokens to which the longest texts are padded, by which a run finds its micro-batch."""
    return padded_length(recipe.text.max_tokens, padding_of(recipe, "cuda" if gpu else "cpu"))


@lru_cache(maxsize=16)
def activations(
    recipe: Recipe, channels: int, text_width: int, precision: torch.dtype, gpu: bool, compiled: bool
) -> tuple[float, float, float]:
    """Bytes at the peak of a micro-batch's two passes: fixed ones (weights cast to `precision`), those of
    each image, and those of each image's place in a batch.

    Weights and gradients in float32 are left out. The peak is where the backward pass begins: all that was
    kept, and what that pass makes first. A first pass for self-conditioning is before it and keeps nothing.
    """
    training, tokens = recipe.training, longest_text(recipe, gpu)
    keeps = [torch.ones(images, dtype=torch.bool) for images in (2, 4)]
    peaks, held = [], 0.0
    with without_values(recipe, channels, text_width) as network:
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)
        speed_up(compiled_of(network), False, training.activation_checkpointing)
        loss = StepLoss(network, recipe, precision)
        for keep in keeps:
            batch = batch_as_loaded(recipe, channels, text_width, len(keep), tokens, keep)
            held = sum(value.nbytes for value in batch.tensors()) / len(keep)
            peaks.append(peak_of(loss, batch, gpu))
    once, twice = peaks
    each = (twice - once) / 2
    share = COMPILED[recipe.model.kind] if compiled and not training.activation_checkpointing else 1.0
    return max(0.0, once - 2 * each), share * each, held


def peak_of(loss: StepLoss, batch: StepBatch, gpu: bool) -> int:
    """The most bytes that a micro-batch's two passes take beside weights, gradients and batch."""
    alive = Alive()
    alive.leave_out(iter([*loss.parameters(), *loss.buffers(), *batch.tensors()]))
    alive.leave_out(p.grad for p in loss.parameters() if p.grad is not None)
    with (
        warnings.catch_warnings(action="ignore", category=UserWarning),  # that autocast is slow somewhere
        CudaAutocast() if gpu else nullcontext(),
        alive,
    ):
        loss(batch).backward()
    return alive.most
