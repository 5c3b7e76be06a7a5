"""How close two sets of features lie: moments, Frechet distance, kernel distance.

In: features of real and of generated images, one row an image. Out: numbers. All is computed in float64, on
the features' own device where it has float64, and in blocks, so that memory does not grow with the square of
the number of images. Features that are not finite, and sets that are too small, raise `UserError`. Sets that
do not fit in memory go through `streaming`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from kilopix.evaluation.statistics import Interval, percentile_interval
from kilopix.types import UserError

_CELLS = 1 << 23  # entries of a distance or kernel matrix held at once: 64 MiB


@dataclass(frozen=True)
class Moments:
    """Number, mean and scatter of features; `merge` joins those of batches and of processes.

    The scatter is the sum of outer products about the mean.
    """

    count: int
    mean: Float64[Tensor, " F"]
    scatter: Float64[Tensor, "F F"]

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together (Chan et al. 1979, eq. 2.1)."""
        if self.mean.shape != other.mean.shape:
            raise UserError(different_widths(len(self.mean), len(other.mean)))
        count = self.count + other.count
        step = other.mean - self.mean
        outer = torch.outer(step, step) * (self.count * other.count / count)
        mean = self.mean + step * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + outer)


def moments(features: Float[Tensor, "N F"]) -> Moments:
    """The moments of one batch of features."""
    x = finite(features)
    if not len(x):
        raise UserError("there are no features to take moments of.")
    mean = x.mean(0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred)


def frechet_distance(real: Moments, fake: Moments) -> float:
    """Squared Frechet distance of the two Gaussians with these means and sample covariances.

    Dowson and Landau 1982, eq. 4; as FID, Heusel et al. 2017, eq. 6.
    """
    if real.mean.shape != fake.mean.shape:
        raise UserError(different_widths(len(real.mean), len(fake.mean)))
    if min(real.count, fake.count) < 2:
        raise UserError("a Frechet distance needs at least two images on either side.")
    covariances = [one.scatter / (one.count - 1) for one in (real, fake)]
    # With A = C C^T and B = D D^T, tr (A B)^(1/2) is the sum of the singular values of C^T D, which loses no
    # digits where A and B are singular, as they are with fewer images than features.
    ranks = [min(one.count - 1, len(one.mean)) for one in (real, fake)]
    roots = [_root(covariance, rank) for covariance, rank in zip(covariances, ranks, strict=True)]
    cross = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    spread = covariances[0].trace() + covariances[1].trace() - 2 * cross
    return max(0.0, float((real.mean - fake.mean).square().sum() + spread))


def kernel_distance(real: Float[Tensor, "N F"], fake: Float[Tensor, "M F"]) -> float:
    """Unbiased squared maximum mean discrepancy (KID) over all images; it may be below zero.

    Kernel (x . y / F + 1)^3: Binkowski et al. 2018, section 4; estimator: Gretton et al. 2012, lemma 6.
    """
    real, fake = _pair(real, fake, 2)
    return float(_discrepancies(real, fake, _ones(1, real), _ones(1, fake))[0])


def kernel_distance_interval(
    real: Float[Tensor, "N F"],
    fake: Float[Tensor, "M F"],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The kernel distance over all images, with a bootstrap interval from drawing both sets anew.

    An image that is drawn twice is not compared with itself, so that the draws stay unbiased. Where the two
    distributions are the same the interval is only a rough guide.
    """
    real, fake = _pair(real, fake, 2)
    rng = np.random.default_rng(seed)
    weights = []
    for features in (real, fake):
        n = len(features)
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
        weights.append(torch.cat([_ones(1, features), torch.from_numpy(drawn).to(features.device)]))
    values = _discrepancies(real, fake, *weights).cpu().numpy()
    return percentile_interval(float(values[0]), values[1:], level)


def _discrepancies(real: Tensor, fake: Tensor, real_weights: Tensor, fake_weights: Tensor) -> Tensor:
    """The unbiased squared discrepancy for each row of weights, which say how often an image is drawn."""
    within = [_within(real, real_weights), _within(fake, fake_weights)]
    between = _kernel_sums(real, fake, real_weights, fake_weights)
    return within[0] + within[1] - 2 * between / (real_weights.sum(1) * fake_weights.sum(1))


def _within(x: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of the kernel over pairs of different images."""
    itself = (x.square().sum(1) / x.shape[1] + 1) ** 3
    squared = weights.square()
    total = _kernel_sums(x, x, weights, weights) - squared @ itself
    return total / (weights.sum(1).square() - squared.sum(1))


def _kernel_sums(x: Tensor, y: Tensor, x_weights: Tensor, y_weights: Tensor) -> Tensor:
    one = x.new_ones(())
    total = x.new_zeros(len(x_weights))
    for rows in _blocks(len(x), len(y)):
        kernel = torch.addmm(one, x[rows], y.T, alpha=1 / x.shape[1]).pow_(3)
        total += ((x_weights[:, rows] @ kernel) * y_weights).sum(1)
    return total


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _CELLS // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def _root(covariance: Tensor, rank: int) -> Tensor:
    """A matrix C of at most `rank` columns with C C^T the covariance."""
    if rank == len(covariance):
        values, vectors = torch.linalg.eigh(covariance)
        return vectors * values.clamp(min=0).sqrt()
    # Cholesky with pivots (Higham 2002, section 10.3): far less work than eigenvalues where the rank is low.
    columns = covariance.new_zeros(len(covariance), rank)
    left = covariance.diagonal().clone()
    smallest = left.max() * len(left) * torch.finfo(left.dtype).eps
    for i in range(rank):
        pivot = int(left.argmax())
        if left[pivot] <= smallest:
            break
        column = covariance[:, pivot] - columns[:, :i] @ columns[pivot, :i]
        columns[:, i] = column / left[pivot].sqrt()
        left = (left - columns[:, i].square()).clamp(min=0)
    return columns


def _ones(rows: int, like: Tensor) -> Tensor:
    return like.new_ones((rows, len(like)))


def _pair(real: Tensor, fake: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if real.shape[1] != fake.shape[1]:
        raise UserError(different_widths(real.shape[1], fake.shape[1]))
    if min(len(real), len(fake)) < least:
        raise UserError(f"this needs at least {least} images a side (got {len(real)} and {len(fake)}).")
    return finite(real), finite(fake)


def finite(features: Float[Tensor, "N F"]) -> Float64[Tensor, "N F"]:
    """The features in float64; raises `UserError` where any is not finite."""
    if features.device.type == "mps":  # it has no float64
        features = features.cpu()
    x = features.double()
    bad = int((~x.isfinite()).any(1).sum())
    if bad:
        raise UserError(f"{bad} of {len(x)} images have features that are not finite; look at those images.")
    return x


def different_widths(a: int, b: int) -> str:
    """What to say of features that do not compare."""
    return f"features of width {a} and {b} do not compare: take both from one network."
