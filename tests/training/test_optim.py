import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kilopix.network import blocks_of, build_network
from kilopix.recipe import load_recipe
from kilopix.training.lamb import Lamb, LambConfig
from kilopix.training.muon import AdamWConfig, Muon, MuonConfig, flops, orthogonalize
from kilopix.training.optim import ScheduleConfig, build_optimizer, lr_factor, set_lr
from kilopix.training.parallel import clip_gradients
from kilopix.training.spread import rounds


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 12)])


def test_warm_up_then_constant_then_decay():
    config = ScheduleConfig(warmup_images=100, decay="linear", decay_fraction=0.5, final=0.2)
    assert lr_factor(config, 50, 1000) == 0.5
    assert lr_factor(config, 100, 1000) == 1
    assert lr_factor(config, 500, 1000) == 1
    assert math.isclose(lr_factor(config, 750, 1000), 0.6)
    assert math.isclose(lr_factor(config, 1000, 1000), 0.2)


@pytest.mark.parametrize(("decay", "half"), [("cosine", 0.5), ("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_shapes_of_the_decay(decay, half):
    config = ScheduleConfig(warmup_images=0, decay=decay)
    assert math.isclose(lr_factor(config, 500, 1000), half)
    assert abs(lr_factor(config, 1000, 1000)) < 1e-12


def test_norms_and_biases_are_not_decayed():
    optimizer = build_optimizer(AdamWConfig(weight_decay=0.5), Blocks())
    decayed = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decayed == {2: 0.5, 1: 0.0}


def test_orthogonalized_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 8, 16), (2, 16, 8), (1, 5, 5)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest():
    network = Blocks()
    optimizer = build_optimizer(MuonConfig(), network)
    assert isinstance(optimizer, Muon)
    muon = {id(p) for g in optimizer.param_groups if g["muon"] for p in g["params"]}
    assert muon == {id(network.blocks[0].weight), id(network.blocks[1].weight)}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(network.parameters()))


@pytest.mark.parametrize(
    ("recipe", "outside"),
    [
        (
            "mini",
            {
                "patch_in",
                "position_in",
                "time",
                "text",
                "pooled_text",
                "modulation",
                "modulation_out",
                "patch_out",
            },
        ),
        (
            "mini_cad",
            {
                "time_embedder",
                "coherence_embedder",
                "map_text_tokens",
                "linear_previous",
                "map_tokens_to_patches",
            },
        ),
    ],
)
def test_muon_takes_the_matrices_of_the_blocks_of_both_networks(recipe: str, outside: set[str]):
    network = build_network(load_recipe(recipe), 16, 384)
    optimizer = build_optimizer(MuonConfig(), network)
    muon = {id(p) for g in optimizer.param_groups if g["muon"] for p in g["params"]}
    in_blocks = {id(p) for block in blocks_of(network) for p in block.parameters() if p.ndim == 2}
    names = {name.split(".")[0] for name, p in network.named_parameters() if id(p) in muon}
    assert names == {name for name, _ in network.named_children() if name.endswith("blocks")}
    weights = {n: p for n, p in network.named_parameters() if n.endswith(".weight") and p.ndim == 2}
    assert {id(p) for p in weights.values()} & in_blocks == muon
    assert {n.split(".")[0] for n, p in weights.items() if id(p) not in muon} == outside
    assert sum(p.numel() for p in weights.values() if id(p) in muon) > 0.5 * sum(
        p.numel() for p in network.parameters()
    )


def test_muon_without_blocks_is_refused():
    with pytest.raises(ValueError, match="blocks"):
        build_optimizer(MuonConfig(), nn.Linear(3, 3))


def test_the_adamw_inside_muon_is_torchs():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 4), nn.Linear(3, 4)
    theirs.load_state_dict(ours.state_dict())
    config = MuonConfig(adamw=AdamWConfig(lr=0.01, weight_decay=0.1))
    optimizers = [
        Muon(config, [], [ours.weight], [ours.bias]),
        build_optimizer(config.adamw, theirs),
    ]
    for optimizer in optimizers:
        set_lr(optimizer, 1.0)
    for step in range(4):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_muon_lowers_a_loss():
    torch.manual_seed(0)
    network = Blocks()
    optimizer = build_optimizer(MuonConfig(lr=0.05), network)
    set_lr(optimizer, 1.0)
    x, y = torch.randn(32, 4), torch.randn(32, 12)
    losses = []
    for _ in range(60):
        loss = (network.blocks[1](network.blocks[0](network.first(x)).tanh()) - y).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def stepped(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], shapes, steps: int) -> list[Tensor]:
    """Parameters after some steps with drawn gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = make(params)
    set_lr(optimizer, 1.0)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach() for p in params]


class PlainMuon(torch.optim.Optimizer):
    """Muon as it is written down, one matrix after another."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 0.05)
            direction = orthogonalize(p.grad.lerp(momentum, 0.95)[None])[0]
            scale = 0.02 * max(1.0, p.shape[0] / p.shape[1]) ** 0.5
            p.data = p.data * (1 - 0.02 * 0.1) - scale * direction


