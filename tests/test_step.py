"""Shares and micro-batches of a step add up to the whole batch, whatever its size."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kilopix.data.shards import Shards
from kilopix.data.text_storage import TextStorage, pack, stack, stack_stored, unpack, view
from kilopix.network import build_network
from kilopix.recipe import load_recipe
from kilopix.step import Padding, StepLoader, StepLoss
from kilopix.training.parallel import Processes
from tiny import TINY


@pytest.mark.parametrize(("count", "micro_batch"), [(8, 4), (5, 2), (3, 1), (1, 4)])
def test_the_shares_of_two_processes_are_the_batch(tiny_demo: Path, count: int, micro_batch: int):
    recipe = load_recipe("mini", TINY)
    shards = Shards(tiny_demo / "shards")
    network = build_network(recipe, shards.index.latent_shape[0], shards.index.text_width)
    torch.nn.init.normal_(network.patch_out.weight, std=0.1)  # so that the loss depends on everything
    loss = StepLoss(network, recipe, torch.float32)

    def of(processes: Processes, size: int) -> tuple[float, list[str], int]:
        loader = StepLoader(shards, recipe, processes, size)
        batch = loader.load((16, count))
        parts = list(batch.micro_batches(loader.micro_batches(count)))
        assert all(len(part) for part in parts)
        return sum(loss(part).item() for part in parts), batch.paths, len(parts)

    whole, paths, _ = of(Processes(), 64)
    shares = [of(Processes(rank, 2), micro_batch) for rank in range(2)]
    assert len(paths) == count
    assert shares[0][1] + shares[1][1] == paths
    assert shares[0][2] == shares[1][2], "both must take part in every micro-batch"
    assert whole > 0.1
    assert shares[0][0] + shares[1][0] == pytest.approx(whole, abs=1e-5)


def test_micro_batches_are_of_like_length_and_the_self_conditioned_come_first(tiny_demo: Path):
    recipe = load_recipe("mini", TINY)
    shards = Shards(tiny_demo / "shards")
    loader = StepLoader(shards, recipe, Processes(), 4)
    loader.padding = Padding(multiple=8, own=3)
    batch = loader.load((0, 12))
    assert sorted(batch.paths) != batch.paths, "the samples are named in the order of the run"
    parts = list(batch.micro_batches(loader.micro_batches(12)))
    lengths = [part.tokens for part in parts]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert max(lengths[0]) <= min(lengths[1])
    assert max(lengths[1]) <= min(lengths[2])
    for part in parts:
        first = part.self_condition.tolist()
        assert first == sorted(first, reverse=True)
        assert (part.states.shape[1] + 3) % 8 == 0
        assert part.states.shape[1] < max(part.tokens) + 8
        assert part.mask.sum(1).tolist() == part.tokens
        assert part.scales is None or part.scales.shape == part.mask.shape


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8"])
def test_a_batch_holds_the_numbers_of_its_samples_whatever_their_storage(storage: TextStorage):
    rng = torch.Generator().manual_seed(0)
    texts = [torch.randn(n, 8, generator=rng) for n in (3, 1, 5)]
    stored = [view(np.frombuffer(bytearray(pack(text, storage)), np.uint8), storage, 8) for text in texts]
    batch = stack_stored(stored, storage, 7)
    for dtype in (torch.float32, torch.bfloat16):
        found, expected = unpack(batch.values, batch.scales, dtype), stack(stored, storage, dtype)
        assert torch.equal(found[:, :5], expected.states)
        assert not found[:, 5:].any()
        assert torch.equal(batch.mask[:, :5], expected.mask)
