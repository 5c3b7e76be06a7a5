import math

import pytest
import torch
from torch import nn

from kilopix.network import blocks_of, build_network
from kilopix.recipe import load_recipe
from kilopix.training.muon import AdamWConfig, Muon, MuonConfig, orthogonalize
from kilopix.training.optim import ScheduleConfig, build_optimizer, lr_factor, set_lr


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