class PlainLamb(torch.optim.Optimizer):
    """LAMB as it is written down, one tensor after another."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            count = state["count"] = state.get("count", 0) + 1
            state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * p.grad
            state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * p.grad**2
            m, v = state["m"] / (1 - 0.9**count), state["v"] / (1 - 0.999**count)
            update = m / (v.sqrt() + 1e-8) + 0.1 * p.data
            ratio = p.data.norm() / update.norm() if p.data.norm() > 0 else 1.0
            p.data = p.data - 0.01 * ratio * update


SHAPES = [(300, 2), (7, 5), (5, 7), (7, 5), (1, 3)]


@pytest.mark.parametrize("at_once", [1, 70, 10**9])
def test_muon_is_muon_in_any_number_of_rounds(at_once: int, monkeypatch):
    monkeypatch.setattr("kilopix.training.muon._AT_ONCE", at_once)
    ours = stepped(lambda p: Muon(MuonConfig(weight_decay=0.1), p, [], []), SHAPES, 5)
    plain = stepped(lambda p: PlainMuon([{"params": p, "peak_lr": 0.02}], {}), SHAPES, 5)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 1, 70, 10**9])
def test_lamb_is_lamb_in_chunks_of_any_size(chunk: int | None):
    def make(params: list[nn.Parameter]) -> Lamb:
        optimizer = Lamb(LambConfig(lr=0.01, weight_decay=0.1), params, [])
        optimizer.chunk = chunk
        return optimizer

    ours = stepped(make, SHAPES, 5)
    plain = stepped(lambda p: PlainLamb([{"params": p, "peak_lr": 0.01}], {}), SHAPES, 5)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


class Kernels(TorchDispatchMode):
    """Counts what a GPU would be given: operations that are no views, and lists that are one kernel's.

    A `_foreach` operation runs tensor by tensor where its lists differ in shapes, strides or devices.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        if "_foreach" in func.__name__:
            lists = [a for a in args if isinstance(a, Sequence) and isinstance(a[0], Tensor)]
            first, *others = ([(t.shape, t.stride()) for t in each] for each in lists)
            assert all(other == first for other in others), f"{func} runs tensor by tensor"
        return func(*args, **(kwargs or {}))


def kernels_of_a_step(kind: str, tensors: int) -> int:
    """What a step (and clipping) of so many tensors of two shapes is, as a GPU takes it."""
    params = [nn.Parameter(torch.ones(4 + i % 2, 6)) for i in range(tensors)]
    bias = nn.Parameter(torch.ones(3))
    if kind == "muon":
        optimizer = Muon(MuonConfig(), params, [], [bias])
    else:
        optimizer = Lamb(LambConfig(), params, [bias])
        optimizer.chunk = 10**9
    optimizer.found_inf = torch.zeros(())
    for _ in range(2):
        for p in (*params, bias):
            p.grad = torch.ones_like(p)
        with Kernels() as kernels:
            clip_gradients([*params, bias], 1.0)
            optimizer.step()
    return kernels.count


@pytest.mark.parametrize("kind", ["muon", "lamb"])
def test_a_step_of_many_tensors_is_as_many_kernels_as_of_few(kind: str):
    assert kernels_of_a_step(kind, 4) == kernels_of_a_step(kind, 400)


@pytest.mark.parametrize(
    ("recipe", "channels", "width"), [("dit_i_256_ta", 32, 2048), ("cad_i_256_ta", 4, 2048)]
)
def test_newton_schulz_is_shared_evenly(recipe: str, channels: int, width: int):
    with torch.device("meta"):
        network = build_network(load_recipe(recipe), channels, width)
    (matrices,) = (g["params"] for g in build_optimizer(MuonConfig(), network).param_groups if g["muon"])
    shapes = tuple((p.shape[0], p.shape[1]) for p in matrices)
    for processes in (1, 2, 8):
        plan = rounds(shapes, flops, processes, 2**27)
        assert sorted(i for together in plan for mine in together for i in mine) == list(range(len(shapes)))
        loads = [sum(flops(shapes[i]) for r in plan for i in r[rank]) for rank in range(processes)]
        assert max(loads) < 1.05 * sum(loads) / processes
        sizes = [sum(matrices[i].numel() for mine in together for i in mine) for together in plan]
        assert max(sizes) <= 2**27
        assert len(plan) <= math.ceil(sum(sizes) / 2**27) + 1
