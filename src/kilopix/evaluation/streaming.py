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

from kilopix.evaluation.distances import Rows, at_most, lower_bounds, of_pairs, surely_below
from kilopix.evaluation.fidelity import Moments, different_widths, finite, kernel_distance, moments
from kilopix.types import UserError

_MERGED = 2048  # images whose moments are taken at once
_GATHERED = 1 << 24  # numbers of one side's subsets held at once: 128 MiB
_ASKED = 1024  # images whose radius is found at once
_OPEN = 1 << 20  # pairs that wait for a radius


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
    device = finite(features.block(0)[:1]).device  # that of the features, if it has float64
    out = torch.empty(len(wanted), features.width, dtype=torch.float64, device=device)
    for i, (start, end) in enumerate(_edges(features)):
        here = np.flatnonzero((wanted >= start) & (wanted < end))
        if len(here):
            out[here] = features.block(i)[wanted[here] - start].to(device).double()
    return out.view(*rows.shape, features.width)


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

    An image at that very distance is not within it, however the distances round: see `distances`. `on_block`
    is called after each pair of blocks that was compared, `comparisons(real, fake)` times.
    Kynkaanniemi et al. 2019, eq. 2; Naeem et al. 2020, section 3.
    """
    _check_pair(real, fake, k + 1)
    counts = sum(real.sizes), sum(fake.sizes)
    centre = torch.stack([finite(real.block(i)).sum(0) for i in range(len(real.sizes))]).sum(0) / counts[0]
    around_real, around_fake = (_Balls(features, centre, k, on_block) for features in (real, fake))
    found = _Found(around_real, around_fake)
    for i, (start, end) in enumerate(_edges(real)):
        rows = Rows.of(real.block(i), centre)
        for j, (first, last) in enumerate(_edges(fake)):
            columns = Rows.of(fake.block(j), centre)
            lower = lower_bounds(rows, columns)
            within, near = _split(
                lower, around_real.inner[start:end, None], around_real.outer[start:end, None]
            )
            found.inside[first:last] += reduce(within, "n m -> m", "sum")
            found.covered[start:end] |= within.any(1)
            within, nearly = _split(lower, around_fake.inner[first:last], around_fake.outer[first:last])
            found.recalled[start:end] |= within.any(1)
            found.decide_later(rows, columns, near, nearly, start, first)
            on_block()
    found.decide()
    return Neighbours(
        precision=int((found.inside > 0).sum()) / counts[1],
        recall=int(found.recalled.sum()) / counts[0],
        density=int(found.inside.sum()) / counts[1] / k,
        coverage=int(found.covered.sum()) / counts[0],
    )


def comparisons(real: FeatureSet, fake: FeatureSet) -> int:
    """How often `neighbours` calls back."""
    a, b = len(real.sizes), len(fake.sizes)
    return a * (a + 1) // 2 + b * (b + 1) // 2 + a * b


class _Balls:
    """Around every image of a set, the ball to its k-th nearest other, each pair of blocks compared once.

    A lower bound of a squared distance that is below `inner` is of a pair that lies in the ball, and one
    above `outer` is of a pair that does not; between them the radius itself decides.
    """

    def __init__(self, x: FeatureSet, centre: Tensor, k: int, on_block: Callable[[], None]):
        self.x, self.centre, self.k = x, centre, k
        norms = centre.new_empty(sum(x.sizes))
        nearest = centre.new_full((len(norms), k + 1), torch.inf)  # a row itself is the first of k + 1
        edges = _edges(x)
        for i, (start, end) in enumerate(edges):
            rows = Rows.of(x.block(i), centre)
            norms[start:end] = rows.norms
            for j, (first, last) in enumerate(edges[: i + 1]):
                lower = lower_bounds(rows, rows if i == j else Rows.of(x.block(j), centre))
                nearest[start:end] = _smallest(nearest[start:end], lower)
                if i != j:
                    nearest[first:last] = _smallest(nearest[first:last], lower.T)
                on_block()
        furthest = nearest.amax(1)
        self.inner = surely_below(furthest, norms, x.width)
        self.outer = at_most(furthest, norms, x.width)
        self._radius = torch.full_like(norms, torch.nan)  # squared; not known until it is asked for

    def radius(self, of: Int64[Tensor, " P"]) -> Float64[Tensor, " P"]:
        """The squared radius of some balls, from the distances that decide ties."""
        unknown = torch.unique(of[self._radius[of].isnan()])
        for start in range(0, len(unknown), _ASKED):
            some = unknown[start : start + _ASKED]
            self._radius[some] = self._radius_of(some)
        return self._radius[of]

    def _radius_of(self, some: Int64[Tensor, " N"]) -> Float64[Tensor, " N"]:
        rows = Rows.of(_gather(self.x, some.cpu().numpy()[None])[0], self.centre)
        surely = torch.zeros_like(some)  # how many lie in the ball for sure
        nearest = self.centre.new_full((len(some), self.k + 1), torch.inf)
        for i in range(len(self.x.sizes)):
            columns = Rows.of(self.x.block(i), self.centre)
            lower = lower_bounds(rows, columns)
            within, near = _split(lower, self.inner[some, None], self.outer[some, None])
            surely += within.sum(1)
            pairs = near.nonzero(as_tuple=True)
            distance = torch.full_like(lower, torch.inf)
            distance[pairs] = of_pairs(rows, columns, *pairs)
            nearest = _smallest(nearest, distance)
        return nearest.sort(1).values.gather(1, (self.k - surely)[:, None])[:, 0]


def _split(lower: Tensor, inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs that surely lie in the balls, and those of which the bounds do not tell."""
    within = lower < inner
    return within, (lower <= outer) ^ within


