"""Shares and micro-batches of a step add up to the whole batch, whatever its size."""

from pathlib import Path

import pytest
import torch

from kilopix.data.shards import Shards
from kilopix.network import build_network
from kilopix.recipe import load_recipe
from kilopix.step import StepLoader, StepLoss
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
