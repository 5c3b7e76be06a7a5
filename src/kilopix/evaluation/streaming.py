"""Fidelity of sets that do not fit in memory: moments, kernel distance over subsets, nearest neighbours.

In: two `FeatureSet`s, which are read block by block. Out: numbers, the same as if all were in memory. Memory
grows with the size of a block and with the number of images, never with their product; the result depends on
the blocks and their order alone, so that it is the same whatever number of processes made the features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from kilopix.evaluation.fidelity import Moments, different_widths, finite, kernel_distance, moments
from kilopix.types import UserError

_GATHERED = 1 << 24  # numbers of one side's subsets held at once: 128 MiB


@runtime_checkable
class FeatureSet(Protocol):
    """Features of many images; `blocks` gives the same blocks in the same order whenever it is called."""

    @property
    def count(self) -> int:
        """Number of images."""
        ...

    @property
    def width(self) -> int:
        """Width of a feature, F."""
        ...

    def blocks(self) -> Iterator[Float[Tensor, "N F"]]:
        """All features, some hundreds or thousands of images at a time."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Features that are in memory, as a `FeatureSet` with blocks of `rows` images."""

    features: Float[Tensor, "N F"]
    rows: int = 1024

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.features)

    @property
    def width(self) -> int:
        """Width of a feature."""
        return self.features.shape[1]

    def blocks(self) -> Iterator[Float[Tensor, "N F"]]:
        """Views of the features."""
        return iter(self.features.split(self.rows))


def moments_of(features: FeatureSet) -> Moments:
    """The moments of all features, merged block by block."""
    total: Moments | None = None
    for block in features.blocks():
        total = moments(block) if total is None else total.merge(moments(block))
    if total is None:
        raise UserError("there are no features to take moments of.")
    return total


def kernel_distance_subsets(
    real: FeatureSet, fake: FeatureSet, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of the kernel distance over random subsets, as KID is mostly reported.

    A subset holds `size` images of either set, or all of the smaller set where it has fewer.
    """
    _check_pair(real, fake, 2)
    size = min(size, real.count, fake.count)
    rng = np.random.default_rng(seed)
    chosen = [
        np.stack([rng.choice(features.count, size, replace=False) for _ in range(subsets)])
        for features in (real, fake)
    ]
    at_once = max(1, _GATHERED // (size * real.width))
    values = []
    for start in range(0, subsets, at_once):
        group = slice(start, start + at_once)
        pair = [_gather(features, rows[group]) for features, rows in zip((real, fake), chosen, strict=True)]
        values += [kernel_distance(x, y) for x, y in zip(*pair, strict=True)]
    return float(np.mean(values)), float(np.std(values))


def _gather(features: FeatureSet, rows: Int64[np.ndarray, "S N"]) -> Float64[Tensor, "S N F"]:
    """The features of chosen images, read in one pass."""
    wanted = rows.ravel()
    out: Tensor | None = None
    start = 0
    for block in features.blocks():
        if out is None:
            out = torch.empty(len(wanted), features.width, dtype=torch.float64, device=block.device)
        here = np.flatnonzero((wanted >= start) & (wanted < start + len(block)))
        out[here] = block[wanted[here] - start].double()
        start += len(block)
    assert out is not None, "a set of at least two images has a block"
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

    `on_block` is called after each block of images that was compared with a whole set: as often as both sets
    have blocks, and once more for each block of the real set. Kynkaanniemi et al. 2019, eq. 2; Naeem et al.
    2020, section 3.
    """
    _check_pair(real, fake, k + 1)
    total = sum(block.double().sum(0) for block in real.blocks())
    assert isinstance(total, Tensor)
    near = _Centred(real, total / real.count), _Centred(fake, total / real.count)
    real_radius, fake_radius = (_radii(features, k, on_block) for features in near)
    inside = torch.zeros(fake.count, dtype=torch.int64, device=fake_radius.device)  # balls of real images
    recalled = covered = start = 0
    for rows in near[0].blocks():
        ball = real_radius[start : start + len(rows), None]
        recalls = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        covers = recalls.clone()
        column = 0
        for block in near[1].blocks():
            columns = slice(column, column + len(block))
            distance = _squared_distances(rows, block)
            within = distance < ball
            inside[columns] += reduce(within, "n m -> m", "sum")
            recalls |= (distance < fake_radius[columns]).any(1)
            covers |= within.any(1)
            column += len(block)
        recalled += int(recalls.sum())
        covered += int(covers.sum())
        start += len(rows)
        on_block()
    return Neighbours(
        precision=float((inside > 0).double().mean()),
        recall=recalled / real.count,
        density=float(inside.double().mean()) / k,
        coverage=covered / real.count,
    )


@dataclass(frozen=True)
class _Centred:
    """Features in float64 with the real set's mean taken off: distances lose fewer digits near the origin."""

    features: FeatureSet
    centre: Float64[Tensor, " F"]

    def blocks(self) -> Iterator[Tensor]:
        return (finite(block) - self.centre for block in self.features.blocks())


def _radii(x: _Centred, k: int, on_block: Callable[[], None]) -> Tensor:
    """Squared distance of every row to its k-th nearest other row."""
    radii = []
    for rows in x.blocks():
        nearest = rows.new_full((len(rows), k + 1), torch.inf)  # a row itself is the first of k + 1
        for block in x.blocks():
            both = torch.cat([nearest, _squared_distances(rows, block)], 1)
            nearest = both.topk(k + 1, largest=False).values
        radii.append(nearest[:, -1])
        on_block()
    return torch.cat(radii)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    squares = torch.addmm(b.square().sum(1)[None, :], a, b.T, alpha=-2)
    return squares.add_(a.square().sum(1)[:, None]).clamp_(min=0)


def _check_pair(real: FeatureSet, fake: FeatureSet, least: int) -> None:
    if real.width != fake.width:
        raise UserError(different_widths(real.width, fake.width))
    if min(real.count, fake.count) < least:
        raise UserError(f"this needs at least {least} images a side (got {real.count} and {fake.count}).")
