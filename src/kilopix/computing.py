"""How a run computes: its network, averages, loss and optimizer on the devices that are there.

In: a recipe, shards, and the processes that train. Out: what the loop of `kilopix.engine` steps, and what is
said of it: precision, kernels, micro-batch, which blocks are compiled.
"""

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kilopix.data.shards import Shards
from kilopix.english import counted
from kilopix.models.rin import RIN
from kilopix.network import (
    Network,
    attention_shapes,
    blocks_of,
    build_network,
    compiled_of,
    empty_network,
    repeat_one_block,
    shards_of,
)
from kilopix.recipe import Recipe
from kilopix.runtime import read_json, say, write_json
from kilopix.step import StepLoader, StepLoss, padded_length, padding_of, synthetic_batch
from kilopix.training.averages import Average, build_average
from kilopix.training.checkpoint import allocate_states, read_progress
from kilopix.training.float8 import check_float8, to_float8
from kilopix.training.optim import build_optimizer
from kilopix.training.parallel import Processes
from kilopix.training.sharding import (
    copy_parts,
    materialise,
    norms_in_float32,
    reserve_for,
    scatter,
    shard,
)
from kilopix.training.speed import (
    MOST_ON_CPU,
    Precision,
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
OLDEST = (7, 0)
"""The oldest GPUs that compiled code runs on, by their compute capability."""


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
    sent: torch.dtype
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
    training, device = recipe.training, processes.device
    sizes = shards.index.latent_shape[0], shards.index.text_width
    precision = pick_precision(training.precision, processes.device_type)
    sent = sent_in(training.communication, precision, processes)
    compiled = compiles(training.compile, processes.device_type, processes.main)
    how = precision, sent, compiled
    try:
        loss, average = prepare(recipe, sizes, processes, *how, weights, with_values=newest is None)
        network = loss.network
        optimizer = build_optimizer(recipe.optimizer, network, processes)
        allocate_states(optimizer)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{device}: has no memory for the weights, averages and optimizer states of this model; set "
            "training.parallel=fsdp on several GPUs (or more of them), or take a smaller model."
        ) from error
    micro_batch = _micro_batch(loss, recipe, shards, processes, newest, out, compiled)
    loader = StepLoader(shards, recipe, processes, micro_batch)
    whole = processes.replicate(loss, sent)
    parts = network, average, whole, optimizer, loader
    return Computing(recipe, processes, *parts, precision, sent, compiled)


def sent_in(name: Precision, precision: torch.dtype, processes: Processes) -> torch.dtype:
    """The type in which devices send gradients to one another, and weights where layers multiply in it.

    `auto` is that of the layers' products for GPUs that share a network, which send everything three times a
    micro-batch, and float32 for those that hold it whole, which send gradients once a step.
    """
    if name == "auto":
        return precision if processes.sharded and processes.device_type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def gathered_in(sent: torch.dtype, precision: torch.dtype) -> torch.dtype:
    """The type in which sharded blocks are gathered: no lower than that in which they multiply."""
    return sent if sent == precision else torch.float32


def prepare(
    recipe: Recipe,
    sizes: tuple[int, int],
    processes: Processes,
    precision: torch.dtype,
    sent: torch.dtype,
    compiled: bool,
    weights: dict[str, Tensor] | None = None,
    with_values: bool = True,
) -> tuple[StepLoss, Average]:
    """The loss with its network, and the averages: whole, or the part of them that this process has.

    `sizes` are the latents' channels and the texts' width. Where processes share the network, no process has
    it whole on a device: it is made without values and sharded, memory is taken for the parts, and the main
    process gives each its part of every tensor in turn. The values are those of one process. In the memory of
    the main one's host lies the whole, since weights are drawn one after the other and no part of them can be
    drawn alone; it needs as much again when it writes averages. `with_values` is false where a checkpoint
    will bring them, of which each process reads its part.
    """
    shared, training = processes.sharded, recipe.training
    network = (empty_network if shared else build_network)(recipe, *sizes)
    if not shared:
        if weights is not None:
            network.load_state_dict(weights)
        network = network.to(processes.device)
    network = network.train()
    average = build_average(network, training.average)
    if training.float8 != "off":
        check_float8(precision, compiled, processes.device)
        done, left = to_float8(blocks_of(network), training.float8)
        if processes.main:
            rest = f"; in bfloat16, since 16 divides not both, those of {', '.join(left)}" if left else ""
            say(f"{counted(done, 'layer')} in float8, {training.float8}{rest}.")
    speed_up(compiled_of(network), compiled, training.activation_checkpointing, training.compile_mode)
    loss = StepLoss(network, recipe, precision)
    if not shared:
        return loss, average
    if isinstance(network, RIN):
        network.always_first_pass = recipe.objective.self_conditioning > 0
    for averaged in average.networks:
        shard(averaged, [], processes)
    shard(loss, shards_of(network), processes, gathered_in(sent, precision), sent)
    for module in (loss, *average.networks):
        materialise(module, processes.device)
    if with_values:
        scatter(network, _first_values(recipe, sizes, weights) if processes.main else None)
        for averaged in average.networks:
            copy_parts(averaged, network)
    return loss, average


