"""Sets read in blocks: against closed forms, against definitions in NumPy, and against scikit-learn."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from kilopix.evaluation import streaming
from kilopix.evaluation.fidelity import frechet_distance, kernel_distance, moments
from kilopix.evaluation.streaming import (
    FeatureSet,
    InMemory,
    comparisons,
    kernel_distance_subsets,
    moments_of,
    neighbours,
)
from kilopix.types import UserError


def features(n: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator, dtype=torch.float64) * scale + shift


def test_in_memory_features_are_a_feature_set():
    one = InMemory(features(10, 3, 0), 4)
    assert isinstance(one, FeatureSet)
    assert (one.width, list(one.sizes)) == (3, [4, 4, 2])
    assert torch.equal(torch.cat([one.block(i) for i in range(3)]), one.features)


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_moments_do_not_depend_on_the_blocks(monkeypatch, rows):
    monkeypatch.setattr(streaming, "_MERGED", 50)
    x = features(303, 9, 0, shift=1e4)
    whole, streamed = moments(x), moments_of(InMemory(x.float().double(), rows))
    torch.testing.assert_close(streamed.mean, whole.mean, rtol=1e-6, atol=0)
    exact = moments_of(InMemory(x, rows))
    assert exact.count == 303
    torch.testing.assert_close(exact.mean, x.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(exact.scatter / 302, x.T.cov(), rtol=1e-8, atol=1e-8)


def test_the_distance_of_two_gaussians_approaches_its_closed_form():
    """N(0, I) and N(m, s^2 I) in F dimensions: |m|^2 + F (s - 1)^2."""
    width, scale, shift = 5, 1.5, 0.4
    real, fake = features(60_000, width, 0), features(60_000, width, 1, scale, shift)
    expected = width * shift**2 + width * (scale - 1) ** 2
    measured = frechet_distance(moments_of(InMemory(real)), moments_of(InMemory(fake)))
    assert measured == pytest.approx(expected, rel=0.02)


def test_the_kernel_distance_of_two_gaussians_approaches_its_closed_form():
    """In one dimension (x y + 1)^3 = 1 + 3 xy + 3 (xy)^2 + (xy)^3, so that only raw moments are needed."""
    real, fake = features(20_000, 1, 0), features(20_000, 1, 1, 1.5, 0.4)
    first, second = [0.0, 1.0, 0.0], [0.4, 1.5**2 + 0.4**2, 0.4**3 + 3 * 0.4 * 1.5**2]
    expected = sum(c * (a - b) ** 2 for c, a, b in zip((3, 3, 1), first, second, strict=True))
    mean, deviation = kernel_distance_subsets(InMemory(real), InMemory(fake), subsets=100, size=300)
    assert abs(mean - expected) < 5 * deviation / math.sqrt(100)
    assert deviation > 0


def test_shares_of_two_squares_approach_their_areas():
    """Fake uniform on [0, 2] x [0, 1], real on [0, 1]^2: half of the fake is inside, all of the real."""
    rng = np.random.default_rng(0)
    real = torch.from_numpy(rng.random((4000, 2)))
    fake = torch.from_numpy(rng.random((4000, 2)) * [2, 1])
    found = neighbours(InMemory(real), InMemory(fake), 5)
    assert found.precision == pytest.approx(0.5, abs=0.03)
    assert found.recall > 0.98
    assert found.density == pytest.approx(0.5, abs=0.03)


def test_kernel_distance_over_subsets(monkeypatch):
    x, y = features(60, 7, 0), features(45, 7, 1, 1.2, 0.3)
    rng = np.random.default_rng(5)
    chosen = [[rng.choice(n, 20, replace=False) for _ in range(10)] for n in (60, 45)]
    expected = [kernel_distance(x[i], y[j]) for i, j in zip(*chosen, strict=True)]
    mean, deviation = kernel_distance_subsets(InMemory(x, 11), InMemory(y, 16), subsets=10, size=20, seed=5)
    assert mean == pytest.approx(np.mean(expected), rel=1e-10)
    assert deviation == pytest.approx(np.std(expected), rel=1e-10)
    monkeypatch.setattr(streaming, "_GATHERED", 3 * 20 * 7)
    assert kernel_distance_subsets(InMemory(x, 11), InMemory(y, 16), 10, 20, 5) == (mean, deviation)
    assert kernel_distance_subsets(InMemory(x, 11), InMemory(y, 16), 10, 20, 6)[0] != mean
    all_of_the_smaller = kernel_distance_subsets(InMemory(x), InMemory(x[:45]), subsets=3, size=1000)
    assert math.isfinite(all_of_the_smaller[0])


def naive_neighbours(real: np.ndarray, fake: np.ndarray, k: int) -> list[float]:
    real_radius = np.sort(cdist(real, real), axis=1)[:, k]
    fake_radius = np.sort(cdist(fake, fake), axis=1)[:, k]
    distance = cdist(real, fake)
    inside = distance < real_radius[:, None]
    return [
        inside.any(0).mean(),
        (distance < fake_radius).any(1).mean(),
        inside.sum(0).mean() / k,
        (distance.min(1) < real_radius).mean(),
    ]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbours_agree_with_their_definition_in_any_blocks(k):
    real, fake = features(80, 6, 0, shift=50.0), features(70, 6, 1, 1.2, 50.3)
    expected = naive_neighbours(real.numpy(), fake.numpy(), k)
    for rows in (1000, 16):
        mine = neighbours(InMemory(real, rows), InMemory(fake, 2 * rows - 1), k)
        assert [mine.precision, mine.recall, mine.density, mine.coverage] == pytest.approx(
            expected, abs=1e-12
        )


def test_neighbours_of_copies_and_of_strangers():
    real = features(50, 4, 0)
    same = neighbours(InMemory(real), InMemory(real.clone()), 5)
    assert (same.precision, same.recall, same.density, same.coverage) == (1, 1, 1, 1)
    far = neighbours(InMemory(real), InMemory(real + 1000), 5)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    collapsed = neighbours(InMemory(real), InMemory(real[:1].repeat(50, 1) + 1e-3 * features(50, 4, 1)), 5)
    assert collapsed.precision == 1
    assert collapsed.recall < 0.1
    assert collapsed.coverage < 0.5


def test_neighbours_agree_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.neighbors")
    real, fake = features(150, 6, 0), features(130, 6, 1, 1.2, 0.3)
    k = 3
    radius = {}
    for name, x in (("real", real), ("fake", fake)):
        tree = sklearn.NearestNeighbors(n_neighbors=k + 1, algorithm="kd_tree").fit(x.numpy())
        radius[name] = tree.kneighbors(x.numpy())[0][:, k]
    within = [
        [(np.linalg.norm(real.numpy() - point, axis=1) < radius["real"]).any() for point in fake.numpy()],
        [(np.linalg.norm(fake.numpy() - point, axis=1) < radius["fake"]).any() for point in real.numpy()],
    ]
    found = neighbours(InMemory(real, 16), InMemory(fake, 50), k)
    assert found.precision == pytest.approx(np.mean(within[0]), abs=1e-12)
    assert found.recall == pytest.approx(np.mean(within[1]), abs=1e-12)


def test_every_block_is_told():
    told = []
    pair = InMemory(features(50, 3, 0), 10), InMemory(features(40, 3, 1), 20)
    neighbours(*pair, 2, lambda: told.append(1))
    assert len(told) == comparisons(*pair) == 15 + 3 + 10


def test_bad_sets_are_refused():
    good, bad = InMemory(features(10, 4, 0)), features(10, 4, 1)
    bad[3, 2], bad[7, 0] = math.nan, math.inf
    for call in (kernel_distance_subsets, neighbours):
        with pytest.raises(UserError, match="2 of 10 images"):
            call(good, InMemory(bad))
        with pytest.raises(UserError, match="width 4 and 3"):
            call(good, InMemory(features(10, 3, 0)))
    with pytest.raises(UserError, match="2 of 10 images"):
        moments_of(InMemory(bad))
    with pytest.raises(UserError, match="at least 6 images"):
        neighbours(good, InMemory(good.features[:5]), 5)
    with pytest.raises(UserError, match="no features"):
        moments_of(InMemory(good.features[:0]))


TRIAL = """
import resource, sys
from dataclasses import dataclass
import torch
from kilopix.evaluation.fidelity import frechet_distance
from kilopix.evaluation.streaming import kernel_distance_subsets, moments_of, neighbours

