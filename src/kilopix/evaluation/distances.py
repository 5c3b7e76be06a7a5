"""Squared distances that are known to be near enough, and those that decide ties.

In: rows of features. Out: for all pairs of two blocks a number that the squared distance does not go below,
by a matrix product, and what it does not exceed; for chosen pairs the squared distance itself.

Two forms, since |a|^2 + |b|^2 - 2 a.b is fast, and rounds in another way on every processor, so that the
distance of exact copies comes out above or below another that is the same. Where that matters the sum of
squared differences decides, which is added up in an order that the width alone settles, by operations on
single numbers, whose rounding IEEE 754 fixes. It is the same number in all blocks, with any number of threads
and any instruction set, and copies give it the same bits.

The bound. Let u be half of float64's epsilon, F the width, a and b the rows with the centre taken off, and
S = |a|^2 + |b|^2. In any order of summation the two norms and the product are each off by at most F u times
the sum of the terms' sizes, together 2 F u S; the last two additions by 6 u S; taking off the centre moves
every coordinate by u of its size, which is 4 u S in the squared distance, as |a - b|^2 <= 2 S; and the summed
differences are themselves off by (log2 F + 3) u 2 S (Higham 2002, sections 3.1 and 4.2). That is less than
K S with K = 4 (F + 8) u. One bound for both rows of a pair needs |b| <= |a| + |a - b|, so S <= 3 |a|^2 +
2 |a - b|^2; what exceeds the lower bound by no more than 2 K S then lies below (lower + 8 K |a|^2) (1 + 8 K).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from kilopix.evaluation.fidelity import finite

_PAIRED = 1 << 20  # numbers of pairs whose differences are held at once: 8 MiB


@dataclass(frozen=True)
class Rows:
    """Features of some images: as they are, with a centre taken off, and the squared norms of the latter."""

    exact: Float64[Tensor, "N F"]
    centred: Float64[Tensor, "N F"]
    norms: Float64[Tensor, " N"]

    @classmethod
    def of(cls, features: Float[Tensor, "N F"], centre: Float64[Tensor, " F"]) -> "Rows":
        """Raises `UserError` where features are not finite; distances lose fewer digits near the origin."""
        exact = finite(features)
        centred = exact - centre
        return cls(exact, centred, centred.square().sum(1))


def error(width: int) -> float:
    """K: the share of the norms by which a squared distance may be off."""
    return 2 * (width + 8) * torch.finfo(torch.float64).eps


def lower_bounds(a: Rows, b: Rows) -> Float64[Tensor, "N M"]:
    """Of each pair, a number just below its squared distance: the matrix product's, less the bound."""
    kept = 1 - error(a.exact.shape[1])
    squares = torch.addmm((b.norms * kept)[None, :], a.centred, b.centred.T, alpha=-2)
    return squares.add_((a.norms * kept)[:, None])


def at_most(lower: Float64[Tensor, " N"], norms: Float64[Tensor, " N"], width: int) -> Float64[Tensor, " N"]:
    """What the squared distance of a pair does not exceed, by its lower bound and one of its norms."""
    margin = 8 * error(width)
    return (lower + margin * norms) * (1 + margin)


def surely_below(
    limit: Float64[Tensor, " N"], norms: Float64[Tensor, " N"], width: int
) -> Float64[Tensor, " N"]:
    """A lower bound below this one is of a pair whose squared distance is below the limit."""
    margin = 8 * error(width)
    return limit * (1 - margin) - margin * norms


def of_pairs(a: Rows, b: Rows, i: Int64[Tensor, " P"], j: Int64[Tensor, " P"]) -> Float64[Tensor, " P"]:
    """The squared distances of rows i of `a` to rows j of `b`, the same bits for the same two rows.

    Pairs of the same two rows are taken once, as where many images are copies of a few.
    """
    if not len(i):
        return a.exact.new_empty(0)
    ours, i = _different(a.exact, i)
    theirs, j = _different(b.exact, j)
    pairs, back = torch.unique(i * len(theirs) + j, return_inverse=True)
    found = [
        _sum((ours[some // len(theirs)] - theirs[some % len(theirs)]).square_())
        for some in pairs.split(max(1, _PAIRED // max(ours.shape[1], 1)))
    ]
    return torch.cat(found)[back]


def _different(rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The different ones among the chosen rows, and which of them each is."""
    numbers, first = torch.unique(chosen, return_inverse=True)
    different, second = torch.unique(rows[numbers], dim=0, return_inverse=True)
    return different, second[first]


def _sum(x: Float64[Tensor, "P F"]) -> Float64[Tensor, " P"]:
    """Sums of rows, the second half of each being added to the first until one number is left; spoils `x`.

    `sum` itself adds in an order that depends on the instruction set and on the shape.
    """
    while (width := x.shape[1]) > 1:
        half = (width + 1) // 2
        x[:, : width - half] += x[:, half:]
        x = x[:, :half]
    return x[:, 0]
