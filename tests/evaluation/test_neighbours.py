"""Ties of distances: copies, whatever the blocks, the threads and the kernels, against exact arithmetic."""

from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kilopix.evaluation import distances, streaming
from kilopix.evaluation.distances import Rows, at_most, lower_bounds, of_pairs, surely_below
from kilopix.evaluation.streaming import InMemory, Neighbours, neighbours

THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    yield
    torch.set_num_threads(THREADS)


def noise(n: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def squared_distances(a: torch.Tensor, b: torch.Tensor, scale: int) -> list[list[int]]:
    """In whole numbers, as any float is one over a power of two."""
    ours, theirs = ([[int(Fraction(v) * scale) for v in row] for row in x.double().tolist()] for x in (a, b))
    return [[sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) for q in theirs] for p in ours]


def exact(real: torch.Tensor, fake: torch.Tensor, *ks: int) -> list[Neighbours]:
    """The definition, where nothing rounds."""
    values = [v for x in (real, fake) for v in x.double().ravel().tolist()]
    scale = max(v.as_integer_ratio()[1] for v in values)
    ordered = [[sorted(row) for row in squared_distances(x, x, scale)] for x in (real, fake)]
    apart = squared_distances(real, fake, scale)
    found = []
    for k in ks:
        inside = [[d < near[k] for d in row] for row, near in zip(apart, ordered[0], strict=True)]
        recalled = [any(d < near[k] for d, near in zip(row, ordered[1], strict=True)) for row in apart]
        one = Neighbours(
            precision=sum(map(any, zip(*inside, strict=True))) / len(fake),
            recall=sum(recalled) / len(real),
            density=sum(map(sum, inside)) / len(fake) / k,
            coverage=sum(map(any, inside)) / len(real),
        )
        found.append(one)
    return found


def everywhere(real: torch.Tensor, fake: torch.Tensor, k: int) -> set[Neighbours]:
    """What comes out in all blocks and with all threads."""
    found = set()
    for threads, blocks in ((1, ((1000, 1000), (7, 64), (1, 40))), (2, ((1000, 1000), (16, 13)))):
        torch.set_num_threads(threads)
        for rows, columns in blocks:
            found.add(neighbours(InMemory(real, rows), InMemory(fake, columns), k))
    return found


def memorised(real: torch.Tensor, copies: int) -> torch.Tensor:
    """Generated features of which some are real ones, as of a model that learnt images by heart."""
    fake = noise(len(real), real.shape[1], 7).to(real) * real.std(0) + real.mean(0)
    fake[:copies] = real[:copies]
    return fake


def cases() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    near = noise(60, 13, 0)
    far = 1e3 + 1e-3 * near  # float32 has steps of 6e-5 there, so that many differences are the same
    few = noise(6, 13, 1)
    return {
        "copies": (near, memorised(near, 20)),
        "copies in float64": (near.double() / 3, memorised(near.double() / 3, 20)),
        "the set itself": (near, near.clone()),
        "copies of copies": (torch.cat([near[:30], near[:15], near[:15]]), memorised(near, 30)),
        "copies far from the origin": (far, memorised(far, 20)),
        "few of many": (few[torch.arange(60) % 6], few[torch.arange(55) % 4]),
        "one image": (near[:1].repeat(40, 1), near[:1].repeat(30, 1)),
        "one generated image, a real one": (near, near[:1].repeat(50, 1)),
        "a grid": ((near * 1.5).round(), (noise(50, 13, 2) * 1.5).round()),
        "one far away": (torch.cat([near, 1e7 + near[:1]]), memorised(torch.cat([near, near[:1]]), 20)),
    }


@pytest.mark.parametrize("name", cases())
def test_ties_are_decided_by_exact_arithmetic(name: str):
    real, fake = cases()[name]
    for k, expected in zip((1, 3, 5), exact(real, fake, 1, 3, 5), strict=True):
        assert everywhere(real, fake, k) == {expected}


rows = st.integers(1, 9)
width = st.shared(st.integers(1, 5), key="width")
grids = st.integers(6, 14).flatmap(
    lambda n: width.flatmap(lambda f: st.lists(st.integers(-2, 2), min_size=n * f, max_size=n * f))
)


@settings(max_examples=60, deadline=None)
@given(grids, grids, width, st.integers(1, 5), rows, rows, st.sampled_from([0.0, 1e3, 3e7]))
def test_ties_on_any_grid(a: list[int], b: list[int], f: int, k: int, i: int, j: int, offset: float):
    """Whole numbers, of which most distances are shared by several pairs."""
    real, fake = (torch.tensor(one, dtype=torch.float64).view(-1, f) + offset for one in (a, b))
    assert neighbours(InMemory(real, i), InMemory(fake, j), k) == exact(real, fake, k)[0]


def test_the_pairs_that_wait_are_decided_in_portions(monkeypatch: pytest.MonkeyPatch):
    real = noise(60, 13, 0)
    fake = memorised(real, 60)
    whole = neighbours(InMemory(real, 16), InMemory(fake, 16), 3)
    monkeypatch.setattr(streaming, "_OPEN", 5)
    monkeypatch.setattr(streaming, "_ASKED", 4)
    monkeypatch.setattr(distances, "_PAIRED", 30)
    assert neighbours(InMemory(real, 16), InMemory(fake, 16), 3) == whole == exact(real, fake, 3)[0]


@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("width", [1, 2, 7, 64, 333, 2048])
def test_a_distance_has_the_same_bits_in_any_company(n: int, width: int):
    a, b, centre = noise(n, width, 0), noise(n, width, 1), torch.zeros(width, dtype=torch.float64)
    i = torch.arange(n)
    together = of_pairs(Rows.of(a, centre), Rows.of(b, centre), i, i)
    backwards = of_pairs(Rows.of(b, centre + 1), Rows.of(a, centre + 1), i.flip(0), i.flip(0)).flip(0)
    assert torch.equal(together, backwards)
    for row in range(n):
        one = torch.zeros(1, dtype=torch.int64)
        alone = of_pairs(Rows.of(a[row : row + 1], centre), Rows.of(b[row : row + 1], centre), one, one)
        assert alone == together[row]
    torch.testing.assert_close(together, (a.double() - b.double()).square().sum(1), rtol=1e-13, atol=0)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3, 1e8])
@pytest.mark.parametrize("width", [1, 16, 777])
def test_the_bounds_hold_what_is_between_them(width: int, offset: float):
    """Though taking off no centre makes the product lose nearly all digits."""
    x = noise(50, width, 0).double()
    x[1::2] = x[::2] + 1e-4 * noise(25, width, 1)
    rows = Rows.of(x + offset, torch.zeros(width, dtype=torch.float64))
    lower = lower_bounds(rows, rows)
    i, j = torch.ones_like(lower).nonzero(as_tuple=True)
    distance = of_pairs(rows, rows, i, j).view_as(lower)
    assert (lower <= distance).all()
    above = torch.stack([at_most(lower[:, m], rows.norms, width) for m in range(50)], 1)
    assert (distance <= above).all()
    limit = distance[:, 3]
    for m in range(50):
        sure = lower[:, m] < surely_below(limit, rows.norms, width)
        assert (distance[sure, m] < limit[sure]).all()
    if offset <= 1:
        assert ((above - lower) < 1e-9 * rows.norms[:, None]).all(), "the bounds are of use"
