"""A model as the server sees it: its name, its facts, its pictures, and looks at its latents.

In: a `Generator`. Everything that the server asks of one is asked here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from torch import Tensor

from kilopix.diffusion.samplers import OnStep
from kilopix.diffusion.sampling import SamplingConfig
from kilopix.generator import Generator
from kilopix.web.requests import Offer

_KINDS = {"dit": "DiT-I", "rin": "CAD-I"}


@dataclass(frozen=True)
class ServedModel:
    """A generator under the name that it is served by."""

    name: str
    generator: Generator

    @cached_property
    def offer(self) -> Offer:
        """What can be asked of it."""
        recipe = self.generator.recipe
        return Offer(self.name, recipe.data.image_size, recipe.sampling)

    @cached_property
    def parameters(self) -> int:
        """How many weights the network has."""
        return sum(p.numel() for p in self.generator.network.parameters())

    @cached_property
    def facts(self) -> list[str]:
        """What one wants to know of it first, in a few words each."""
        side = self.offer.side
        return [
            _KINDS.get(self.generator.recipe.model.kind, self.generator.recipe.model.kind),
            f"{self.parameters / 1e6:.1f} million parameters",
            f"{side} x {side} pixels",
            self.generator.trained_on.seen(self.generator.images_seen),
        ]

    def note(self, prompts: Sequence[str]) -> str:
        """One line on what of the prompts it was never taught; empty where nothing is known to be."""
        return self.generator.trained_on.note(prompts)

    def make(
        self, jobs: Sequence[tuple[str, int]], sampling: SamplingConfig, on_step: OnStep | None = None
    ) -> list[Image.Image]:
        """One picture for every prompt and seed."""
        prompts, seeds = [prompt for prompt, _ in jobs], [seed for _, seed in jobs]
        return self.pictures(self.generator.latents(prompts, seeds, sampling, on_step))

    def pictures(self, latents: Tensor) -> list[Image.Image]:
        """Latents, as the network gives them, decoded."""
        return self.generator.pictures(latents)

    def warm_up(self) -> None:
        """Load what is loaded on first use, so that the first visitor does not wait for it."""
        self.make([("a photo", 0)], self.offer.sampling.model_copy(update={"steps": 1}))


def load_models(paths: Sequence[Path | str], device: str) -> dict[str, ServedModel]:
    """Load models; each is named after its file or folder, with a number where that is taken."""
    models: dict[str, ServedModel] = {}
    for path in paths:
        name = _name(path)
        number = 2
        while name in models:
            name, number = f"{_name(path)}-{number}", number + 1
        generator = Generator.from_pretrained(path, device)
        if models:
            share_encoders(generator, next(iter(models.values())).generator)
        models[name] = ServedModel(name, generator)
    return models


def share_encoders(generator: Generator, other: Generator) -> None:
    """Let a generator use the frozen networks of another where they are the same, in place of its own."""
    mine, theirs = generator.recipe, other.recipe
    if mine.text == theirs.text and generator.text_fingerprint == other.text_fingerprint:
        generator.__dict__["text_encoder"] = other.text_encoder
    same_codec = generator.autoencoder_fingerprint == other.autoencoder_fingerprint
    if mine.autoencoder == theirs.autoencoder and same_codec:
        generator.__dict__["autoencoder"] = other.autoencoder


def _name(given: Path | str) -> str:
    """`run` of `run` and of `run/model.safetensors`; `run-12000` of a checkpoint; else the name as it is."""
    path = Path(given)
    if not path.exists():
        return path.name or str(given)
    path = path.resolve()
    if path.is_file():
        path = path.parent if path.stem in ("model", "average", "network") else path.with_suffix("")
    if path.parent.name == "checkpoints":
        return f"{path.parents[1].name}-{path.name.lstrip('0') or '0'}"
    return path.name or "model"
