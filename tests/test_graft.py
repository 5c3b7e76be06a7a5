"""A run that starts from another: what is grafted, what is refused, and that training goes on from there."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

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

DIT = {"kind": "dit", "width": 32, "depth": 2, "heads": 2, "patch": 1, "registers": 2}
RIN_MODEL = {
    "kind": "rin",
    "latents": 16,
    "latent_width": 32,
    "token_width": 32,
    "blocks": 2,
    "layers": 1,
    "patch": 1,
    "read_write_heads": 2,
    "compute_heads": 2,
    "text_heads": 2,
    "registers": 2,
}
WIDTH, CHANNELS, SIDE = 12, 3, 6
JUMP = 0.04
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
    sky = 3 * (grid - 0.5)[None, None, :, None]  # the same in all, so that each place matters from the start
    return color * disk + ground * (1 - disk) + sky, TextStates(text, torch.ones(count, 3).bool())


def loss_of(net: Network, side: int, objective: ObjectiveConfig, seed: int, count: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    latents, text = pictures(count, side, generator)
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
    fresh = measured(network(model, 2 * SIDE, **changes), 2 * SIDE, objective)
    old = trained(network(model), objective, steps=60)
    before = measured(old, SIDE, objective)
    shift = resolution_shift(objective.path, SIDE**2, 4 * SIDE**2)
    larger = objective.model_copy(update={"time_shift": shift})
    new = grafted(old, model, 2 * SIDE, **changes)
    after = measured(new, 2 * SIDE, larger)
    assert before < 0.8 * fresh
    assert after - before < JUMP * (fresh - before)
    if isinstance(new, RIN):  # the same without its positions is what the bound must not let through
        torch.nn.init.trunc_normal_(new.data_pos_embedding, std=0.02)
        scrambled = measured(new, 2 * SIDE, larger)
        assert scrambled - before > JUMP * (fresh - before)


@pytest.mark.parametrize("path", [StraightPath(), GammaPath()], ids=lambda p: p.kind)
def test_shifted_times_hide_the_larger_picture_as_much(path):
    t = torch.tensor([0.2, 0.5, 0.9])

    def ratio(times: Tensor) -> Tensor:
        point = path.at(expand(times))
        return (point.sigma / point.alpha).flatten()

    shifted = shift_time(t, resolution_shift(path, 256, 1024))
    torch.testing.assert_close(ratio(shifted), 2 * ratio(t))  # twice the side


def test_positions_keep_their_places():
    side, width = 6, 5
    grid = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    slopes = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    positions = torch.stack([y.flatten(), x.flatten()], dim=1) @ slopes
    larger = resized_positions(positions, side, 2 * side)
    centres = (torch.arange(2 * side) + 0.5) / (2 * side)
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    expected = torch.stack([y.flatten(), x.flatten()], dim=1) @ slopes
    inner = torch.arange((2 * side) ** 2).view(2 * side, -1)[4:-4, 4:-4].flatten()
    torch.testing.assert_close(larger[inner], expected[inner], atol=1e-5, rtol=1e-5)
    assert torch.equal(resized_positions(positions, side, side), positions)


def test_repeated_latents_change_no_result(monkeypatch):
    """Copies count as often among the keys as among the values, so that only their noise shows."""
    monkeypatch.setattr("kilopix.graft._APART", 0.0)
    torch.manual_seed(0)
    old = network(RIN_MODEL)
    new = grafted(old, RIN_MODEL, SIDE, latents=48)
    x, gamma = torch.randn(2, CHANNELS, SIDE, SIDE), torch.tensor([0.3, 0.8])
    text = TextStates(torch.randn(2, 3, WIDTH), torch.ones(2, 3).bool())
    with torch.no_grad():
        a, b = (n.self_conditioned(x, gamma, n.encode_text(text), torch.ones(2).bool()) for n in (old, new))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_copies_of_latents_are_apart_and_the_first_are_the_old():
    latents = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    grown = grown_latents(latents, 12, seed=1)
    assert torch.equal(grown[:4], latents)
    assert len(torch.unique(grown, dim=0)) == 12
    assert (grown - latents.repeat(3, 1)).std() < 0.2 * latents.std()
    assert torch.equal(grown, grown_latents(latents, 12, seed=1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (shape(DIT), shape(RIN_MODEL), r"model\.kind is 'dit' there and 'rin' in the new run"),
        (shape(DIT), shape(DIT, width=64), r"model\.width is 32 there and 64 .*set model\.width=32"),
        (shape(DIT), shape(DIT, patch=2), r"model\.patch is 1 there"),
        (shape(RIN_MODEL), shape(RIN_MODEL, latents=24), r"model\.latents is 16 .*multiples of 16"),
        (shape(RIN_MODEL), shape(RIN_MODEL, coherence=False), r"model\.coherence is True there"),
        (shape(DIT), Shape.of(recipe(DIT), 4, WIDTH), "autoencoder's channels is 3 there and 4"),
        (shape(DIT), Shape.of(recipe(DIT), CHANNELS, 8), "text encoder's width is 12 there and 8"),
    ],
)
def test_what_cannot_be_bridged_is_refused_by_name(old, new, message):
    with pytest.raises(UserError, match=message):
        graft({}, old, new)


def test_routing_may_change():
    new = shape(DIT, routing={"share": 0.5})
    weights = network(DIT).state_dict()
    assert graft(weights, shape(DIT), new).changes == []


class TestRuns:
    """Through `kilopix train`, on the shards of the tiny demo."""

    def settings(self, **more: object) -> list[str]:
        from tiny import TINY

        return [*TINY, "training.images=32", *(f"{k.replace('__', '.')}={v}" for k, v in more.items())]

    def test_a_run_begins_with_the_averaged_weights_and_says_so(self, tiny_demo: Path, tmp_path: Path, cli):
        from kilopix.runtime import sha256_of_file
        from kilopix.training.checkpoint import read_weights

        out, shards = tmp_path / "run", tiny_demo / "shards"
        # Without a rate the weights stay what they were.
        given = self.settings(optimizer__lr=1e-30, optimizer__adamw__lr=1e-30)
        done = cli("train", shards, out, *given, "--start-from", tiny_demo / "run", "--device", "cpu")
        assert done.code == 0, done.err
        assert "starting from" in done.out
        old, _ = read_weights(tiny_demo / "run" / "model.safetensors")
        new, header = read_weights(out / "model.safetensors")
        assert all(torch.allclose(new[name], old[name], atol=1e-5) for name in old)
        begun = header["started_from"]
        assert begun["sha256"] == sha256_of_file(tiny_demo / "run" / "model.safetensors")
        assert begun["images_seen"] == 96
        assert json.loads((out / "recipe.json").read_text(encoding="utf-8"))["started_from"] == begun
        again = cli("train", shards, out, *given, "--start-from", tiny_demo / "run", "--device", "cpu")
        assert again.code == 0
        assert "already trained" in again.out

    def test_a_missing_start_is_named(self, tiny_demo: Path, tmp_path: Path, cli):
        done = cli(
            "train", tiny_demo / "shards", tmp_path / "run", *self.settings(), "--start-from", "nowhere"
        )
        assert done.code != 0
        assert "training.start_from=nowhere: not there" in done.err
        assert not (tmp_path / "run").exists()

    def test_another_prediction_or_other_encoders_are_refused(self, tiny_demo: Path, tmp_path: Path, cli):
        start = ["--start-from", tiny_demo / "run", "--device", "cpu"]
        data = self.settings(objective__prediction="data")
        done = cli("train", tiny_demo / "shards", tmp_path / "run", *data, *start)
        assert "objective.prediction is 'velocity' there and 'data' in the new run" in done.err
        source = read_source(tiny_demo / "run" / "model.safetensors")
        from kilopix.graft import start_from

        other = dict(source.header) | {"autoencoder_fingerprint": "another"}
        loaded = parse(Recipe, source.header["recipe"], "test")
        with pytest.raises(UserError, match="the source's"):
            start_from(source, loaded, other)

    def test_a_start_that_has_changed_is_refused(self, tiny_demo: Path, tmp_path: Path):
        from kilopix.graft import beginning

        source = tiny_demo / "run" / "model.safetensors"
        header = read_source(source).header
        loaded = parse(Recipe, header["recipe"], "test")
        loaded = loaded.model_copy(
            update={"training": loaded.training.model_copy(update={"start_from": str(source)})}
        )
        record = tmp_path / "recipe.json"
        record.write_text(json.dumps({"started_from": {"sha256": "0" * 64}}), encoding="utf-8")
        with pytest.raises(UserError, match="has changed since"):
            beginning(loaded, dict(header), record, begun=False)


def test_released_weights_can_begin_a_run(tmp_path: Path):
    from safetensors.torch import save_file

    config = RINConfig(
        latents=8,
        latent_width=32,
        token_width=32,
        blocks=1,
        layers=1,
        patch=2,
        read_write_heads=2,
        compute_heads=2,
        text_heads=16,
        registers=2,
    )
    torch.manual_seed(0)
    released = RIN(config, 4, WIDTH, SIDE)
    save_file({k: v.contiguous() for k, v in to_published(released).items()}, tmp_path / "model.safetensors")
    arguments = {
        "data_size": SIDE,
        "data_dim": 32,
        "num_input_channels": 4,
        "num_latents": 8,
        "latents_dim": 32,
        "label_dim": WIDTH,
        "num_processing_layers": 1,
        "num_blocks": 1,
        "path_size": 2,
        "read_write_heads": 2,
        "compute_heads": 2,
        "use_cond_rin_block": True,
        "concat_cond_token_to_latents": False,
        "num_text_registers": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(arguments), encoding="utf-8")
    source = read_source(tmp_path / "model.safetensors")
    assert source.objective.prediction == "noise"
    target = Shape(config.model_copy(update={"latents": 16}), 2 * SIDE, 4, WIDTH)
    new = RIN(target.model, 4, WIDTH, 2 * SIDE)  # pyright: ignore[reportArgumentType]
    new.load_state_dict(graft(source.weights, source.shape, target).weights)
    assert torch.equal(new.latents[:8], released.latents)
