"""The walk from noise to data: DDIM, or DPM-Solver++ 2M, on a straight or a DDPM path.

t = 0 is data, t = 1 is noise; x_t = alpha(t) x_0 + sigma(t) eps. In: predictions of the network. Out: the
state of the next step.
"""

from numbers import Integral

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput


class KilopixScheduler(SchedulerMixin, ConfigMixin):
    """Times, and one step of a sampler; `sampler` is `ddim` (on a straight path, Euler) or `dpmpp_2m`.

    `path` is `straight` (alpha 1 - t, sigma t) or `linear` (alpha^2 1 - t); `spacing` is `even` in t or
    `flow`, even in sigma / (alpha + sigma), both moved towards the noise by `shift`. `prediction` is what
    the network answers: noise, velocity or data. Predicted data are cut at +-`clamp` if given.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        path: str = "straight",
        prediction: str = "velocity",
        sampler: str = "ddim",
        spacing: str = "even",
        shift: float = 1.0,
        clamp: float | None = None,
    ):
        self.init_noise_sigma = 1.0
        self.set_timesteps(1)

    def set_timesteps(self, num_inference_steps, device=None):
        """The times to visit, from 1 down to 0; the last is where the walk ends, no network sees it."""
        if not isinstance(num_inference_steps, Integral) or num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps: must be a whole number of at least 1 (got {num_inference_steps!r})."
            )
        even = 1 - torch.arange(num_inference_steps + 1, dtype=torch.float64) / num_inference_steps
        shift = self.config.shift
        times = shift * even / (1 + (shift - 1) * even)
        if self.config.spacing == "flow" and self.config.path == "linear":
            ratio = (1 - times).clamp(min=1e-300) / times.clamp(min=1e-300)  # alpha / sigma
            inner = 1 / (1 + ratio[1:-1].square())
            times = torch.cat([even[:1], inner, even[-1:]])
        self._times = times
        self.timesteps = times[:-1]
        self.num_inference_steps = num_inference_steps
        self._step, self._before = 0, None
        self.init_noise_sigma = float(self._at(times[0])[1])

    def scale_model_input(self, sample, timestep=None):
        """The network sees the state as it is."""
        return sample

    def step(self, model_output, timestep, sample, return_dict=True):
        """The state at the next time; steps are taken in the order of `timesteps`."""
        now, then = self._times[self._step], self._times[self._step + 1]
        data, noise = self._data_and_noise(model_output, sample, now)
        alpha, sigma = self._at(then)
        if self.config.sampler == "dpmpp_2m":
            here_alpha, here_sigma = self._at(now)
            # Infinite from pure noise and to pure data, where the last prediction counts alone.
            length = (alpha.log() - sigma.log()) - (here_alpha.log() - here_sigma.log())
            direction = data
            if self._before is not None and bool(length.isfinite()):
                last_data, last_length = self._before
                if last_length > 0:
                    direction = data + length / (2 * last_length) * (data - last_data)
            state = sigma / here_sigma * sample + alpha * (1 - length.neg().exp()) * direction
            self._before = data, length
        else:
            state = alpha * data + sigma * noise
        self._step += 1
        state = state.to(sample.dtype)
        return SchedulerOutput(prev_sample=state) if return_dict else (state,)

    def _at(self, t):
        """alpha and sigma."""
        if self.config.path == "straight":
            return 1 - t, t
        gamma = (1 - t).clamp(min=1e-9)
        return gamma.sqrt(), (1 - gamma).sqrt()

    def _data_and_noise(self, answer, x, t):
        alpha, sigma = self._at(t)
        if self.config.prediction == "noise":
            data, noise = (x - sigma * answer) / alpha, answer
        elif self.config.prediction == "data":
            data, noise = answer, (x - alpha * answer) / sigma.clamp(min=1e-12)
        else:
            straight = self.config.path == "straight"
            d_alpha, d_sigma = (-torch.ones_like(t), torch.ones_like(t)) if straight else (-sigma, alpha)
            determinant = alpha * d_sigma - d_alpha * sigma
            data = (d_sigma * x - sigma * answer) / determinant
            noise = (alpha * answer - d_alpha * x) / determinant
        if self.config.clamp is not None:
            data = data.clamp(-self.config.clamp, self.config.clamp)
            noise = (x - alpha * data) / sigma.clamp(min=1e-12)
        return data, noise

    def __len__(self):
        return 1000
