"""The memory that a plan counts is what a step takes, counted anew; CUDA's paths without a card."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from kilopix.budget import Budget, Encoded
from kilopix.memory import (
    BATCHES,
    COMPILED,
    CudaAutocast,
    batch_as_loaded,
    longest_text,
    take_values,
    without_values,
)
from kilopix.network import blocks_of
from kilopix.recipe import Recipe, load_recipe, recipe_names
from kilopix.step import StepBatch, StepLoss
from kilopix.training.averages import build_average
from kilopix.training.optim import build_optimizer
from kilopix.training.parallel import clip_gradients
from kilopix.training.speed import speed_up
from tiny import TINY

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = [
    ("mini", 8, TINY),
    ("cad_i_256_ta", 8, ["model.blocks=1", "model.layers=1", "model.text_layers=1", "text.max_tokens=100"]),
    ("dit_i_256_ta", 4, ["model.depth=2", "training.activation_checkpointing=true"]),
]


def unlike_ones() -> list[str]:
    """The recipes that differ in something on which memory depends."""
    unlike = {}
    for name in recipe_names():
        recipe = load_recipe(name)
        training = recipe.training.average, recipe.training.activation_checkpointing
        size, text = recipe.data.image_size, recipe.text.max_tokens
        unlike.setdefault((recipe.model, size, text, recipe.optimizer.kind, training), name)
    return list(unlike.values())


WHOLE = [(name, images, []) for name in unlike_ones() for images in (4, 16)]


@contextmanager
def on_a_gpu_that_is_not_there(recipe: Recipe, images: int) -> Iterator[tuple[StepLoss, StepBatch, Encoded]]:
    encoded = Encoded.of(recipe)
    given = encoded.channels, encoded.text_width
    keep = torch.ones(images, dtype=torch.bool)
    with without_values(recipe, *given) as network, CudaAutocast():
        batch = batch_as_loaded(recipe, *given, images, longest_text(recipe, True), keep)
        yield StepLoss(network, recipe, torch.bfloat16), batch, encoded


def peak_of_a_step(recipe: Recipe, images: int) -> int:
    """By torch's own tracker: two micro-batches, clipping, optimizer, average, and what is there before."""
    from torch.distributed._tools.mem_tracker import MemTracker

    with on_a_gpu_that_is_not_there(recipe, images) as (loss, batch, _):
        network = loss.network
        if recipe.training.activation_checkpointing:
            speed_up(blocks_of(network), False, True)
        average = build_average(network, recipe.training.average)
        for averaged in average.networks:
            take_values(averaged)  # a copy of what has no values is of a mode of its own
        optimizer = build_optimizer(recipe.optimizer, network)
        tracker = MemTracker()
        tracker.track_external(network, optimizer, *average.networks, *batch.tensors())
        for _ in range(2):  # in the first step the optimizer makes its states
            with tracker:
                for _ in range(2):
                    loss(batch).backward()
                    tracker.reset_mod_stats()
                clip_gradients(list(network.parameters()), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                average.update(network, images, images)
        return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


@pytest.mark.parametrize(
    ("name", "images", "settings"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in WHOLE)],
    ids=lambda value: str(value) if isinstance(value, str | int) else "",
)
def test_the_planned_memory_is_what_a_whole_step_takes(name: str, images: int, settings: list[str]):
    recipe = load_recipe(name, [*settings, "training.compile=false"])
    memory = Budget(recipe, Encoded.of(recipe)).memory
    planned = memory.peak(images) - memory.context - (BATCHES - 1) / BATCHES * images * memory.held
    assert planned == pytest.approx(peak_of_a_step(recipe, images), rel=0.1)


def in_a_process(*arguments: str) -> list[str]:
    worker = Path(__file__).parent / "without_values.py"
    done = subprocess.run(
        [sys.executable, str(worker), *arguments], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit_i_256_ta", "cad_i_256_ta", "dit_i_512", "cad_i_1024"])
def test_compiled_blocks_keep_the_share_that_is_planned(name: str):
    (share,) = in_a_process("compiled", name)
    assert float(share) == pytest.approx(COMPILED[load_recipe(name).model.kind], abs=0.04)


def test_a_steps_forward_pass_lies_wholly_on_the_gpu():
    if torch.version.cuda is None and not sys.platform.startswith("linux"):
        pytest.skip("the guard that a build of torch without CUDA lacks is borrowed on Linux alone")
    said = in_a_process("cuda")
    assert len(said) == 6
    assert {line.split(maxsplit=2)[2] for line in said} == {"cuda:0 torch.float32"}
