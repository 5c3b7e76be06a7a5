import math

import numpy as np
import pytest
import scipy.linalg
import torch

from kilopix.evaluation import fidelity
from kilopix.evaluation.fidelity import (
    Moments,
    frechet_distance,
    kernel_distance,
    kernel_distance_interval,
    moments,
)
from kilopix.types import UserError


def features(n: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator, dtype=torch.float64) * scale + shift


def gaussian(mean: list[float], covariance: list[list[float]], count: int = 5) -> Moments:
    scatter = torch.tensor(covariance, dtype=torch.float64) * (count - 1)
    return Moments(count, torch.tensor(mean, dtype=torch.float64), scatter)


def test_frechet_distance_of_known_gaussians():
    diagonal = gaussian([0.0, 0.0], [[4.0, 0.0], [0.0, 9.0]])
    assert frechet_distance(diagonal, gaussian([3.0, 4.0], [[1.0, 0.0], [0.0, 1.0]], 9)) == pytest.approx(30)
    # Same eigenvalues 1 and 9, turned by 45 degrees: tr (A B)^(1/2) is the root of tr A B + 2 det A.
    a = gaussian([0.0, 0.0], [[9.0, 0.0], [0.0, 1.0]])
    b = gaussian([0.0, 0.0], [[5.0, 4.0], [4.0, 5.0]])
    assert frechet_distance(a, b) == pytest.approx(20 - 2 * math.sqrt(50 + 18))


def test_frechet_distance_agrees_with_the_matrix_root():
    a, b = features(300, 12, 0), features(200, 12, 1, 1.3, 0.2)
    root = scipy.linalg.sqrtm(np.cov(a.numpy().T) @ np.cov(b.numpy().T)).real
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(
        np.cov(a.numpy().T) + np.cov(b.numpy().T) - 2 * root
    )
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_nothing_with_fewer_images_than_features():
    one = moments(features(20, 64, 0))
    assert 0 <= frechet_distance(one, one) < 1e-9
    # Sets that span subspaces at right angles: nothing is shared, so the traces are added.
    wide = torch.zeros(20, 64, dtype=torch.float64)
    wide[:, :10] = features(20, 10, 1)
    other = torch.zeros(20, 64, dtype=torch.float64)
    other[:, 10:20] = features(20, 10, 2)
    traces = wide.var(0).sum() + other.var(0).sum() + (wide.mean(0) - other.mean(0)).square().sum()
    assert frechet_distance(moments(wide), moments(other)) == pytest.approx(float(traces), rel=1e-6)


def test_low_ranks_agree_with_the_singular_values_of_the_features():
    """Fewer images than features on one side or both, and features that repeat others."""
    a, b = features(9, 12, 0), features(200, 12, 1, 1.3, 0.2)
    narrow = features(8, 3, 2) @ features(3, 12, 3)
    for x, y in ((a, b), (b, a), (a, features(7, 12, 4)), (narrow, a), (narrow, b)):
        thin = [(one - one.mean(0)).numpy() / math.sqrt(len(one) - 1) for one in (x, y)]
        cross = np.linalg.svd(thin[0] @ thin[1].T, compute_uv=False).sum()
        expected = float((x.mean(0) - y.mean(0)).square().sum()) + sum((t**2).sum() for t in thin) - 2 * cross
        assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-7)


def test_moments_are_the_same_in_batches_of_any_size_and_far_from_the_origin():
    x = features(101, 8, 0, shift=1e4)
    whole = moments(x)
    parts = [moments(part) for part in x.split([1, 50, 30, 20])]
    left = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
    for one in (whole, left):
        assert one.count == 101
        torch.testing.assert_close(one.mean, x.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(one.scatter / 100, x.T.cov(), rtol=1e-9, atol=1e-9)


def naive_kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    n, m = len(x), len(y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return within - 2 * xy.mean()


def test_kernel_distance_agrees_with_its_definition_in_any_blocks(monkeypatch):
    x, y = features(60, 7, 0), features(45, 7, 1, 1.2, 0.3)
    expected = naive_kernel_distance(x.numpy(), y.numpy())
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(fidelity, "_CELLS", 100)
    assert kernel_distance(x.float(), y.float()) == pytest.approx(expected, rel=1e-5)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_has_no_bias():
    values = [kernel_distance(features(20, 4, 2 * i), features(20, 4, 2 * i + 1)) for i in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(300)
    assert min(values) < 0


def test_kernel_interval_holds_the_truth_about_as_often_as_it_says():
    truth = kernel_distance(features(4000, 3, 998), features(4000, 3, 999, 1.3, 0.5))
    hits = 0
    for trial in range(60):
        x, y = features(120, 3, 2 * trial), features(120, 3, 2 * trial + 1, 1.3, 0.5)
        interval = kernel_distance_interval(x, y, resamples=200, seed=trial)
        assert interval.value == pytest.approx(kernel_distance(x, y), rel=1e-9)
        assert interval.low < interval.value < interval.high
        hits += interval.low <= truth <= interval.high
    assert 50 <= hits <= 60


def test_bad_features_are_refused():
    good, bad = features(10, 4, 0), features(10, 4, 1)
    bad[3, 2] = math.nan
    bad[7, 0] = math.inf
    for call in (kernel_distance, kernel_distance_interval):
        with pytest.raises(UserError, match="2 of 10 images"):
            call(good, bad)
    with pytest.raises(UserError, match="2 of 10 images"):
        moments(bad)
    with pytest.raises(UserError, match="at least 2 images"):
        kernel_distance(good, good[:1])
    with pytest.raises(UserError, match="at least two images"):
        frechet_distance(moments(good), moments(good[:1]))
    with pytest.raises(UserError, match="no features"):
        moments(good[:0])
    for call in (frechet_distance, Moments.merge):
        with pytest.raises(UserError, match="width 4 and 3"):
            call(moments(good), moments(good[:, :3]))