class _Found:
    """What is known of every image, with the pairs on which the radius itself has yet to decide."""

    def __init__(self, real: _Balls, fake: _Balls):
        self._balls = real, fake
        ours, theirs = len(real.inner), len(fake.inner)
        self.inside = torch.zeros(
            theirs, dtype=torch.int64, device=real.centre.device
        )  # real balls around it
        self.covered, self.recalled = torch.zeros(2, ours, dtype=torch.bool, device=real.centre.device)
        self._open: list[tuple[Tensor, ...]] = []

    def decide_later(
        self, rows: Rows, columns: Rows, near: Tensor, nearly: Tensor, start: int, first: int
    ) -> None:
        """Take in the pairs that are near the radius of the real image's ball, and nearly the fake one's."""
        either = near | nearly
        if not either.any():
            return
        i, j = either.nonzero(as_tuple=True)
        distance = of_pairs(rows, columns, i, j)
        self._open.append((i + start, j + first, distance, near[i, j], nearly[i, j]))
        if sum(len(held[0]) for held in self._open) > _OPEN:
            self.decide()

    def decide(self) -> None:
        """Compare the distances that were left open with the radii, for which the sets are read once."""
        if not self._open:
            return
        i, j, distance, near, nearly = map(torch.cat, zip(*self._open, strict=True))
        self._open = []
        real, fake = self._balls
        here = near.nonzero()[:, 0]
        here = here[distance[here] < real.radius(i[here])]
        self.inside.index_add_(0, j[here], torch.ones_like(here))
        self.covered[i[here]] = True
        there = nearly.nonzero()[:, 0]
        there = there[distance[there] < fake.radius(j[there])]
        self.recalled[i[there]] = True


def _smallest(before: Tensor, more: Tensor) -> Tensor:
    """The smallest numbers of every row of both, as many as there were before."""
    found = more.topk(min(before.shape[1], more.shape[1]), largest=False, sorted=False).values
    return torch.cat([before, found], 1).topk(before.shape[1], largest=False, sorted=False).values


def _edges(features: FeatureSet) -> list[tuple[int, int]]:
    """Numbers of the first image of every block and of the first after it."""
    ends = list(accumulate(features.sizes))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _check_pair(real: FeatureSet, fake: FeatureSet, least: int) -> None:
    if real.width != fake.width:
        raise UserError(different_widths(real.width, fake.width))
    counts = sum(real.sizes), sum(fake.sizes)
    if min(counts) < least:
        raise UserError(f"this needs at least {least} images a side (got {counts[0]} and {counts[1]}).")
