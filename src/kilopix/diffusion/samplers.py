"""Samplers: from noise at t = 1 to data at t = 0, each a plain function of one signature.

In: a denoiser (what data and what noise are in x_t), the state at t = 1, and the times to visit. Out:
latents. They know any path by its alpha and sigma alone: written as x / (alpha + sigma) over
r = sigma / (alpha + sigma), every path is the straight one, along which Euler is DDIM and Heun's
correction is taken.
"""

import itertools
from collections.abc import Callable
from typing import Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from kilopix.diffusion.paths import PathConfig, PathPoint

SamplerName = Literal["euler", "ddim", "heun", "ddpm", "dpmpp_2m", "dpmpp_2m_sde"]
Denoise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""State `B C H W` and time (a scalar) to the data and the noise in it."""
OnStep = Callable[[int, Tensor, Tensor], None]
"""Told after every step: its number, the state, and the data predicted."""
FreshNoise = Callable[[], Tensor]
"""Standard noise of the state's shape, new at every call."""


class Sampler(Protocol):
    """The signature that all samplers have."""

    def __call__(
        self,
        denoise: Denoise,
        x: Float[Tensor, "B C H W"],
        times: Float[Tensor, " S"],
        path: PathConfig,
        fresh_noise: FreshNoise,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """Walk from the state `x` along `times`, which fall from 1 to 0."""
        ...


def ddim(
    denoise: Denoise,
    x: Float[Tensor, "B C H W"],
    times: Float[Tensor, " S"],
    path: PathConfig,
    fresh_noise: FreshNoise,
    on_step: OnStep | None = None,
) -> Float[Tensor, "B C H W"]:
    """First order, one evaluation a step (Song et al. 2021, eq. 12, no noise); on a straight path, Euler."""
    for i, (now, then) in enumerate(itertools.pairwise(times)):
        data, noise = denoise(x, now)
        x = path.at(then).mix(data, noise)
        if on_step:
            on_step(i, x, data)
    return x


def heun(
    denoise: Denoise,
    x: Float[Tensor, "B C H W"],
    times: Float[Tensor, " S"],
    path: PathConfig,
    fresh_noise: FreshNoise,
    on_step: OnStep | None = None,
) -> Float[Tensor, "B C H W"]:
    """Second order: two evaluations a step, one for the last (Karras et al. 2022, algorithm 1)."""
    last = len(times) - 2
    for i, (now, then) in enumerate(itertools.pairwise(times)):
        data, noise = denoise(x, now)
        after = path.at(then)
        ahead = after.mix(data, noise)
        if i < last:
            data_ahead, noise_ahead = denoise(ahead, then)
            velocity = ((noise - data) + (noise_ahead - data_ahead)) / 2
            ahead = _follow(path.at(now), after, x, velocity)
        x = ahead
        if on_step:
            on_step(i, x, data)
    return x


def ddpm(
    denoise: Denoise,
    x: Float[Tensor, "B C H W"],
    times: Float[Tensor, " S"],
    path: PathConfig,
    fresh_noise: FreshNoise,
    on_step: OnStep | None = None,
) -> Float[Tensor, "B C H W"]:
    """Ancestral sampling with the posterior's variance (Ho et al. 2020, eq. 7), one evaluation a step."""
    for i, (now, then) in enumerate(itertools.pairwise(times)):
        data, noise = denoise(x, now)
        after = path.at(then)
        kept = _log_ratio(path.at(now), after).neg().exp()  # of the old noise, relative to the new level
        x = after.alpha * data + after.sigma * kept * noise
        if after.sigma > 0:
            x = x + after.sigma * (1 - kept.square()).sqrt() * fresh_noise()
        if on_step:
            on_step(i, x, data)
    return x


def dpmpp_2m(
    denoise: Denoise,
    x: Float[Tensor, "B C H W"],
    times: Float[Tensor, " S"],
    path: PathConfig,
    fresh_noise: FreshNoise,
    on_step: OnStep | None = None,
) -> Float[Tensor, "B C H W"]:
    """DPM-Solver++ 2M (Lu et al. 2022b, algorithm 2): second order, one evaluation a step."""
    return _multistep(denoise, x, times, path, None, on_step)


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Float[Tensor, "B C H W"],
    times: Float[Tensor, " S"],
    path: PathConfig,
    fresh_noise: FreshNoise,
    on_step: OnStep | None = None,
) -> Float[Tensor, "B C H W"]:
    """DPM-Solver++ 2M for the diffusion SDE (Lu et al. 2022b, appendix A), one evaluation a step."""
    return _multistep(denoise, x, times, path, fresh_noise, on_step)


def _multistep(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    path: PathConfig,
    fresh_noise: FreshNoise | None,
    on_step: OnStep | None,
) -> Tensor:
    """The data are extrapolated from the last two predictions; after a step of no or infinite length, or for
    one, from the last alone."""
    before: tuple[Tensor, Tensor] | None = None
    for i, (now, then) in enumerate(itertools.pairwise(times)):
        here, after = path.at(now), path.at(then)
        data, _ = denoise(x, now)
        step = _log_ratio(here, after)
        middle = data
        if before is not None and bool(step.isfinite()):
            last_data, last_step = before
            if last_step > 0:
                middle = data + step / (2 * last_step) * (data - last_data)
        decay = step.neg().exp()
        if fresh_noise is None:
            x = after.sigma / here.sigma * x + after.alpha * (1 - decay) * middle
        else:
            x = after.sigma / here.sigma * decay * x + after.alpha * (1 - decay.square()) * middle
            if after.sigma > 0:
                x = x + after.sigma * (1 - decay.square()).sqrt() * fresh_noise()
        before = data, step
        if on_step:
            on_step(i, x, data)
    return x


def _log_ratio(here: PathPoint, after: PathPoint) -> Tensor:
    """Growth of log(alpha / sigma) over a step; infinite from pure noise and to pure data."""
    return (after.alpha.log() - after.sigma.log()) - (here.alpha.log() - here.sigma.log())


def _follow(here: PathPoint, after: PathPoint, x: Tensor, velocity: Tensor) -> Tensor:
    """A step along noise - data, in the coordinates in which the path is straight."""
    total, total_after = here.alpha + here.sigma, after.alpha + after.sigma
    distance = after.sigma / total_after - here.sigma / total
    return total_after * (x / total + distance * velocity)


SAMPLERS: dict[SamplerName, Sampler] = {
    "euler": ddim,
    "ddim": ddim,
    "heun": heun,
    "ddpm": ddpm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
}
"""Euler and DDIM are one: on every path, in the coordinates in which it is straight."""
