"""What a plan says is what is: memory kept, bytes written, FLOPs done; what it assumes is called so."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kilopix.budget import Budget, Encoded, kept_by, kept_for_backward, sample_inputs
from kilopix.config import parse
from kilopix.errors import UserError
from kilopix.hardware import device_named
from kilopix.network import Network, build_network, encode_text
from kilopix.recipe import Recipe, load_recipe
from kilopix.stages.plan import Question, plan
from tiny import TINY, Cli

DIT = {"kind": "dit", "width": 64, "depth": 3, "heads": 4, "patch": 2}
RIN = {"kind": "rin", "latents": 16, "latent_width": 64, "token_width": 32, "blocks": 2, "layers": 1}
RIN |= {"read_write_heads": 4, "compute_heads": 4, "text_heads": 4}
ENCODED = Encoded(channels=4, text_width=24, tokens=7)


def recipe(model: dict, size: int = 64, **changes: object) -> Recipe:
    return parse(Recipe, {"model": model | changes, "data": {"image_size": size}}, "test")


def real(loaded: Recipe) -> Network:
    return build_network(loaded, ENCODED.channels, ENCODED.text_width).train()


@pytest.mark.parametrize("model", [DIT, RIN], ids=["dit", "rin"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_memory_that_is_counted_is_memory_that_is_kept(model, precision):
    loaded = recipe(model)
    network = real(loaded)
    for images in (2, 4):
        counted = kept_for_backward(loaded, ENCODED, images, precision)
        kept = kept_by(network, loaded, ENCODED, images, precision)
        assert counted == pytest.approx(kept, rel=0.01)
    memory = Budget(loaded, ENCODED, precision=precision).memory
    six = kept_by(network, loaded, ENCODED, 6, precision)
    assert memory.casts + 6 * memory.per_image == pytest.approx(six, rel=0.02)


@pytest.mark.parametrize(
    "changes", [{}, {"routing": {"share": 0.5, "min_tokens": 1, "first": 1, "after": 1}}]
)
def test_flops_are_those_that_a_counter_sees(changes):
    # Wide enough that what the formula leaves out (norms, modulation of a few) is little.
    loaded = recipe(DIT | {"width": 128, "depth": 6}, 128, **changes)
    network = real(loaded)
    x, t, text, windows = sample_inputs(loaded, ENCODED, 2)
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
    assert memory.peak(most) < device.memory < memory.peak(2 * most)
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


def test_a_device_without_bfloat16_is_planned_in_float16():
    lines = plan("dit_i_256_ta", load_recipe("dit_i_256_ta"), Question(device="t4", devices=1))
    assert "copies in float16" in "\n".join(lines)
    with pytest.raises(UserError, match="has no bfloat16"):
        plan("dit_i_256_ta", load_recipe("dit_i_256_ta"), Question(device="t4", precision="bfloat16"))


def test_on_this_machine_the_speed_is_measured(tiny_demo: Path, cli: Cli):
    settings = ["--device", "cpu", "--devices", "1", "--shards", tiny_demo / "shards"]
    done = cli("plan", "mini", *TINY, *settings)
    assert done.code == 0, done.err
    assert "measured on cpu now" in done.out
    assert f"measured in {tiny_demo / 'shards'}" in done.out.replace("\n", " ")


def test_what_is_not_known_is_asked_for(cli: Cli):
    done = cli("plan", "mini", "--device", "h100-smx")
    assert "did you mean 'h100-sxm'" in done.err
    other = cli("plan", "mini", "text.kind=hub", "text.name=some/encoder")
    assert "plan with --shards" in other.err
