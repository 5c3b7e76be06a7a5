"""How fast this machine trains a recipe: some steps of the engine itself, timed.

In: a recipe, what its encoders give, a device; shards if there are any. Out: seconds of a step. Everything is
as in `kilopix train`: precision, compiled blocks, padding, self-conditioning, clipping, optimizer, averages,
and the search for a micro-batch that fits. Without shards the batches are of noise, with texts of the mean
length given, some shorter, some longer.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import cast

import torch

from kilopix import engine
from kilopix.data.shards import ShardIndex, Shards
from kilopix.data.text_storage import STORED
from kilopix.hardware import peak_flops
from kilopix.recipe import Recipe
from kilopix.runtime import torch_generator
from kilopix.step import StepBatch, padded_length, padding_of, parts_of, synthetic_batch
from kilopix.training.parallel import join_processes
from kilopix.types import UserError

WARM_UP = 3
"""Steps that are not counted: in them blocks are compiled and the optimizer makes its states."""
_SPREAD = 0.25
"""By what share of the mean the shortest and the longest text differ from it, where they are not known."""


@dataclass(frozen=True)
class Speed:
    """What was measured: seconds of a step of `images`, so many at once; bytes at the peak on a GPU."""

    images: int
    micro_batch: int
    seconds: float
    compiled: bool
    peak_bytes: int | None

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    def utilisation(self, flops_per_image: float, device: str, precision: str) -> float | None:
        """Share of the device's peak, where that is known."""
        peak = peak_flops(device, "bfloat16" if precision == "bfloat16" else "float32")
        return self.rate * flops_per_image / peak if peak else None


@dataclass(frozen=True)
class _Index:
    """What the engine asks of shards before it reads any."""

    latent_shape: tuple[int, int, int]
    text_width: int


class _NoShards(Shards):
    """Takes the place of shards where batches are made up; nothing of it is read but shapes."""

    def __init__(self, recipe: Recipe, channels: int, text_width: int):
        shape = channels, recipe.latent_side, recipe.latent_side
        self.index = cast(ShardIndex, _Index(shape, text_width))

    def __len__(self) -> int:
        return 1


def measured_speed(
    recipe: Recipe,
    channels: int,
    text_width: int,
    tokens: int,
    device: str,
    shards: Shards | None = None,
    steps: int = 4,
) -> Speed:
    """Train a new network for some steps, and time those after the first few."""
    size = recipe.training.micro_batch
    try:
        with tempfile.TemporaryDirectory() as folder, join_processes(device, "ddp", 1.0) as processes:
            source = _NoShards(recipe, channels, text_width) if shards is None else shards
            run = engine.start(recipe, source, Path(folder), {}, processes)
            size = run.loader.micro_batch
            if shards is None:
                batch = noise_batch(recipe, channels, text_width, tokens, run.loader.micro_batch, device)
                return timed_steps(run, repeat(batch.moved_to(device)), steps)
            return timed_steps(run, engine.batches_of(run), steps)
    except torch.OutOfMemoryError as error:
        what = "one image" if size == 1 else "the network" if size == "auto" else f"{size} images at once"
        raise UserError(
            f"{device}: has no memory for {what}. Set --micro-batch lower, or "
            "training.activation_checkpointing=true, which keeps less."
        ) from error


def timed_steps(run: engine.Run, batches: Iterator[StepBatch], steps: int, warm_up: int = WARM_UP) -> Speed:
    """Steps of a run as it goes on, timed together, so that a GPU always has its next one to do."""
    device, on_gpu = run.processes.device, run.processes.device_type == "cuda"
    for _ in range(warm_up if run.compiled or on_gpu else min(warm_up, 1)):
        engine.take_step(run, next(batches), False)
    wait_for(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    for _ in range(steps):
        engine.take_step(run, next(batches), False)
    wait_for(device)
    seconds = (time.perf_counter() - began) / steps
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    return Speed(run.recipe.training.batch_size, run.loader.micro_batch, seconds, run.compiled, peak)


def noise_batch(
    recipe: Recipe, channels: int, text_width: int, tokens: int, micro_batch: int, device: str
) -> StepBatch:
    """A step's batch of noise, on the CPU, that lies as a loader's: by length, the self-conditioned first."""
    count, kind = recipe.training.batch_size, torch.device(device).type
    spread = torch.linspace(1 - _SPREAD, 1 + _SPREAD, count)
    lengths = (tokens * spread).round().long().clamp(1, recipe.text.max_tokens)
    padding, rows = padding_of(recipe, kind), int(lengths.max())
    stored = STORED[recipe.data.text_storage]
    made = synthetic_batch(recipe, count, channels, text_width, padded_length(rows, padding), stored, "cpu")
    generator = torch_generator("plan", recipe.seed)
    for values in (made.latents, made.noise):
        values.normal_(generator=generator)
    made.t.uniform_(generator=generator)
    states = torch.randn(made.states.shape, generator=generator) * (40 if stored == torch.int8 else 1)
    first = torch.zeros(count, dtype=torch.bool)
    for part in parts_of(count, -(-count // micro_batch)):
        share = round(recipe.objective.self_conditioning * (part.stop - part.start))
        first[part.start : part.start + share] = True
    return replace(
        made,
        states=states.to(stored),
        scales=None if made.scales is None else made.scales / 40,
        mask=torch.arange(made.mask.shape[1]) < lengths[:, None],
        self_condition=first,
        tokens=lengths.tolist(),
        padding=padding,
    )


def wait_for(device: str) -> None:
    """Let the device finish what it was given."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    if kind == "mps":
        torch.mps.synchronize()
