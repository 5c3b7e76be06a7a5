"""For Gaussian data the ideal denoiser is known, so every sampler must reach the known mean and variance."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from kilopix.diffusion.paths import EDMPath, GammaPath, PathConfig, StraightPath, data_of_state
from kilopix.diffusion.samplers import SAMPLERS
from kilopix.diffusion.sampling import SamplingConfig, sample
from kilopix.diffusion.schedule import (
    EvenSpacing,
    FlowSpacing,
    KarrasSpacing,
    LogSNRSpacing,
    SpacingConfig,
    times_for,
)

MEAN, STD = 0.7, 0.4
PATHS = [
    StraightPath(),
    EDMPath(sigma_data=0.5),
    *(GammaPath(schedule=name) for name in ("linear", "cosine", "sigmoid", "cosine_simple", "vp")),
]
STOCHASTIC = ("ddpm", "dpmpp_2m_sde")


def name_of(path: PathConfig) -> str:
    return path.schedule if isinstance(path, GammaPath) else path.kind


def ideal(path: PathConfig, kind: str):
    """The best prediction for data of mean MEAN and deviation STD."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        point = path.at(t)
        variance = point.alpha**2 * STD**2 + point.sigma**2
        residual = x - point.alpha * MEAN
        data = MEAN + point.alpha * STD**2 / variance * residual
        return point.target(kind, data, point.sigma / variance * residual)

    return predict


def end_of(
    sampler: str,
    steps: int,
    noise: Tensor,
    path: PathConfig,
    kind: str = "velocity",
    spacing: SpacingConfig | None = None,
) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    config = SamplingConfig(sampler=sampler, steps=steps, spacing=spacing or EvenSpacing())
    fresh = lambda: torch.randn(noise.shape, generator=generator, dtype=noise.dtype)  # noqa: E731
    return sample(ideal(path, kind), noise, config, path, kind, fresh)


@pytest.mark.parametrize("path", PATHS, ids=name_of)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_reaches_the_mean_and_deviation_of_the_data(sampler, path):
    noise = torch.randn(16384, 1, 2, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kind = "noise" if isinstance(path, GammaPath) else "velocity"
    spacing = KarrasSpacing() if isinstance(path, EDMPath) else EvenSpacing()
    out = end_of(sampler, 200, noise, path, kind, spacing)
    assert abs(out.mean() - MEAN) < 0.02
    assert abs(out.std() - STD) < 0.02


def exact_end(path: PathConfig, noise: Tensor) -> Tensor:
    """The flow of a Gaussian carries every quantile to its quantile."""
    first, last = (path.at(torch.tensor(t, dtype=torch.float64)) for t in (1.0, 0.0))
    spread = lambda point: (point.alpha**2 * STD**2 + point.sigma**2).sqrt()  # noqa: E731
    quantile = (first.sigma * noise - first.alpha * MEAN) / spread(first)
    return data_of_state(path, last.alpha * MEAN + spread(last) * quantile)


@pytest.mark.parametrize("path", [StraightPath(), GammaPath(schedule="cosine"), EDMPath()], ids=name_of)
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_converges_at_its_order(sampler, order, path):
    noise = torch.linspace(-2, 2, 16, dtype=torch.float64).view(16, 1, 1, 1)
    exact = exact_end(path, noise)
    errors = [float((end_of(sampler, steps, noise, path) - exact).norm()) for steps in (160, 320, 640)]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert abs(measured[-1] - order) < 0.3, measured


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_stochastic_samplers_converge_weakly(sampler):
    """The deviation that they reach comes closer with more steps."""
    noise = torch.randn(60_000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = [abs(end_of(sampler, steps, noise, StraightPath()).std() - STD) for steps in (5, 20)]
    assert errors[1] < errors[0] / 2


def test_no_sampler_gives_anything_but_numbers_on_the_paths_ends():
    """Pure noise and pure data have infinite log signal-to-noise ratios: none may leak into the state."""
    noise = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    for path, sampler, steps in itertools.product(PATHS, SAMPLERS, (1, 2, 3, 7)):
        for spacing in (EvenSpacing(), EvenSpacing(shift=3), FlowSpacing(), LogSNRSpacing(), KarrasSpacing()):
            out = end_of(sampler, steps, noise, path, spacing=spacing)
            assert out.dtype == torch.float32
            assert out.isfinite().all(), (path, sampler, steps, spacing)


def test_every_step_is_seen():
    seen = []
    noise, path = torch.zeros(2, 1, 1, 1), StraightPath()
    for sampler in SAMPLERS:
        config = SamplingConfig(sampler=sampler, steps=5)
        sample(
            ideal(path, "velocity"),
            noise,
            config,
            path,
            "velocity",
            lambda: noise,
            lambda i, x, data: seen.append((i, x.shape, data.shape)),
        )
    assert seen == [(i, noise.shape, noise.shape) for i in range(5)] * len(SAMPLERS)


@pytest.mark.parametrize("path", PATHS, ids=name_of)
@pytest.mark.parametrize(
    "spacing", [EvenSpacing(), EvenSpacing(shift=3), FlowSpacing(), LogSNRSpacing(), KarrasSpacing()]
)
def test_times_fall_from_noise_to_data(path, spacing):
    for steps in (1, 2, 3, 30):
        times = times_for(spacing, steps, path)
        assert len(times) == steps + 1
        assert times[0] == 1
        assert times[-1] == 0
        assert (times.diff() < 0).all(), times


def test_flow_spacing_is_even_on_the_straight_path_and_visits_the_same_noise_on_others():
    times = times_for(FlowSpacing(shift=2), 12, StraightPath())
    torch.testing.assert_close(times, times_for(EvenSpacing(shift=2), 12, StraightPath()))
    path = GammaPath()
    point = path.at(times_for(FlowSpacing(shift=2), 12, path)[1:-1])
    torch.testing.assert_close(point.sigma / (point.alpha + point.sigma), times[1:-1])


def test_spacings_are_even_in_what_they_say():
    path = StraightPath()
    ratio = lambda times: (1 - times) / times  # noqa: E731
    levels = ratio(times_for(LogSNRSpacing(), 12, path)[1:-1]).log()
    torch.testing.assert_close(levels.diff(), levels.diff()[:1].expand(10))
    sigmas = ratio(times_for(KarrasSpacing(rho=5), 12, path)[1:-1]) ** (-1 / 5)
    torch.testing.assert_close(sigmas.diff(), sigmas.diff()[:1].expand(10))
