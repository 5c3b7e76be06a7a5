"""From a checkpoint to an object that turns prompts into pictures.

In: a run folder, a checkpoint in it, or a safetensors file whose header holds the recipe. Out: PIL
images. A picture depends on the weights, its prompt, its seed and the sampling settings alone: not on
the batch that it is made in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from kilopix.config import parse
from kilopix.diffusion.samplers import OnStep
from kilopix.diffusion.sampling import SamplingConfig, sample
from kilopix.network import Network, build_network, sampling_predictor
from kilopix.pretrained.autoencoder import Autoencoder, load_autoencoder
from kilopix.pretrained.text_encoder import TextEncoder, load_text_encoder
from kilopix.recipe import Recipe
from kilopix.runtime import pick_device, sha256_of_file, torch_generator
from kilopix.training.checkpoint import AVERAGE, newest_checkpoint, read_weights
from kilopix.types import LatentStatistics, UserError

OnImage = Callable[[int], None]


def find_weights(path: Path) -> Path:
    """The weights that a path means: a file, a finished run's model, or its newest checkpoint's average."""
    if path.is_file():
        return path
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    if (path / AVERAGE).is_file():
        return path / AVERAGE
    newest = newest_checkpoint(path / "checkpoints")
    if newest is None:
        raise UserError(f"{path}: no weights there; give a run folder, a checkpoint or a .safetensors file.")
    return newest / AVERAGE


def _find_beside(weights: Path, name: str) -> Path | None:
    """The folder at or up to two levels above the weights that holds a file of this name."""
    return next((f for f in list(weights.resolve().parents)[:3] if (f / name).is_file()), None)


@dataclass(frozen=True)
class Generator:
    """A network with its text encoder and autoencoder; call it with prompts."""

    network: Network
    recipe: Recipe
    weights: Path
    images_seen: int
    device: str
    text_fingerprint: str
    autoencoder_fingerprint: str
    whitening: LatentStatistics | None = None

    @classmethod
    def from_pretrained(cls, path: Path | str, device: str = "auto") -> "Generator":
        """Load weights with the recipe in their header; the encoders are loaded when first used."""
        weights = find_weights(Path(path))
        tensors, header = read_weights(weights)
        if "recipe" not in header:
            raise UserError(f"{weights}: no kilopix recipe in its header.")
        recipe = parse(Recipe, header["recipe"], f"{weights}: recipe in the header")
        network = build_network(recipe, header["latent_channels"], header["text_width"])
        network.load_state_dict(tensors)
        device = pick_device(device)
        network = network.to(device).eval().requires_grad_(False)
        made_with = header["text_fingerprint"], header["autoencoder_fingerprint"]
        statistics = header.get("latent_whitening")
        whitening = LatentStatistics(*map(tuple, statistics.values())) if statistics else None
        return cls(network, recipe, weights, header["images_seen"], device, *made_with, whitening)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The recipe's text encoder."""
        encoder = load_text_encoder(self.recipe.text, self.device)
        self._check("text encoder", encoder.fingerprint, self.text_fingerprint)
        return encoder

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """The recipe's autoencoder; a patch codec lies beside the weights."""
        folder = _find_beside(self.weights, "codec.safetensors")
        autoencoder = load_autoencoder(self.recipe.autoencoder, folder, self.device)
        self._check("autoencoder", autoencoder.fingerprint, self.autoencoder_fingerprint)
        return autoencoder

    def _check(self, what: str, found: str, made_with: str) -> None:
        if found != made_with:
            raise UserError(f"{self.weights}: was trained with {what} {made_with}, but {found} is here.")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights file."""
        return sha256_of_file(self.weights)

    def __call__(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int] = (0,),
        sampling: SamplingConfig | None = None,
        batch_size: int = 32,
        on_image: OnImage | None = None,
    ) -> list[Image.Image]:
        """One picture for every prompt and seed: all seeds of the first prompt, then of the second, ..."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
        return self.generate(jobs, sampling, batch_size, on_image)

    def generate(
        self,
        jobs: Sequence[tuple[str, int]],
        sampling: SamplingConfig | None = None,
        batch_size: int = 32,
        on_image: OnImage | None = None,
    ) -> list[Image.Image]:
        """One picture for every (prompt, seed); `on_image` is told after each batch how many are done."""
        images: list[Image.Image] = []
        for start in range(0, len(jobs), batch_size):
            images += self._batch(jobs[start : start + batch_size], sampling or self.recipe.sampling)
            if on_image:
                on_image(len(images))
        return images

    @torch.inference_mode()
    def _batch(self, jobs: Sequence[tuple[str, int]], sampling: SamplingConfig) -> list[Image.Image]:
        latents = self.latents([prompt for prompt, _ in jobs], [seed for _, seed in jobs], sampling)
        if self.whitening:
            latents = self.whitening.restore(latents)
        pixels = self.autoencoder.decode(latents)
        arrays = (
            ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        )
        return [Image.fromarray(array) for array in arrays]

    @torch.inference_mode()
    def latents(
        self,
        prompts: list[str],
        seeds: list[int],
        sampling: SamplingConfig,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Sample latents, one per prompt and seed; `on_step` sees number, state and data of every step."""
        channels = self.autoencoder.channels
        side = self.recipe.data.image_size // self.autoencoder.downsampling
        shape = (channels, side, side)

        def drawn(purpose: str) -> Callable[[], Tensor]:
            """Noise of which each sample's part comes from its own seed, whatever the batch."""
            generators = [torch_generator(purpose, seed) for seed in seeds]
            return lambda: torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)

        objective, encode = self.recipe.objective, self.text_encoder.encode
        text, without = encode(prompts), encode([sampling.negative_prompt])
        predict = sampling_predictor(
            self.network, objective.path, objective.prediction, text, without, sampling
        )
        return sample(
            predict,
            drawn("noise")(),
            sampling,
            objective.path,
            objective.prediction,
            drawn("step noise"),
            on_step,
        )
