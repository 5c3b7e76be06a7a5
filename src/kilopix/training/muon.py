"""Muon for the matrices of the blocks, AdamW for everything else.

In: parameters with gradients. Out: stepped parameters.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kilopix.config import Config
from kilopix.training.parallel import Processes, local
from kilopix.training.spread import Shape, rounds, work_spread

Beta = Annotated[float, Field(ge=0, lt=1)]
_AT_ONCE = 2**27
"""Elements of all processes together that are orthogonalised, and sent, at once."""
_ITERATIONS = 5


class AdamWConfig(Config):
    """AdamW (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: float = Field(default=0.01, ge=0)


class MuonConfig(Config):
    """Muon for the matrices of the blocks, AdamW for everything else (Jordan et al. 2024)."""

    kind: Literal["muon"] = "muon"
    lr: float = Field(default=0.02, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    adamw: AdamWConfig = AdamWConfig()


class Muon(torch.optim.Optimizer):
    """Momentum whose update of every matrix is orthogonalised; other parameters are stepped by AdamW.

    `torch.optim.Muon` orthogonalises in bfloat16, which a CPU without its instructions does a hundred
    times slower than float32; here matrices of one shape go through one batched product in float32 on a
    CPU and in bfloat16 on NVIDIA GPUs. Each matrix is orthogonalised by one of the processes and its
    direction sent to the others, so that all step alike; momentum lies where the weights do.
    """

    def __init__(
        self,
        config: MuonConfig,
        matrices: list[nn.Parameter],
        decayed: list[nn.Parameter],
        others: list[nn.Parameter],
        processes: Processes | None = None,
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
        self.processes = processes or Processes()
        self.betas = adamw.betas
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of every parameter that has a gradient; none where `found_inf` is set and not 0."""
        loss = closure() if closure else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["muon"]:
                self._step_matrices(params, group["lr"], group["weight_decay"])
            else:
                self._step_adam(params, group["lr"], group["weight_decay"])
        return loss

    def _step_matrices(self, params: list[Tensor], lr: float, decay: float) -> None:
        taken = 1.0 if self.found_inf is None else 1 - self.found_inf
        torch._foreach_mul_([local(p) for p in params], 1 - lr * decay * taken)  # pyright: ignore[reportArgumentType, reportCallIssue]
        shapes = tuple((p.shape[0], p.shape[1]) for p in params)
        for owned in rounds(shapes, flops, self.processes.count, _AT_ONCE):
            members = [params[i] for theirs in owned for i in theirs]
            flat, steps = self._updates(members)
            if flat.device.type == "cuda":  # in which they are orthogonalised: half as much is sent
                flat = flat.bfloat16()
            torch._foreach_copy_(steps, work_spread(flat, owned, shapes, self.processes, orthogonalize))
            torch._foreach_mul_(steps, [-lr * max(1.0, p.shape[0] / p.shape[1]) ** 0.5 for p in members])
            torch._foreach_mul_(steps, taken)  # pyright: ignore[reportArgumentType, reportCallIssue]
            torch._foreach_add_([local(p) for p in members], steps)

    def _updates(self, params: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Enter gradients into the momentum; returns what they look ahead to, as one tensor and as many.

        Where the step is skipped, that is the momentum itself, and finite.
        """
        buffers = [local(self._buffer(p, "momentum")) for p in params]
        flat = buffers[0].new_empty(sum(buffer.numel() for buffer in buffers))
        pieces = flat.split([buffer.numel() for buffer in buffers])
        updates = [piece.view_as(buffer) for piece, buffer in zip(pieces, buffers, strict=True)]
        torch._foreach_copy_(updates, _gradients(params))
        torch._foreach_sub_(updates, buffers)
        if self.found_inf is not None:
            flat.masked_fill_(self.found_inf > 0, 0.0)
        torch._foreach_add_(buffers, updates, alpha=1 - self.momentum)
        flat.mul_(self.momentum * (1 - self.momentum))
        torch._foreach_add_(updates, buffers)
        return flat, updates

    def _step_adam(self, params: list[Tensor], lr: float, decay: float) -> None:
        steps: list[Tensor] = []
        for p in params:
            state = self.state[p]
            if "step" not in state:
                state["step"] = torch.zeros((), device=local(p).device)
            steps.append(state["step"])
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            [local(p) for p in params],
            _gradients(params),
            [local(self._buffer(p, "exp_avg")) for p in params],
            [local(self._buffer(p, "exp_avg_sq")) for p in params],
            [],
            steps,
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            found_inf=self.found_inf,
        )
        if self.found_inf is not None:
            torch._foreach_sub_(steps, [self.found_inf] * len(steps))

    def _buffer(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        return state[name]


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [local(p.grad) for p in params if p.grad is not None]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix `number rows columns` near 1 by Newton-Schulz iterations.

    The quintic of Jordan et al. (2024): x -> 3.4445 x - 4.7750 x^3 + 2.0315 x^5.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)


def flops(shape: Shape) -> float:
    """Floating-point operations of `orthogonalize` for one matrix: three products an iteration."""
    short, long = sorted(shape)
    return _ITERATIONS * (4.0 * short**2 * long + 2.0 * short**3)
