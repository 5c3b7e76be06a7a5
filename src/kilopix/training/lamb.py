"""LAMB: Adam's direction, with a step as long as the weights allow.

In: parameters with gradients. Out: stepped parameters.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kilopix.config import Config
from kilopix.training.parallel import is_sharded, local

Beta = Annotated[float, Field(ge=0, lt=1)]
_CHUNK = 2**27
"""Elements that are updated together, but on a CPU, where it is one tensor, which stays in its cache."""
_ROW = 256
"""Elements of a scratch buffer that are of one tensor, and so are scaled alike."""


class LambConfig(Config):
    """LAMB (You et al. 2020), as CAD-I is trained."""

    kind: Literal["lamb"] = "lamb"
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0)
    eps: float = Field(default=1e-8, gt=0)


class Lamb(torch.optim.Optimizer):
    """m/(sqrt v + eps) + decay w, scaled to ||w|| over its own norm (You et al. 2020, algorithm 2).

    Moments are corrected for their bias. `others` (norms and biases) are neither decayed nor scaled.
    Directions are made in a scratch buffer by the fused Adam kernel: on a CPU those of one tensor at a time,
    else of as many as `chunk` elements hold, by a number of kernels that does not depend on theirs.
    """

    def __init__(self, config: LambConfig, layers: list[nn.Parameter], others: list[nn.Parameter]):
        groups = [
            {"params": layers, "weight_decay": config.weight_decay, "peak_lr": config.lr, "adapt": True},
            {"params": others, "weight_decay": 0.0, "peak_lr": config.lr, "adapt": False},
        ]
        super().__init__([g for g in groups if g["params"]], {"lr": config.lr})
        self.betas, self.eps = config.betas, config.eps
        self.chunk: int | None = None
        """Elements that are updated together; None is what suits the device."""
        self.found_inf: Tensor | None = None
        self._made: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of every parameter that has a gradient; none where `found_inf` is set and not 0."""
        loss = closure() if closure else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for chunk in _chunks(params, self.chunk):
                self._step(chunk, group["lr"], group["weight_decay"], group["adapt"])
        return loss

    def _step(self, params: list[Tensor], lr: float, decay: float, adapt: bool) -> None:
        states = [self._state(p) for p in params]
        steps = [state["step"] for state in states]
        parts = [local(p) for p in params]
        torch._foreach_add_(steps, 1)
        alone = len(parts) == 1 or not adapt
        rows = [-(-part.numel() // _ROW) for part in parts]
        scratch = parts[0].new_empty(0 if alone else sum(rows), _ROW)
        if alone:
            updates = list(torch._foreach_mul(parts, -decay))
        else:
            pieces = [piece.view(-1) for piece in scratch.split(rows)]
            updates = [p[: part.numel()].view_as(part) for p, part in zip(pieces, parts, strict=True)]
            torch._foreach_copy_(updates, parts)
            torch._foreach_mul_(updates, -decay)
        torch._fused_adam_(
            updates,
            [local(p.grad) for p in params if p.grad is not None],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            steps,
            lr=1.0,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            found_inf=self.found_inf,
        )
        if self.found_inf is not None:
            torch._foreach_sub_(steps, [self.found_inf] * len(steps))
        if not adapt:  # and not decayed, so that nothing is added where the step is left out
            torch._foreach_add_(parts, updates, alpha=lr)
            return
        taken = 1.0 if self.found_inf is None else 1 - self.found_inf
        weights, lengths = _norms(params, parts, updates)
        ratios = torch.where((weights > 0) & (lengths > 0), weights / lengths, 1.0) * (lr * taken)
        if alone:
            parts[0].addcmul_(updates[0], ratios[0])
            return
        scratch.mul_(ratios.index_select(0, self._numbers(rows, ratios.device))[:, None])
        torch._foreach_add_(parts, updates)

    def _numbers(self, rows: list[int], device: torch.device) -> Tensor:
        """Of every row of a scratch buffer, the number of the tensor that it is of; made once."""
        key = tuple(rows)
        if key not in self._made:
            self._made[key] = torch.arange(len(rows)).repeat_interleave(torch.tensor(rows)).to(device)
        return self._made[key]

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=local(parameter).device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _norms(params: list[Tensor], *parts: list[Tensor]) -> Tensor:
    """Norms `list tensor` of whole tensors; where processes hold parts, squares are summed at once."""
    norms = torch.stack([torch.stack(torch._foreach_norm(each)) for each in parts])
    if not is_sharded(params[0]):
        return norms
    squares = norms.square()
    torch.distributed.all_reduce(squares)
    return squares.sqrt()


def _chunks(params: list[Tensor], limit: int | None) -> list[list[Tensor]]:
    """Parameters in their order, in runs that are updated together; the same runs in all processes."""
    if not params:
        return []
    sharded = is_sharded(params[0])
    if limit is None:
        limit = 1 if params[0].device.type == "cpu" and not sharded else _CHUNK
    parts = torch.distributed.get_world_size() if sharded else 1
    chunks: list[list[Tensor]] = [[]]
    size = 0
    for p in params:
        if chunks[-1] and size + p.numel() // parts > limit:
            chunks.append([])
            size = 0
        chunks[-1].append(p)
        size += p.numel() // parts
    return chunks
