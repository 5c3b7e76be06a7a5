"""Averages of any width after training, from a few that were stored (EDM2, arXiv 2312.02696, appendix C).

In: when each stored average was taken, and its width. Out: the weights with which they add up to the
average of another width. A power-function average at time T weights the network of time tau by
tau^gamma; its width sigma_rel is the standard deviation of that profile, as a share of T.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

WIDEST = 0.28
"""gamma = 0, the plain mean of the whole run, has 0.2887; nothing is wider."""
_RIDGE = 1e-10


@dataclass(frozen=True)
class Profile:
    """A power-function average: taken after so many images, of this width."""

    images: int
    sigma_rel: float


def width_of(gamma: float) -> float:
    """sigma_rel of an exponent (EDM2, eq. 123)."""
    return ((gamma + 1) / (gamma + 3)) ** 0.5 / (gamma + 2)


@cache
def exponent_of(sigma_rel: float) -> float:
    """The exponent gamma >= 0 whose profile has this width, by bisection (what EDM2's algorithm 2 solves)."""
    if not 0 < sigma_rel <= width_of(0.0):
        raise ValueError(f"sigma_rel {sigma_rel} must be above 0 and at most {width_of(0.0):.4f}")
    low, high = 0.0, 2 / sigma_rel
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if width_of(middle) > sigma_rel else (low, middle)
    return (low + high) / 2


def decay(sigma_rel: float, images_seen: int, batch: int) -> float:
    """What the old average keeps at the step that ends at `images_seen` (EDM2, eq. 127)."""
    return (1 - batch / images_seen) ** (exponent_of(sigma_rel) + 1)


def coefficients(stored: Sequence[Profile], wanted: Profile) -> np.ndarray:
    """Weights that sum to 1, with which stored averages come nearest to the wanted one (EDM2, algorithm 3).

    A trace of damping keeps them small where stored profiles nearly agree, so that the rounding of what
    is stored is not amplified.
    """
    gram, target = _inner(stored, stored), _inner(stored, [wanted])[:, 0]
    scale = np.sqrt(np.diag(gram))
    correlation = gram / np.outer(scale, scale) + _RIDGE * np.eye(len(stored))
    weights = np.linalg.solve(correlation, target / scale) / scale
    return weights / weights.sum()


def mismatch(stored: Sequence[Profile], wanted: Profile, weights: np.ndarray) -> float:
    """How far the sum's profile lies from the wanted one: the L2 norm of the difference over its own."""
    own = _inner([wanted], [wanted])[0, 0]
    gram, cross = _inner(stored, stored), _inner(stored, [wanted])[:, 0]
    squared = weights @ gram @ weights - 2 * weights @ cross + own
    return float(np.sqrt(max(squared, 0.0) / own))


def _inner(rows: Sequence[Profile], columns: Sequence[Profile]) -> np.ndarray:
    """Inner products of profiles over training time (EDM2, eq. 151)."""
    a, b = (np.array([p.images for p in ps], np.float64) for ps in (rows, columns))
    g, h = (np.array([exponent_of(p.sigma_rel) for p in ps]) for ps in (rows, columns))
    a, g, b, h = a[:, None], g[:, None], b[None], h[None]
    earlier, later = np.minimum(a, b), np.maximum(a, b)
    exponent = np.where(a < b, h, g)  # that of the later average, of which only the early part counts
    return (g + 1) * (h + 1) / (g + h + 1) * (earlier / later) ** exponent / later
