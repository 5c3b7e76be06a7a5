"""Sheets of pictures while training goes on: the same prompts, the same seeds, the average of the moment.

In: a network, and what it was trained on. Out: `RUN/previews/000000012345.png`. The prompts are encoded once,
before training begins, and their states kept beside the sheets, so that a large text encoder does not stay in
memory.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kilopix.data.pictures import grid, save_png
from kilopix.data.prompts_to_try import prompts_to_try
from kilopix.diffusion.sampling import SamplingConfig
from kilopix.network import Network, sample_latents
from kilopix.pretrained.autoencoder import Autoencoder, load_autoencoder
from kilopix.pretrained.text_encoder import load_text_encoder
from kilopix.previews import as_images
from kilopix.recipe import Recipe
from kilopix.runtime import read_tensors, say, write_tensors
from kilopix.training.watching import PreviewConfig
from kilopix.types import LatentStatistics, TextStates, UserError
from kilopix.validation import evaluating
from kilopix.weights_header import RunRecord

FOLDER = "previews"
BATCH = 16
PROMPTS = 3


@dataclass(frozen=True)
class Preview:
    """All that a sheet needs but the network; `text` holds one state for every prompt, `without` for none."""

    config: PreviewConfig
    recipe: Recipe
    text: TextStates
    without: TextStates
    autoencoder: Autoencoder
    whitening: LatentStatistics | None
    latent_shape: tuple[int, int, int]
    device: str
    precision: torch.dtype = torch.float32

    @property
    def sampling(self) -> SamplingConfig:
        """The recipe's sampling with the preview's steps and guidance."""
        sampling, config = self.recipe.sampling, self.config
        scale = sampling.guidance.scale if config.guidance is None else config.guidance
        guidance = sampling.guidance.model_copy(update={"scale": scale})
        return sampling.model_copy(update={"steps": config.steps, "guidance": guidance})

    def write(self, network: Network, folder: Path, images_seen: int) -> Path:
        """Sample every prompt with every seed, and write the sheet."""
        jobs = [(i, seed) for i in range(len(self.config.prompts)) for seed in range(self.config.seeds)]
        images: list[Image.Image] = []
        with evaluating(network):
            for start in range(0, len(jobs), BATCH):
                images += self._pictures(network, jobs[start : start + BATCH])
        path = folder / f"{images_seen:012d}.png"
        save_png(grid(images, self.config.prompts, self.config.seeds), path)
        return path

    @torch.no_grad()
    def _pictures(self, network: Network, jobs: Sequence[tuple[int, int]]) -> list[Image.Image]:
        rows = torch.tensor([i for i, _ in jobs])
        text = TextStates(self.text.states[rows], self.text.mask[rows]).to(self.device)
        latents = sample_latents(
            network,
            self.recipe.objective,
            self.sampling,
            text,
            self.without.to(self.device),
            [seed for _, seed in jobs],
            self.latent_shape,
            precision=self._precision,
        )
        if self.whitening:
            latents = self.whitening.restore(latents)
        return as_images(self.autoencoder.decode(latents))

    def _precision(self) -> torch.autocast:
        """In what the network computes, as in training."""
        lower = self.precision != torch.float32
        return torch.autocast(torch.device(self.device).type, self.precision, enabled=lower)


def open_preview(
    recipe: Recipe,
    shards_folder: Path,
    run_folder: Path,
    header: dict[str, Any],
    whitening: LatentStatistics | None,
    latent_shape: tuple[int, int, int],
    device: str,
    precision: torch.dtype = torch.float32,
) -> Preview | None:
    """What previews need, or None where the recipe asks for none."""
    config = recipe.preview
    if not config.every:
        return None
    if not config.prompts:
        trained_on = RunRecord.of(header, str(run_folder)).known_of_training()
        config = config.model_copy(update={"prompts": tuple(prompts_to_try(trained_on, PROMPTS))})
        recipe = recipe.model_copy(update={"preview": config})
    texts = _texts(recipe, run_folder / FOLDER, str(header["text_fingerprint"]), device)
    autoencoder = load_autoencoder(recipe.autoencoder, shards_folder, device)
    if autoencoder.fingerprint != header["autoencoder_fingerprint"]:
        raise UserError(
            f"preview: the autoencoder {autoencoder.fingerprint} is here, but the shards were made with "
            f"{header['autoencoder_fingerprint']}; set preview.every=0 to train without previews."
        )
    return Preview(config, recipe, *texts, autoencoder, whitening, latent_shape, device, precision)


def _texts(recipe: Recipe, folder: Path, fingerprint: str, device: str) -> tuple[TextStates, TextStates]:
    """States of the prompts and of the negative prompt, from the file of an earlier call if it fits."""
    path = folder / "prompts.safetensors"
    texts = [*recipe.preview.prompts, recipe.sampling.negative_prompt]
    wanted = {"texts": json.dumps(texts), "text_fingerprint": fingerprint}
    if path.exists():
        try:
            kept, said = read_tensors(path)
            if said == wanted and kept.keys() == {"states", "mask"}:
                return _split(TextStates(kept["states"], kept["mask"]))
        except UserError as error:
            say(f"{error} It is made anew.")
    encoder = load_text_encoder(recipe.text, device)
    if encoder.fingerprint != fingerprint:
        raise UserError(
            f"preview: the text encoder {encoder.fingerprint} is here, but the shards were made with "
            f"{fingerprint}; set preview.every=0 to train without previews."
        )
    states = encoder.encode(texts)
    states = TextStates(states.states.float().cpu().contiguous(), states.mask.cpu().contiguous())
    write_tensors(path, {"states": states.states, "mask": states.mask}, wanted)
    return _split(states)


def _split(states: TextStates) -> tuple[TextStates, TextStates]:
    """The prompts, and the last one, without the padding that none of them needs."""

    def cut(rows: slice) -> TextStates:
        length = int(states.mask[rows].sum(1).max())
        return TextStates(states.states[rows, :length], states.mask[rows, :length])

    return cut(slice(-1)), cut(slice(-1, None))
