"""How a network is made to run fast and fit: precision, compilation, checkpointed activations, micro-batch.

In: the blocks of a network, and the device. Out: the same blocks, changed in place; and numbers.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import checkpoint

from kilopix.faults import compiler_errors, first_line
from kilopix.runtime import say

Precision = Literal["auto", "float32", "bfloat16"]
CompileMode = Literal["default", "max-autotune"]
MOST_ON_CPU = 64
"""Images of a micro-batch on a CPU, where larger ones are no faster."""
_VIEW = re.compile(r"(\w*View|AsStrided|Permute|Transpose|Split|Alias|Select)\w*Backward")
MODES = {"default": None, "max-autotune": "max-autotune-no-cudagraphs"}
"""What torch calls the ways to compile. CUDA graphs keep outputs of one call in the place of the last one's,
which is wrong where blocks share a graph and outputs are kept for the backward pass."""
GRAPHS = 64
"""Graphs of one piece of code that dynamo keeps: a few are needed, and at its limit it stops compiling."""


def pick_precision(name: Precision, device_type: str) -> torch.dtype:
    """The type in which layers multiply; weights, their averages and optimizer states are always float32.

    `auto` is bfloat16 on GPUs that compute in it, not on those that only imitate it, as V100 and T4.
    """
    if name == "auto":
        has_it = device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_it else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


class Compiled:
    """A function that is compiled whole, once for all batch sizes and text lengths, and says if it still is.

    `varying` names, of each argument in turn, the dimensions that differ from call to call. What cannot be
    compiled whole is said with the reason, and computed uncompiled from then on. In the last call that had
    gradients, `holds` says whether its backward pass was a compiled one.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        varying: Sequence[Sequence[int]],
        backend: str | Callable[..., Any],
        mode: str | None,
    ):
        self.plain = function
        self.function = torch.compile(function, fullgraph=True, backend=backend, mode=mode)
        self.varying = varying
        self.holds: bool | None = None

    def __call__(self, *args: Any) -> Any:
        """Call it; the shapes that vary are told to the compiler before it first sees them."""
        for argument, dimensions in zip(args, self.varying, strict=False):
            _vary(argument, dimensions)
        try:
            out = self.function(*args)
        except compiler_errors() as error:
            if memory := _lack_of_memory(error):
                raise memory from error
            say(f"{self.plain.__qualname__}: not compiled ({first_line(error)}).", stderr=True)
            self.function = self.plain
            out = self.function(*args)
        last = out if isinstance(out, Tensor) else out[-1]
        if last.grad_fn is not None:
            self.holds = _of_compiled(last.grad_fn)
        return out


def _of_compiled(node: Node) -> bool:
    """Whether a tensor comes from compiled code, or is a view of what does."""
    while _VIEW.match(node.name()) and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return "CompiledFunction" in node.name()


def _lack_of_memory(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """The want of memory for which something was not compiled: less at once may be."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = getattr(error, "inner_exception", None) or error.__cause__
    return error


def _vary(argument: Any, dimensions: Sequence[int]) -> None:
    if isinstance(argument, Tensor):
        for dimension in dimensions[: argument.ndim]:
            torch._dynamo.maybe_mark_dynamic(argument, dimension)
    elif isinstance(argument, tuple):
        for part in argument:
            _vary(part, dimensions)
    elif is_dataclass(argument):
        for field in fields(argument):
            _vary(getattr(argument, field.name), dimensions)


def allow_graphs() -> None:
    """Let dynamo keep as many graphs of one piece of code as training and sampling need."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)


def speed_up(
    blocks: Sequence[nn.Module],
    compiled: bool,
    checkpointed: bool,
    mode: CompileMode = "default",
    backend: str | Callable[..., Any] = "inductor",
) -> None:
    """Compile every block by itself, and keep no activations inside it; names of weights stay.

    A block says what of it is compiled in `compiled_parts` (`forward` if nothing is said), which dimensions
    of the arguments vary in `varying` (the first of each), and in `recomputed` that its activations are kept
    in any case. Compilation is inside of what is computed anew: around it, dynamo would pass the block by
    without a word.
    """
    if compiled:
        from torch._functorch import config as lowering

        allow_graphs()
        if hasattr(lowering, "force_non_lazy_backward_lowering"):  # not in every version of torch
            # Else a backward pass is compiled when it first runs, and what fails then is found too late.
            lowering.force_non_lazy_backward_lowering = True
    for block in blocks:
        if compiled:
            for name in getattr(block, "compiled_parts", ("forward",)):
                varying = getattr(block, "varying", ((0,),) * 8)
                setattr(block, name, Compiled(getattr(block, name), varying, backend, MODES[mode]))
        if checkpointed and getattr(block, "recomputed", True):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def uncompiled(blocks: Sequence[nn.Module]) -> list[int]:
    """The numbers of the blocks whose last backward pass was not a compiled one, of all its calls."""
    return [i for i, block in enumerate(blocks) if not _holds(block)]


def _holds(block: nn.Module) -> bool:
    inner = block.forward.args[0] if isinstance(block.forward, partial) else block.forward
    parts = [inner, *(getattr(block, name) for name in getattr(block, "compiled_parts", ()))]
    found = [part.holds for part in parts if isinstance(part, Compiled) and part.holds is not None]
    return bool(found) and all(found)


def attention_kernel(
    queries: tuple[int, int, int, int], keys: int, masked: bool, dtype: torch.dtype, device: str
) -> str:
    """Which of torch's kernels attention of these shapes `B H T E` gets: flash, efficient, cudnn or math."""
    batch, heads, _, width = queries
    q = torch.empty(queries, dtype=dtype, device=device, requires_grad=True)
    k = torch.empty(batch, heads, keys, width, dtype=dtype, device=device, requires_grad=True)
    mask = torch.ones(batch, 1, 1, keys, dtype=torch.bool, device=device) if masked else None
    choice = SDPBackend(torch._fused_sdp_choice(q, k, k, mask))
    return choice.name.lower().removesuffix("_attention")


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
