"""Fidelity of sets that do not fit in memory: moments, kernel distance over subsets, nearest neighbours.

In: two `FeatureSet`s, which are read block by block. Out: numbers, the same as if all were in memory. Memory
grows with the size of a block and with the number of images, never with their product; the result depends on
the blocks and their order alone, so that it is the same whatever number of processes made the features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from kilopix.evaluation.fidelity import Moments, different_widths, finite, kernel_distance, moments
from kilopix.types import UserError

_MERGED = 2048  # images whose moments are taken at once
_GATHERED = 1 << 24  # numbers of one side's subsets held at once: 128 MiB


@runtime_checkable
class FeatureSet(Protocol):
    """Features of many images in blocks, each the same whenever it is read."""

    @property
    def width(self) -> int:
        """Width of a feature, F."""
        ...

    @property
    def sizes(self) -> Sequence[int]:
        """Number of images in each block; some hundreds or thousands."""
        ...

    def block(self, i: int) -> Float[Tensor, "N F"]:
        """The features of one block."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Features that are in memory, as a `FeatureSet` with blocks of `rows` images."""

    features: Float[Tensor, "N F"]
    rows: int = 1024

    @property
    def width(self) -> int:
        """Width of a feature."""
        return self.features.shape[1]

    @property
    def sizes(self) -> Sequence[int]:
        """Number of images in each block."""
        count = len(self.features)
        return [min(self.rows, count - start) for start in range(0, count, self.rows)]

    def block(self, i: int) -> Float[Tensor, "N F"]:
        """A view of the features."""
        return self.features[i * self.rows : (i + 1) * self.rows]


def moments_of(features: FeatureSet) -> Moments:
    """The moments of all features, merged block by block."""
    total: Moments | None = None
    held: list[Tensor] = []
    for i in range(len(features.sizes)):
        held.append(features.block(i))
        if sum(map(len, held)) < _MERGED and i + 1 < len(features.sizes):
            continue  # a merge costs as much as some hundred images
        one = moments(torch.cat(held))
        total = one if total is None else total.merge(one)
        held = []
    if total is None:
        raise UserError("there are no features to take moments of.")
    return total


