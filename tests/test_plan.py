"""What a plan says is what is: memory kept, bytes written, FLOPs done; what it assumes is called so."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kilopix import engine
from kilopix.budget import Budget, Encoded
from kilopix.config import parse
from kilopix.errors import UserError
from kilopix.hardware import device_named
from kilopix.measuring import noise_batch
from kilopix.network import Network, build_network, encode_text
from kilopix.recipe import Recipe, load_recipe
from kilopix.runtime import write_json
from kilopix.stages.plan import Question, plan
from kilopix.types import TextStates
from tiny import TINY, Cli

DIT = {"kind": "dit", "width": 64, "depth": 3, "heads": 4, "patch": 2}
RIN = {"kind": "rin", "latents": 16, "latent_width": 64, "token_width": 32, "blocks": 2, "layers": 1}
RIN |= {"read_write_heads": 4, "compute_heads": 4, "text_heads": 4}
ENCODED = Encoded(channels=4, text_width=24, tokens=7)


def recipe(model: dict, size: int = 64, **changes: object) -> Recipe:
    return parse(Recipe, {"model": model | changes, "data": {"image_size": size}}, "test")


def real(loaded: Recipe) -> Network:
    return build_network(loaded, ENCODED.channels, ENCODED.text_width).train()


@pytest.mark.parametrize(
    "changes", [{}, {"routing": {"share": 0.5, "min_tokens": 1, "first": 1, "after": 1}}]
)
def test_flops_are_those_that_a_counter_sees(changes):
    # Wide enough that what the formula leaves out (norms, modulation of a few) is little.
    loaded = recipe(DIT | {"width": 128, "depth": 6}, 128, **changes)
    network = real(loaded)
    x, t, windows = (
        torch.randn(2, 4, 16, 16),
        torch.rand(2),
        torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, 4),
    )
    text = TextStates(torch.randn(2, 7, 24), torch.ones(2, 7, dtype=torch.bool))
    # The counter knows no fused attention of a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(x, t, encode_text(network, text, torch.ones(2)), windows, torch.Generator())
    budget = Budget(loaded, ENCODED)
    assert budget.flops_per_image / 3 == pytest.approx(counter.get_total_flops() / 2, rel=0.06)


def test_checkpoints_and_shards_are_as_large_as_said(tiny_demo: Path):
    from kilopix.data.shards import Shards
    from kilopix.training.checkpoint import newest_checkpoint

    loaded = load_recipe("mini", TINY)
    shards = Shards(tiny_demo / "shards")
    tokens = [len(shards.plain(i).text) for i in range(len(shards))]
    encoded = Encoded(shards.index.latent_shape[0], shards.index.text_width, round(sum(tokens) / len(tokens)))
    budget = Budget(loaded, encoded, pictures=len(shards))
    checkpoint = newest_checkpoint(tiny_demo / "run" / "checkpoints")
    assert checkpoint is not None
    written = sum(f.stat().st_size for f in checkpoint.rglob("*") if f.is_file())
    assert budget.checkpoint_bytes == pytest.approx(written, rel=0.1)  # names and header weigh something here
    held = sum(f.stat().st_size for f in (tiny_demo / "shards").glob("*.arrow"))
    assert budget.shard_bytes == pytest.approx(held, rel=0.15)


def test_muon_keeps_one_moment_of_its_matrices():
    adamw, muon = (
        Budget(load_recipe("mini", [f"optimizer.kind={kind}"]), ENCODED) for kind in ("adamw", "muon")
    )
    weights = 4 * adamw.parameters
    assert adamw.checkpoint_bytes == 4 * weights
    assert 3 * weights < muon.checkpoint_bytes < 3.5 * weights


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    memory = Budget(load_recipe("dit_i_256_ta"), Encoded.of(load_recipe("dit_i_256_ta"))).memory
    device = device_named("rtx-4090")
    most = memory.largest(device.memory, 1024)
    assert most == 16
    assert memory.peak(most, 1024) > memory.peak(most), "the step's batch lies on the device, too"
    assert memory.peak(most, 1024) < device.memory < memory.peak(2 * most, 1024)
    assert memory.largest(device.memory, 4) == 4
    assert memory.largest(1e9, 4) == 0
    assert memory.fixed(sharded_over=8) < memory.fixed() / 2


def hours(lines: list[str]) -> float:
    found = re.search(r"([\d,.]+) device hours", "\n".join(lines))
    assert found, lines
    return float(found[1].replace(",", ""))


def test_hours_follow_from_flops_peak_and_utilisation():
    loaded = load_recipe("dit_i_256_ta")
    lines = plan("dit_i_256_ta", loaded, Question(utilisation=0.5))
    flops = Budget(loaded, Encoded.of(loaded)).flops
    assert hours(lines) == pytest.approx(flops / (0.5 * 989.4e12) / 3600, abs=0.06)
    assert "(as given)" in lines[-1]
    assumed = plan("dit_i_256_ta", loaded, Question())
    assert "40% (assumed, not measured)" in assumed[-1]
    assert hours(assumed) == pytest.approx(hours(lines) * 0.5 / 0.4, rel=0.01)


def test_a_device_without_bfloat16_is_planned_in_float32_as_it_trains():
    loaded = load_recipe("mini", TINY)
    lines = plan("mini", loaded, Question(device="t4", devices=1))
    assert "copies in" not in "\n".join(lines)
    assert "of t4's 8 TFLOP/s" in lines[-1]
    with pytest.raises(UserError, match="has no bfloat16"):
        plan("mini", loaded, Question(device="t4", precision="bfloat16"))


def test_on_this_machine_the_steps_of_training_itself_are_timed(
    tiny_demo: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    steps, whole = [], engine.take_step
    monkeypatch.setattr(engine, "take_step", lambda run, *rest: steps.append(run) or whole(run, *rest))
    settings = ["--device", "cpu", "--devices", "1", "--micro-batch", "4"]
    for shards in ([], ["--shards", tiny_demo / "shards"]):
        done = cli("plan", "mini", *TINY, *settings, *shards)
        assert done.code == 0, done.err
        assert "4 at once, uncompiled, measured on cpu now" in done.out.replace("\n", " ")
        assert len(steps) >= 4
        run = steps.pop()
        steps.clear()
        assert run.loader.micro_batch == 4
        assert run.images_seen >= 4 * run.recipe.training.batch_size
        assert all(run.optimizer.state[p] for p in run.network.parameters())
    assert f"measured in {tiny_demo / 'shards'}" in done.out.replace("\n", " ")


def test_batches_of_noise_lie_as_those_of_a_loader():
    loaded = load_recipe("cad_i_256_ta", ["training.batch_size=20"])
    batch = noise_batch(loaded, 4, 24, 100, 5, "cuda")  # as for a GPU; it is made on the CPU
    parts = list(batch.micro_batches(4))
    assert batch.states.dtype == torch.int8
    assert batch.scales is not None
    assert min(batch.tokens) == 75
    assert max(batch.tokens) == 125
    assert batch.mask.sum(1).tolist() == batch.tokens
    for part in parts:
        assert (part.states.shape[1] + 18) % 128 == 0
        assert part.self_condition.tolist() == [True] * 4 + [False]  # 0.9 of five, those first
    assert parts[0].states.shape[1] < parts[-1].states.shape[1]


def test_what_does_not_fit_is_one_line_that_names_the_micro_batch(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "take_step", full)
    done = cli("plan", "mini", *TINY, "--device", "cpu", "--devices", "1", "--micro-batch", "4")
    assert done.code == 2
    (line,) = done.err.strip().splitlines()[-1:]
    assert "no memory for 4 images at once" in line
    assert "--micro-batch" in line
    assert "training.activation_checkpointing=true" in line


def test_what_was_measured_on_a_card_takes_the_place_of_what_is_assumed(tmp_path: Path, cli: Cli):
    rates = {"images_per_second": 1.0, "utilisation": 0.37, "micro_batch": 64, "peak_bytes": 1}
    encoding = {"texts_per_second": 600.0, "images_per_second": 400.0}
    file = tmp_path / "measured.json"
    write_json(file, {"card": "NVIDIA H200", "training": {"dit": rates}, "encoding": encoding})
    question = Question(measured=file)
    loaded = load_recipe("dit_i_256_ta")
    lines = plan("dit_i_256_ta", loaded, question)
    assert "37% (measured on NVIDIA H200) of h100-sxm" in lines[-1]
    assert hours(lines[-1:]) == pytest.approx(hours(plan("", loaded, Question(utilisation=0.37))), rel=1e-3)
    needed = 1_281_167 * (1 / 600 + 1 / 400) / 3600
    assert f"{needed:.1f} device hours" in lines[-2]
    other = cli("plan", "cad_i_256_ta", "--measured", file)
    assert "nothing was measured with a network of kind 'rin'" in other.err
    write_json(file, {"card": "cpu", "training": {"dit": rates | {"utilisation": None}}, "encoding": {}})
    assert "the peak of cpu was not known" in cli("plan", "dit_i_256_ta", "--measured", file).err


def test_what_is_not_known_is_asked_for(cli: Cli):
    done = cli("plan", "mini", "--device", "h100-smx")
    assert "did you mean 'h100-sxm'" in done.err
    other = cli("plan", "mini", "text.kind=hub", "text.name=some/encoder")
    assert "plan with --shards" in other.err
