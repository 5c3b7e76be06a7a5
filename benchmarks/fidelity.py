"""Speed of the streaming statistics, as ratios within one run.

    python benchmarks/fidelity.py

Features of 2,048 numbers in blocks of 512, as `kilopix fidelity` keeps them; the matrix product that
everything is held against is in float64, as the statistics are.
"""

import os
import platform
import time
from collections.abc import Callable
from functools import partial

import torch

from kilopix.evaluation.fidelity import frechet_distance
from kilopix.evaluation.streaming import InMemory, kernel_distance_subsets, moments_of, neighbours

WIDTH, BLOCK = 2048, 512


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of several runs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Print one line a statistic: images a second, and the share of the product's rate."""
    a = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    rate = 2 * WIDTH**3 / seconds(lambda: a @ a)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{rate / 1e9:.0f} GFLOP/s in float64"
    )
    count = 8192
    real, fake = (InMemory(torch.randn(count, WIDTH) + shift, BLOCK) for shift in (0.0, 0.1))

    def report(name: str, images: int, flops: float, taken: float) -> None:
        print(f"{name}: {images / taken:.0f} images/s, {flops / taken / rate:.2f} of the product's rate")

    taken = seconds(lambda: moments_of(real))
    report("moments", count, 2 * count * WIDTH**2, taken)
    whole = seconds(lambda: torch.cov(real.features.double().T))
    print(f"  {taken / whole:.2f} times the time of one covariance of all features in memory")
    pair = moments_of(real), moments_of(fake)
    taken = seconds(lambda: frechet_distance(*pair), 1)
    print(f"Frechet distance: {taken:.1f} s, whatever the number of images")
    subsets, size = 10, 1000
    taken = seconds(lambda: kernel_distance_subsets(real, fake, subsets, size), 1)
    report("kernel distance", 2 * subsets * size, subsets * 3 * 2 * size**2 * WIDTH, taken)
    part = [InMemory(one.features[:4096], BLOCK) for one in (real, fake)]
    taken = seconds(lambda: neighbours(*part, 3), 1)
    report("neighbours, 4,096 a side", 2 * 4096, 2 * 2 * 4096**2 * WIDTH, taken)
    for share in (100, 2, 1):
        copied = part[1].features.clone()
        copied[::share] = part[0].features[::share]
        memorised = InMemory(copied, BLOCK)
        again = seconds(partial(neighbours, part[0], memorised, 3), 1)
        print(f"  {again / taken:.2f} times that where one of {share} is a copy of a real one")


if __name__ == "__main__":
    main()