def kernel_distance_subsets(
    real: FeatureSet, fake: FeatureSet, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of the kernel distance over random subsets, as KID is mostly reported.

    A subset holds `subset_size` images of either set.
    """
    _check_pair(real, fake, 2)
    size = subset_size(size, sum(real.sizes), sum(fake.sizes))
    rng = np.random.default_rng(seed)
    chosen = [
        np.stack([rng.choice(sum(features.sizes), size, replace=False) for _ in range(subsets)])
        for features in (real, fake)
    ]
    at_once = max(1, _GATHERED // (size * real.width))
    values = []
    for start in range(0, subsets, at_once):
        group = slice(start, start + at_once)
        pair = [_gather(features, rows[group]) for features, rows in zip((real, fake), chosen, strict=True)]
        values += [kernel_distance(x, y) for x, y in zip(*pair, strict=True)]
    return float(np.mean(values)), float(np.std(values))


def subset_size(asked: int, real: int, fake: int) -> int:
    """How many images a subset holds: as many as asked for, or all of the smaller set if it has fewer."""
    return min(asked, real, fake)


def _gather(features: FeatureSet, rows: Int64[np.ndarray, "S N"]) -> Float64[Tensor, "S N F"]:
    """The features of chosen images, read in one pass."""
    wanted = rows.ravel()
    out = torch.empty(len(wanted), features.width, dtype=torch.float64, device=features.block(0).device)
    for i, (start, end) in enumerate(_edges(features)):
        here = np.flatnonzero((wanted >= start) & (wanted < end))
        out[here] = features.block(i)[wanted[here] - start].double()
    return out.view(*rows.shape, -1)


@dataclass(frozen=True)
class Neighbours:
    """Shares by nearest neighbours; density may be above 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def _quietly() -> None:
    """Tell nobody."""


def neighbours(
    real: FeatureSet, fake: FeatureSet, k: int = 5, on_block: Callable[[], None] = _quietly
) -> Neighbours:
    """Precision, recall, density and coverage within the distance to the k-th nearest neighbour.

    `on_block` is called after each pair of blocks that was compared, `comparisons(real, fake)` times.
    Kynkaanniemi et al. 2019, eq. 2; Naeem et al. 2020, section 3.
    """
    _check_pair(real, fake, k + 1)
    counts = sum(real.sizes), sum(fake.sizes)
    centre = torch.stack([finite(real.block(i)).sum(0) for i in range(len(real.sizes))]).sum(0) / counts[0]
    real_radius, fake_radius = (_radii(features, centre, k, on_block) for features in (real, fake))
    inside = torch.zeros(counts[1], dtype=torch.int64, device=centre.device)  # balls of real images around it
    recalled = covered = 0
    for i, (start, end) in enumerate(_edges(real)):
        rows, ball = finite(real.block(i)) - centre, real_radius[start:end, None]
        recalls, covers = torch.zeros(2, len(rows), dtype=torch.bool, device=rows.device)
        for j, (first, last) in enumerate(_edges(fake)):
            distance = _squared_distances(rows, finite(fake.block(j)) - centre)
            within = distance < ball
            inside[first:last] += reduce(within, "n m -> m", "sum")
            recalls |= (distance < fake_radius[first:last]).any(1)
            covers |= within.any(1)
            on_block()
        recalled += int(recalls.sum())
        covered += int(covers.sum())
    return Neighbours(
        precision=float((inside > 0).double().mean()),
        recall=recalled / counts[0],
        density=float(inside.double().mean()) / k,
        coverage=covered / counts[0],
    )


def comparisons(real: FeatureSet, fake: FeatureSet) -> int:
    """How often `neighbours` calls back."""
    a, b = len(real.sizes), len(fake.sizes)
    return a * (a + 1) // 2 + b * (b + 1) // 2 + a * b


def _radii(x: FeatureSet, centre: Tensor, k: int, on_block: Callable[[], None]) -> Float64[Tensor, " N"]:
    """Squared distance of every row to its k-th nearest other row; each pair of blocks is compared once.

    The centre is taken off, since distances lose fewer digits near the origin.
    """
    nearest = centre.new_full((sum(x.sizes), k + 1), torch.inf)  # a row itself is the first of k + 1
    edges = _edges(x)
    for i, (start, end) in enumerate(edges):
        rows = finite(x.block(i)) - centre
        for j, (first, last) in enumerate(edges[: i + 1]):
            distance = _squared_distances(rows, finite(x.block(j)) - centre)
            nearest[start:end] = _smallest(nearest[start:end], distance)
            if i != j:
                nearest[first:last] = _smallest(nearest[first:last], distance.T)
            on_block()
    return nearest.amax(1)


def _smallest(before: Tensor, more: Tensor) -> Tensor:
    """The smallest numbers of every row of both, as many as there were before."""
    found = more.topk(min(before.shape[1], more.shape[1]), largest=False, sorted=False).values
    return torch.cat([before, found], 1).topk(before.shape[1], largest=False, sorted=False).values


def _edges(features: FeatureSet) -> list[tuple[int, int]]:
    """Numbers of the first image of every block and of the first after it."""
    ends = list(accumulate(features.sizes))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    squares = torch.addmm(b.square().sum(1)[None, :], a, b.T, alpha=-2)
    return squares.add_(a.square().sum(1)[:, None]).clamp_(min=0)


def _check_pair(real: FeatureSet, fake: FeatureSet, least: int) -> None:
    if real.width != fake.width:
        raise UserError(different_widths(real.width, fake.width))
    counts = sum(real.sizes), sum(fake.sizes)
    if min(counts) < least:
        raise UserError(f"this needs at least {least} images a side (got {counts[0]} and {counts[1]}).")
