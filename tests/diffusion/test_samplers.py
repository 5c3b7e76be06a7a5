"""For Gaussian data the ideal denoiser is known, so every sampler must reach the known mean and variance."""

import itertools
import math

import pytest
import torch

from kilopix.diffusion.guidance import GuidanceConfig, guided
from kilopix.diffusion.paths import StraightPath
from kilopix.diffusion.samplers import SAMPLERS, SamplingChanges, SamplingConfig, times_for

MEAN, STD = 0.7, 0.4


def ideal_velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[dx/dt | x_t] for data of mean MEAN and deviation STD on the straight path."""
    t = t[:, None, None, None]
    alpha, sigma = 1 - t, t
    variance = alpha**2 * STD**2 + sigma**2
    residual = x - alpha * MEAN
    data = MEAN + alpha * STD**2 / variance * residual
    noise = sigma / variance * residual
    return noise - data


def end_of(sampler: str, steps: int, noise: torch.Tensor) -> torch.Tensor:
    times = times_for(SamplingConfig(steps=steps)).double()
    return SAMPLERS[sampler](ideal_velocity, noise, times, StraightPath(), "velocity")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_reaches_the_mean_and_deviation_of_the_data(sampler):
    noise = torch.randn(4096, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = end_of(sampler, 200, noise)
    assert abs(out.mean() - MEAN) < 0.02
    assert abs(out.std() - STD) < 0.02


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_converges_at_its_order(sampler, order):
    noise = torch.full((1, 1, 1, 1), 1.3, dtype=torch.float64)
    exact = MEAN + STD * noise  # the flow of a Gaussian carries every quantile to its quantile
    errors = [(end_of(sampler, steps, noise) - exact).abs().item() for steps in (20, 40, 80)]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert abs(measured[-1] - order) < 0.25, measured


def test_every_step_is_seen():
    seen = []
    noise = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    times = times_for(SamplingConfig(steps=5)).double()
    SAMPLERS["euler"](
        ideal_velocity,
        noise,
        times,
        StraightPath(),
        "velocity",
        lambda i, x, data: seen.append((i, data.shape)),
    )
    assert seen == [(i, noise.shape) for i in range(5)]


def test_guidance_is_off_at_scale_1_and_outside_its_interval():
    calls = []

    def alone(x, t):
        calls.append("alone")
        return torch.ones_like(x)

    def both(x, t):
        calls.append("both")
        return torch.ones_like(x), torch.zeros_like(x)

    x = torch.zeros(1, 1, 1, 1)
    at = lambda config, t: float(guided(alone, both, config)(x, torch.tensor([t])))  # noqa: E731
    assert at(GuidanceConfig(scale=1), 0.5) == 1
    assert at(GuidanceConfig(scale=3, start=0.8, stop=0.2), 0.9) == 1
    assert calls == ["alone", "alone"]
    assert at(GuidanceConfig(scale=3, start=0.8, stop=0.2), 0.5) == 3
    assert at(GuidanceConfig(scale=0), 0.5) == 0


def test_changes_leave_the_rest_of_the_settings():
    config = SamplingConfig(steps=10, guidance=GuidanceConfig(scale=5, stop=0.1))
    assert SamplingChanges().apply(config) == config
    changed = SamplingChanges(steps=3, guidance=1.0).apply(config)
    assert changed.steps == 3
    assert changed.guidance == GuidanceConfig(scale=1, stop=0.1)
    assert changed.sampler == config.sampler
