"""How many network evaluations a sampler needs: distance to the converged solution, from the same noise.

    python benchmarks/steps.py                        a mixture of Gaussians, whose ideal denoiser is exact
    python benchmarks/steps.py RUN [guidance]         a trained network of the embedded world

Prints Markdown tables. The distance is the root mean square over latents, in units of their own deviation,
with guidance on. The converged solution is that of Heun's method in a thousand steps; for a network that
carries its latents from step to step, whose result depends on the steps taken, that of DDIM in a thousand.
"""

import itertools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from kilopix.diffusion.guidance import ConstantGuidance, Predict, guided
from kilopix.diffusion.paths import GammaPath, PathConfig, StraightPath
from kilopix.diffusion.samplers import SamplerName
from kilopix.diffusion.sampling import SamplingConfig, sample
from kilopix.diffusion.schedule import EvenSpacing, FlowSpacing, KarrasSpacing, LogSNRSpacing, SpacingConfig

EVALUATIONS = (5, 10, 20, 25, 50, 100, 250)
SPACINGS: dict[str, SpacingConfig] = {
    "even in t": EvenSpacing(),
    "even, shift 2": EvenSpacing(shift=2.0),
    "flow, shift 2": FlowSpacing(),
    "log-SNR": LogSNRSpacing(),
    "Karras, rho 7": KarrasSpacing(),
    "Karras, rho 3, 20 to 0.05": KarrasSpacing(sigma_max=20.0, sigma_min=0.05, rho=3.0),
}
METHODS: tuple[SamplerName, ...] = ("ddim", "heun", "dpmpp_2m")


class Mixture:
    """Sixteen Gaussians in 12 dimensions, four to a class; guidance is towards one class."""

    def __init__(self, path: PathConfig):
        self.path = path
        generator = torch.Generator().manual_seed(0)
        self.centres = torch.randn(16, 12, generator=generator, dtype=torch.float64)
        self.std = 0.25

    def predict(self, centres: Tensor) -> Predict:
        """The ideal velocity for a mixture of these centres."""

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            point = self.path.at(t)
            flat = x.flatten(1)
            variance = point.alpha**2 * self.std**2 + point.sigma**2
            apart = flat[:, None] - point.alpha * centres[None]
            weights = torch.softmax(-apart.square().sum(2) / (2 * variance), dim=1)
            residual = (weights[..., None] * apart).sum(1)
            mean = (weights[..., None] * centres[None]).sum(1)
            data = mean + point.alpha * self.std**2 / variance * residual
            noise = point.sigma / variance * residual
            return point.target("velocity", data, noise).view_as(x)

        return velocity

    def guided(self, config: SamplingConfig) -> Predict:
        """Guided towards the first class, against all."""
        conditional, unconditional = self.predict(self.centres[:4]), self.predict(self.centres)
        both = lambda x, t: (conditional(x, t), unconditional(x, t))  # noqa: E731
        return guided(conditional, both, config.guidance, self.path, "velocity")


Run = Callable[[SamplingConfig], Tensor]


def of_mixture(path: PathConfig) -> Run:
    """Samples of the mixture under given settings."""
    mixture = Mixture(path)
    noise = torch.randn(256, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def run(config: SamplingConfig) -> Tensor:
        return sample(mixture.guided(config), noise, config, path, "velocity", lambda: noise)

    return run


def of_checkpoint(run_folder: str) -> tuple[Run, PathConfig, bool]:
    """Latents of a trained run for fixed prompts and seeds, its path, and whether it has latents to carry."""
    from kilopix.generator import Generator

    generator = Generator.from_pretrained(run_folder)
    prompts = [
        "a photo of a red car",
        "a photo of a penguin on a beige background",
        "a photo of a sunflower on a pale blue background",
        "a photo of a green umbrella",
    ]
    jobs = list(itertools.product(prompts, range(2)))

    def run(config: SamplingConfig) -> Tensor:
        with torch.inference_mode():
            return generator.latents([p for p, _ in jobs], [seed for _, seed in jobs], config)

    return run, generator.recipe.objective.path, generator.recipe.model.kind == "rin"


def table(title: str, run: Run, base: SamplingConfig, exact: Tensor) -> None:
    """Print one table: a row for each sampler and spacing, a column for each number of evaluations."""
    print(f"\n### {title}\n")
    print("| Sampler | Spacing | " + " | ".join(str(n) for n in EVALUATIONS) + " |")
    print("|---|---|" + "---|" * len(EVALUATIONS))
    for method, (name, spacing) in itertools.product(METHODS, SPACINGS.items()):
        cells: list[str] = []
        for evaluations in EVALUATIONS:
            steps = (evaluations + 1) // 2 if method == "heun" else evaluations
            config = base.model_copy(update={"sampler": method, "steps": steps, "spacing": spacing})
            far = (run(config) - exact).square().mean().sqrt() / exact.std()
            cells.append(f"{float(far):.4f}")
        print(f"| {method} | {name} | " + " | ".join(cells) + " |", flush=True)


def main(run_folder: str | None, scale: float) -> None:
    """Print the tables."""
    base = SamplingConfig(guidance=ConstantGuidance(scale=scale))
    converged = base.model_copy(update={"sampler": "heun", "steps": 1000})
    if run_folder is None:
        for name, path in (("straight", StraightPath()), ("gamma linear", GammaPath())):
            run = of_mixture(path)
            table(f"Mixture of Gaussians, {name} path, guidance {scale:g}", run, base, run(converged))
        return
    run, path, remembers = of_checkpoint(run_folder)
    for carry in (True, False) if remembers else (False,):
        settings = base.model_copy(update={"carry_latents": carry})
        ends: SamplerName = "ddim" if carry else "heun"
        exact = run(settings.model_copy(update={"sampler": ends, "steps": 1000}))
        title = f"{run_folder}, {path.kind} path, guidance {scale:g}"
        if remembers:
            title += ", latents carried" if carry else ", latents not carried"
        table(title, run, settings, exact)


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else None
    main(folder, float(sys.argv[2]) if len(sys.argv) > 2 else 3.0)