def _first_values(
    recipe: Recipe, sizes: tuple[int, int], weights: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    """All tensors of a new network, or those of another run, once they are sure to fit; nothing is copied."""
    if weights is None:
        return build_network(recipe, *sizes).state_dict()
    network = empty_network(recipe, *sizes)
    network.load_state_dict(weights, assign=True)
    return network.state_dict()


def compiles(wanted: Literal["auto"] | bool, device_type: str, tell: bool = True) -> bool:
    """Whether blocks are compiled; what a machine lacks for it is told, and an error where it was asked."""
    if wanted is False or (wanted == "auto" and device_type != "cuda"):
        return False
    if lacking := lacks_for_compiling(device_type):
        if wanted is True:
            raise UserError(f"training.compile: {lacking}; training.compile=false trains without.")
        if tell:
            say(
                f"{lacking}: the network runs uncompiled and slower; see docs/troubleshooting.md.",
                stderr=True,
            )
    return not lacking


def lacks_for_compiling(device_type: str) -> str | None:
    """What torch.compile needs and this machine has not."""
    compilers = [os.environ.get("CXX", ""), "g++", "clang++"]
    if device_type == "cuda":
        if torch.cuda.get_device_capability() < OLDEST:
            return f"{torch.cuda.get_device_name()} is older than compiled code needs (7.0)"
        if find_spec("triton") is None:
            return "there is no package triton, which compiled code needs"
        compilers = [os.environ.get("CC", ""), "gcc", "clang", "cc"]
    if any(shutil.which(name.split()[0]) for name in compilers if name.strip()):
        return None
    return f"there is no C compiler ({', '.join(filter(None, compilers))}), which compiled code needs"


def _micro_batch(
    loss: StepLoss,
    recipe: Recipe,
    shards: Shards,
    processes: Processes,
    newest: Path | None,
    out: Path,
    compiled: bool,
) -> int:
    """Images that each process takes at once: as the recipe says, as before, or the most that fit.

    They are tried, with all else in its place. No try needs another process, since one whose memory is full
    would leave the others waiting: each tries by itself, and all take the smallest number. Where they share
    the network, a stand-in is tried that is not shared.
    """
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
    index, reserve = shards.index, 0
    tried: StepLoss | None = loss
    if processes.sharded:
        sizes, parts = (index.latent_shape[0], index.text_width), shards_of(loss.network)
        gather = gathered_in(sent_in(training.communication, loss.precision, processes), loss.precision)
        reserve = reserve_for(loss.network, parts, gather)
        try:
            tried = stand_in(recipe, sizes, loss.precision, gather, compiled, processes.device)
        except torch.OutOfMemoryError:
            tried = None  # the others are to hear of it, and not to wait

    tokens = padded_length(recipe.text.max_tokens, padding_of(recipe, processes.device_type))

    def fits(size: int) -> bool:
        batch = synthetic_batch(
            recipe,
            size,
            index.latent_shape[0],
            index.text_width,
            tokens,
            loss.precision,
            processes.device,
        )
        trial = tried
        assert trial is not None
        good = fits_on_gpu(lambda: trial(batch).backward(), reserve)
        trial.zero_grad()
        return good

    found = processes.smallest(largest_that_fits(fits, largest) if tried is not None else 0)
    if not found:
        raise UserError(
            "training.micro_batch: not one image fits this GPU; set "
            "training.activation_checkpointing=true, or training.parallel=fsdp on several GPUs, or take "
            "a smaller model."
        )
    return found


def stand_in(
    recipe: Recipe,
    sizes: tuple[int, int],
    precision: torch.dtype,
    gather: torch.dtype,
    compiled: bool,
    device: str,
) -> StepLoss:
    """A loss that keeps the activations of a sharded one, without any other process.

    Its blocks are one block again and again: like the sharded network, it holds the weights of one.
    """
    network = empty_network(recipe, *sizes)
    repeat_one_block(network)
    materialise(network, device)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    blocks = list(dict.fromkeys(blocks_of(network)))
    for block in blocks:
        block.to(gather)
        norms_in_float32(block, gather)
    training = recipe.training
    if training.float8 != "off":
        to_float8(blocks, training.float8)
    parts = list(dict.fromkeys(compiled_of(network)))
    speed_up(parts, compiled, training.activation_checkpointing, training.compile_mode)
    return StepLoss(network.train(), recipe, precision)


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

    A part that is to be compiled and is not is named: dynamo falls back to slow code without an error.
    """
    processes, parts = computing.processes, compiled_of(computing.network)
    precision, micro_batch = computing.precision, computing.loader.micro_batch
    kernels = {
        name: attention_kernel(*shape, precision, processes.device)
        for name, shape in attention_shapes(computing.recipe, micro_batch).items()
    }
    slow = uncompiled(parts) if computing.compiled else []
    how = {
        "precision": str(precision).removeprefix("torch."),
        "communication": str(computing.sent).removeprefix("torch.") if processes.count > 1 else None,
        "micro_batch": micro_batch,
        "attention": kernels,
        "compiled_parts": len(parts) - len(slow) if computing.compiled else 0,
        "parts": len(parts),
    }
    if processes.main:
        names = {id(module): name for name, module in computing.network.named_modules()}
        told = (
            f"{how['compiled_parts']} of {len(parts)} parts compiled" if computing.compiled else "uncompiled"
        )
        between = f", {how['communication']} between devices" if processes.count > 1 else ""
        kinds = ", ".join(f"{kernel} for {name}" for name, kernel in kernels.items())
        say(
            f"Computing in {how['precision']}{between}, {micro_batch} images at once; attention: {kinds}; "
            f"{told}."
        )
        for i in slow:
            say(
                f"{names[id(parts[i])]}: runs uncompiled, and slower; see docs/troubleshooting.md.",
                stderr=True,
            )
    return how
