"""A run that starts from another: what is grafted, what is refused, and that training goes on from there."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kilopix.config import parse
from kilopix.diffusion.objective import ObjectiveConfig, loss_per_sample
from kilopix.diffusion.paths import GammaPath, StraightPath, expand, shift_time
from kilopix.errors import UserError
from kilopix.graft import Shape, graft, grown_latents, read_source, resized_positions, resolution_shift
from kilopix.models.published import to_published
from kilopix.models.rin import RIN, RINConfig
from kilopix.network import Network, build_network, encode_text, training_predictor
from kilopix.recipe import Recipe
from kilopix.types import TextStates

DIT = {"kind": "dit", "width": 64, "depth": 3, "heads": 2, "patch": 1, "registers": 2}
RIN_MODEL = {
    "kind": "rin",
    "latents": 16,
    "latent_width": 64,
    "token_width": 64,
    "blocks": 2,
    "layers": 1,
    "patch": 1,
    "read_write_heads": 2,
    "compute_heads": 2,
    "text_heads": 2,
    "registers": 2,
}
WIDTH, CHANNELS, SIDE = 12, 3, 8
JUMP = 0.10
"""The most by which the loss may grow at the graft, as a share of what training had taken off it."""


def recipe(model: dict, side: int = SIDE, **changes: object) -> Recipe:
    values = {"model": model | changes, "data": {"image_size": 8 * side}}
    return parse(Recipe, values, "test")


def shape(model: dict, side: int = SIDE, **changes: object) -> Shape:
    return Shape.of(recipe(model, side, **changes), CHANNELS, WIDTH)


def network(model: dict, side: int = SIDE, **changes: object) -> Network:
    return build_network(recipe(model, side, **changes), CHANNELS, WIDTH)


def grafted(net: Network, model: dict, side: int, **changes: object) -> Network:
    new = network(model, side, **changes)
    new.load_state_dict(graft(net.state_dict(), shape(model), shape(model, side, **changes)).weights)
    return new


def pictures(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, TextStates]:
    """Disks and stripes of a text's colour at a text's place: the same scenes, whatever the side."""
    text = torch.randn(count, 3, WIDTH, generator=generator)
    grid = (torch.arange(side) + 0.5) / side
    x, y = torch.meshgrid(grid, grid, indexing="xy")
    centre = 0.25 + 0.5 * text[:, 0, :2].sigmoid()
    away = (x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2
    disk = torch.sigmoid((0.06 - away) * 60)[:, None]
    color, ground = text[:, 1, :CHANNELS, None, None].tanh(), text[:, 2, :CHANNELS, None, None].tanh()
    return 1.5 * (color * disk + ground * (1 - disk)), TextStates(text, torch.ones(count, 3).bool())


def loss_of(net: Network, side: int, objective: ObjectiveConfig, seed: int, count: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    latents, text = pictures(count, side, generator)
    # The larger picture's noise is the smaller one's, seen closer, so that both runs have the same task.
    noise = torch.randn(latents.shape, generator=generator)
    t = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    t = shift_time(t, objective.time_shift)
    context = encode_text(net, text, torch.ones(count))
    keep = torch.ones(count).bool()
    predict = training_predictor(
        net, objective.path, context, torch.tensor([[0.0, 0, 1, 1]]).expand(count, 4), keep
    )
    return loss_per_sample(objective, predict, latents, noise, t).mean()


def trained(net: Network, objective: ObjectiveConfig, steps: int, side: int = SIDE) -> Network:
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, betas=(0.9, 0.99))
    for step in range(steps):
        loss = loss_of(net, side, objective, seed=step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return net


def measured(net: Network, side: int, objective: ObjectiveConfig) -> float:
    with torch.no_grad():
        return sum(loss_of(net, side, objective, 10_000 + i, 64).item() for i in range(2)) / 2


FLOW = parse(ObjectiveConfig, {"time": {"kind": "uniform"}}, "test")
GAMMA = parse(
    ObjectiveConfig,
    {"path": {"kind": "gamma"}, "prediction": "velocity", "time": {"kind": "uniform"}},
    "test",
)


@pytest.mark.parametrize(
    ("model", "objective", "changes"), [(DIT, FLOW, {}), (RIN_MODEL, GAMMA, {"latents": 32})]
)
def test_the_loss_goes_on_where_it_was(model, objective, changes):
    new = network(model, 2 * SIDE, **changes)
    fresh = measured(new, 2 * SIDE, objective)
    old = trained(network(model), objective, steps=150)
    before = measured(old, SIDE, objective)
    shift = resolution_shift(objective.path, SIDE**2, 4 * SIDE**2)
    larger = objective.model_copy(update={"time_shift": shift})
    after = measured(grafted(old, model, 2 * SIDE, **changes), 2 * SIDE, larger)
    print(f"{model['kind']}: before {before:.4f}, after {after:.4f}, fresh {fresh:.4f}")
    assert before < 0.8 * fresh
    assert after - before < JUMP * (fresh - before)