@dataclass
class Drawn:
    # Drawn anew, block by block, so that only what the metrics hold is in memory.
    seed: int
    count: int
    width: int
    shift: float

    @property
    def sizes(self):
        return [min(1024, self.count - start) for start in range(0, self.count, 1024)]

    def block(self, i):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + i)
        return torch.randn(self.sizes[i], self.width, generator=generator) + self.shift

count, width, shift = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
real, fake = Drawn(1, count, width, 0.0), Drawn(2, count, width, shift)
fid = frechet_distance(moments_of(real), moments_of(fake))
kid = kernel_distance_subsets(real, fake)
shares = neighbours(real, fake, 3)
print(fid, kid[0], shares.coverage, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_thousand_images_of_2048_features_fit_in_two_gibibytes():
    count, width, shift = 50_000, 2048, 0.1
    arguments = [str(value) for value in (count, width, shift)]
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, *arguments], capture_output=True, text=True, check=True
    )
    print(done.stdout)
    fid, kid, coverage, kibibytes = map(float, done.stdout.split())
    # The second term is the bias of sample covariances, to first order in width / count.
    assert fid == pytest.approx(width * shift**2 + width * (width + 1) / (2 * count), rel=0.02)
    assert kid > 0
    assert 0 <= coverage <= 1
    assert kibibytes < 2 * 1024**2
