"""Speed as ratios within one run, so that figures from different machines can be put side by side.

    make bench

Prints one line a measurement; `benchmarks/results/` keeps those worth keeping, with machine and command.
"""

import os
import platform
import random
import time
from collections.abc import Callable

import torch

import data_engine
from kilopix.models.dit import DiT, DiTConfig, flops_per_image
from kilopix.pretrained.text_encoder import MiniLMConfig, encode_in_batches, load_text_encoder
from kilopix.recipe import load_recipe
from kilopix.types import TextStates


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The fastest of several runs, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def matrix_product() -> float:
    """FLOP/s of a float32 product of two 1024 x 1024 matrices."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / seconds(lambda: a @ a, 20)


def training_step(rate: float) -> None:
    """The demo's training step (forward and backward) against its own FLOPs at the product's rate."""
    recipe = load_recipe("mini")
    config = recipe.model
    assert isinstance(config, DiTConfig)
    side, channels = recipe.data.image_size // recipe.downsampling, 16
    network = DiT(config, channels, 384)
    batch, tokens = recipe.training.batch_size, 64
    x, t = torch.randn(batch, channels, side, side), torch.rand(batch)
    text = TextStates(torch.randn(batch, tokens, 384), torch.ones(batch, tokens, dtype=torch.bool))

    def step() -> None:
        network(x, t, network.encode_text(text)).square().mean().backward()
        network.zero_grad()

    taken = seconds(step)
    floor = 3 * batch * flops_per_image(config, side, channels, tokens) / rate
    print(f"training step: {batch / taken:.1f} images/s; {floor / taken:.2f} of the product's rate")


def text_encoding() -> None:
    """Captions grouped by length against captions in the order given, 64 at a time."""
    encoder = load_text_encoder(MiniLMConfig())
    rng = random.Random(0)
    words = ["a", "photo", "of", "the", "red", "fox", "on", "blue", "in", "light", "near", "left"]
    captions = [" ".join(rng.choices(words, k=rng.randint(10, 90))) for _ in range(512)]
    grouped = seconds(lambda: encode_in_batches(encoder, captions), 2)
    plain = seconds(lambda: [encoder.encode(captions[i : i + 64]) for i in range(0, 512, 64)], 2)
    print(f"text encoding: {512 / grouped:.0f} captions/s, {plain / grouped:.2f} times as fast as ungrouped")


def main() -> None:
    """Run all measurements."""
    rate = matrix_product()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {rate / 1e9:.0f} GFLOP/s"
    )
    training_step(rate)
    text_encoding()
    data_engine.main([])


if __name__ == "__main__":
    main()
