"""Muon for the matrices of the blocks, AdamW for everything else.

In: parameters with gradients. Out: stepped parameters.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kilopix.config import Config

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(Config):
    """AdamW (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: float = Field(default=0.01, ge=0)


class MuonConfig(Config):
    """Muon for the matrices of the blocks, AdamW for everything else (Jordan et al. 2024)."""

    kind: Literal["muon"] = "muon"
    lr: float = Field(default=0.02, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    adamw: AdamWConfig = AdamWConfig()


class Muon(torch.optim.Optimizer):
    """Momentum whose update of every matrix is orthogonalised; other parameters are stepped by AdamW.

    `torch.optim.Muon` orthogonalises in bfloat16, which a CPU without its instructions does a hundred
    times slower than float32; here matrices of one shape go through one batched product in float32 on a
    CPU and in bfloat16 elsewhere.
    """

    def __init__(
        self,
        config: MuonConfig,
        matrices: list[nn.Parameter],
        decayed: list[nn.Parameter],
        others: list[nn.Parameter],
    ):
        adamw = config.adamw
        groups = [
            {"params": matrices, "peak_lr": config.lr, "weight_decay": config.weight_decay, "muon": True},
            {
                "params": decayed,
                "peak_lr": adamw.lr,
                "weight_decay": adamw.weight_decay,
                "muon": False,
            },
            {
                "params": others,
                "peak_lr": adamw.lr,
                "weight_decay": 0.0,
                "muon": False,
            },
        ]
        super().__init__([g for g in groups if g["params"]], {"lr": config.lr})
        self.momentum = config.momentum
        self.betas = adamw.betas

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of every parameter that has a gradient."""
        loss = closure() if closure else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._step_matrices(params, group["lr"])
            else:
                self._step_adam(params, group["lr"])
        return loss

    def _step_matrices(self, params: list[Tensor], lr: float) -> None:
        grads = _gradients(params)
        buffers = [self._buffer(p, "momentum") for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - self.momentum)
        updates = torch._foreach_lerp(grads, buffers, self.momentum)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, update in enumerate(updates):
            by_shape.setdefault(tuple(update.shape), []).append(i)
        for (rows, columns), members in by_shape.items():
            directions = orthogonalize(torch.stack([updates[i] for i in members]))
            scale = max(1.0, rows / columns) ** 0.5
            torch._foreach_add_([params[i] for i in members], list(directions), alpha=-lr * scale)

    def _step_adam(self, params: list[Tensor], lr: float) -> None:
        beta1, beta2 = self.betas
        grads = _gradients(params)
        first = [self._buffer(p, "exp_avg") for p in params]
        second = [self._buffer(p, "exp_avg_sq") for p in params]
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        for p in params:
            state = self.state[p]
            state["step"] = state.get("step", torch.zeros(())) + 1
        step = float(self.state[params[0]]["step"])
        denominators = torch._foreach_sqrt(torch._foreach_div(second, 1 - beta2**step))
        torch._foreach_add_(denominators, 1e-8)
        torch._foreach_addcdiv_(params, first, denominators, -lr / (1 - beta1**step))

    def _buffer(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        return state[name]


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Bring the singular values of each matrix `... rows columns` near 1 by Newton-Schulz iterations.

    The quintic of Jordan et al. (2024): x -> 3.4445 x - 4.7750 x^3 + 2.0315 x^5.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)
