"""How a run computes: its network, averages, loss and optimizer on the devices that are there.

In: a recipe, shards, and the processes that train. Out: what the loop of `kilopix.engine` steps, and what is
said of it: precision, kernels, micro-batch, which blocks are compiled.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kilopix.data.shards import Shards
from kilopix.network import Network, attention_shapes, blocks_of, build_network, shards_of
from kilopix.recipe import Recipe
from kilopix.runtime import read_json, say, write_json
from kilopix.step import StepLoader, StepLoss, synthetic_batch
from kilopix.training.averages import Average, build_average
from kilopix.training.checkpoint import allocate_states, read_progress
from kilopix.training.optim import build_optimizer
from kilopix.training.parallel import Processes
from kilopix.training.speed import (
    MOST_ON_CPU,
    attention_kernel,
    fits_on_gpu,
    largest_that_fits,
    pick_precision,
    speed_up,
    uncompiled,
)
from kilopix.types import UserError

MICRO_BATCH = "micro_batch.json"
"""In a run that once did not fit: the most images at once."""


@dataclass
class Computing:
    """What computes a run's steps, on one process's device."""

    recipe: Recipe
    processes: Processes
    network: Network
    average: Average
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    loader: StepLoader
    precision: torch.dtype
    compiled: bool


def build(
    recipe: Recipe,
    shards: Shards,
    out: Path,
    processes: Processes,
    weights: dict[str, Tensor] | None = None,
    newest: Path | None = None,
) -> Computing:
    """All of it as it is before the first step; `weights` are those of another run, to begin from.

    `newest` is the checkpoint from which the run will go on, whose micro-batch is kept.
    """
    training = recipe.training
    network = build_network(recipe, shards.index.latent_shape[0], shards.index.text_width)
    if weights is not None:
        network.load_state_dict(weights)
    network = network.to(processes.device).train()
    average = build_average(network, training.average)
    precision = pick_precision(training.precision, processes.device_type)
    compiled = processes.device_type == "cuda" if training.compile == "auto" else training.compile
    speed_up(blocks_of(network), compiled, training.activation_checkpointing)
    loss = StepLoss(network, recipe, precision)
    micro_batch = _micro_batch(loss, recipe, shards, processes, newest, out)
    loader = StepLoader(shards, recipe, processes, micro_batch)
    for averaged in average.networks:
        processes.shard(averaged, [])
    processes.shard(loss, shards_of(network))
    optimizer = build_optimizer(recipe.optimizer, network)
    allocate_states(optimizer)
    whole = processes.replicate(loss)
    parts = network, average, whole, optimizer, loader
    return Computing(recipe, processes, *parts, precision, compiled)


def _micro_batch(
    loss: StepLoss, recipe: Recipe, shards: Shards, processes: Processes, newest: Path | None, out: Path
) -> int:
    """Images that each process takes at once: as the recipe says, as before, or the most that fit."""
    training = recipe.training
    largest = -(-training.batch_size // processes.count)
    if training.micro_batch != "auto":
        return min(training.micro_batch, largest)
    if (out / MICRO_BATCH).exists():
        most = read_json(out / MICRO_BATCH, sealed=True)["most"]
        if type(most) is not int or most < 1:
            raise UserError(f"{out / MICRO_BATCH}: not a number of images ({most!r}); delete it.")
        return min(most, largest)
    if processes.device_type != "cuda":
        return min(largest, MOST_ON_CPU)
    if newest is not None:
        before = read_progress(newest)
        if before.processes == processes.count and before.micro_batch:
            return before.micro_batch
    index = shards.index
    weights = sum(p.nbytes for p in loss.parameters())
    states = 2 * weights // (processes.count if processes.sharded else 1)

    def fits(size: int) -> bool:
        batch = synthetic_batch(
            recipe,
            size,
            index.latent_shape[0],
            index.text_width,
            recipe.text.max_tokens,
            loss.precision,
            processes.device,
        )
        good = fits_on_gpu(lambda: loss(batch).backward(), states)
        loss.zero_grad()
        return good

    found = processes.smallest(largest_that_fits(fits, largest))
    if not found:
        raise UserError(
            "training.micro_batch: not one image fits this GPU; set "
            "training.activation_checkpointing=true, or training.parallel=fsdp on several GPUs, or take "
            "a smaller model."
        )
    return found


def no_room(computing: Computing, out: Path) -> str:
    """What to do where a step does not fit; the same command then takes fewer images at once."""
    size = computing.loader.micro_batch
    less = max(size // 2, 1)
    write_json(out / MICRO_BATCH, {"most": less})
    return (
        f"{out}: {computing.processes.device} has no memory for {size} images at once. The same command "
        f"goes on from the last checkpoint with {less}, if training.micro_batch is auto; "
        "training.activation_checkpointing=true takes less, too."
    )


def say_how(computing: Computing) -> dict[str, Any]:
    """Say in what way the run computes, as it is after its first steps, and return it for the log.

    A block that is to be compiled and is not is named: dynamo falls back to slow code without an error.
    """
    processes, blocks = computing.processes, blocks_of(computing.network)
    precision, micro_batch = computing.precision, computing.loader.micro_batch
    kernels = {
        name: attention_kernel(*shape, precision, processes.device)
        for name, shape in attention_shapes(computing.recipe, micro_batch).items()
    }
    slow = uncompiled(blocks) if computing.compiled else []
    how = {
        "precision": str(precision).removeprefix("torch."),
        "micro_batch": micro_batch,
        "attention": kernels,
        "compiled_blocks": len(blocks) - len(slow) if computing.compiled else 0,
        "blocks": len(blocks),
    }
    if processes.main:
        names = {id(module): name for name, module in computing.network.named_modules()}
        told = (
            f"{how['compiled_blocks']} of {len(blocks)} blocks compiled"
            if computing.compiled
            else "uncompiled"
        )
        kinds = ", ".join(f"{kernel} for {name}" for name, kernel in kernels.items())
        say(f"Computing in {how['precision']}, {micro_batch} images at once; attention: {kinds}; {told}.")
        for i in slow:
            say(
                f"{names[id(blocks[i])]}: runs uncompiled, and slower; see docs/troubleshooting.md.",
                stderr=True,
            )
    return how
