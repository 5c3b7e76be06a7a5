"""A network's pass compiled for sampling: the steps of one image are short, and wait for the host.

In: a network. Out: a callable of the same arguments and answers, which on a GPU is one recorded graph of
kernels, begun at once, in place of hundreds begun one by one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kilopix.faults import compiler_errors, first_line
from kilopix.runtime import say
from kilopix.training.speed import allow_graphs


class CompiledStep:
    """A network's forward pass, compiled when it is first called with arguments of a shape.

    Texts are padded to whole `text_unit`s, so that few lengths are compiled for. Where a pass cannot be
    compiled, as without a C compiler, that is said once, and the network itself is called from then on.
    """

    text_unit = 32

    def __init__(self, network: nn.Module, backend: str | Callable[..., Any] = "inductor"):
        self.network = network
        allow_graphs()
        # The mode that records CUDA graphs; it is the same as the default on other devices.
        mode = "reduce-overhead" if backend == "inductor" else None
        self._compiled = torch.compile(network.forward, backend=backend, mode=mode)
        self.works = True

    def __call__(self, *arguments: Any) -> Any:
        """The network's answer, in tensors of its own."""
        if self.works:
            try:
                torch.compiler.cudagraph_mark_step_begin()
                return _copied(self._compiled(*arguments))
            except compiler_errors() as error:
                self.works = False
                told = first_line(error)
                say(f"sampling cannot be compiled here, and goes on uncompiled: {told}", stderr=True)
        return self.network(*arguments)


def _copied(answer: Any) -> Any:
    """Copies: what a recorded graph gives, its next run writes over."""
    return answer.clone() if isinstance(answer, Tensor) else tuple(part.clone() for part in answer)
