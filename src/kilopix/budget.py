"""What a run costs: parameters, FLOPs, bytes on disk and on a device, all before anything is made.

In: a recipe, and what its encoders give. Out: numbers. None is measured; memory is counted as `memory` says.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from kilopix.hardware import Device, Precision
from kilopix.memory import BATCHES, CONTEXT, Memory, activations
from kilopix.models.dit import DiTConfig
from kilopix.network import Network, build_network, flops_per_image, training_flops_per_image
from kilopix.pretrained.autoencoder import DiffusersAutoencoderConfig, SDAutoencoderConfig
from kilopix.pretrained.patch_codec import PatchCodecConfig
from kilopix.pretrained.text_encoder import HubTextConfig, MiniLMConfig
from kilopix.recipe import Recipe
from kilopix.runtime import read_json
from kilopix.training.optim import build_optimizer
from kilopix.types import UserError

IMAGENET = 1_281_167
TOKENS = {"aio": 8, "structured": 64, "given": 115, "model": 115, "server": 115}
"""Tokens of a caption by who wrote it: LLaVA's are 78 to 94 words, and T5 has 1.3 tokens a word."""
_TEXT_WIDTHS = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
_MINILM_WIDTH, _SD_CHANNELS = 384, 4
_TEXT_BYTES = {"float16": 2, "bfloat16": 2, "int8": 1}
_ROW = 700
"""Bytes of a row of shards beside latents and states: caption, path, class, offsets."""


@dataclass(frozen=True)
class Encoded:
    """What the encoders make of a picture and its caption."""

    channels: int
    text_width: int
    tokens: int

    @classmethod
    def of(cls, recipe: Recipe, tokens: int | None = None) -> "Encoded":
        """Known of the recipe's encoders by their names, or from their folders."""
        count = min(tokens or TOKENS[recipe.data.captioner], recipe.text.max_tokens)
        return cls(_channels(recipe), _text_width(recipe), count)


def _channels(recipe: Recipe) -> int:
    config = recipe.autoencoder
    if isinstance(config, SDAutoencoderConfig):
        return _SD_CHANNELS
    if isinstance(config, DiffusersAutoencoderConfig):
        return _from_folder(config.name, config.subfolder, ("latent_channels",), "autoencoder")
    return config.channels


def _text_width(recipe: Recipe) -> int:
    config = recipe.text
    if isinstance(config, MiniLMConfig):
        return _MINILM_WIDTH
    size = config.name.rpartition("-")[2]
    known = not isinstance(config, HubTextConfig) and config.name.startswith("google/")
    if known and size in _TEXT_WIDTHS:
        return _TEXT_WIDTHS[size]
    return _from_folder(config.name, "", ("d_model", "hidden_size"), "text")


def _from_folder(name: str, subfolder: str, keys: tuple[str, ...], section: str) -> int:
    record = Path(name).expanduser() / subfolder / "config.json"
    values = read_json(record) if record.is_file() else {}
    for key in keys:
        if isinstance(values.get(key), int):
            return values[key]
    raise UserError(
        f"{section}.name={name}: what it gives is not known here; plan with --shards FOLDER, which say it, "
        f"or set {section}.name to the folder that holds it."
    )


@dataclass(frozen=True)
class Budget:
    """The costs of a recipe's run."""

    recipe: Recipe
    encoded: Encoded
    pictures: int = IMAGENET
    precision: Precision = "bfloat16"
    on_gpu: bool = True

    @cached_property
    def network(self) -> Network:
        """The network, without values."""
        with torch.device("meta"):
            return build_network(self.recipe, self.encoded.channels, self.encoded.text_width)

    @cached_property
    def parameters(self) -> int:
        """Weights of the network."""
        return sum(p.numel() for p in self.network.parameters())

    @cached_property
    def flops_per_image(self) -> float:
        """FLOPs of one picture trained, routed tokens left out."""
        given = self.encoded.channels, self.encoded.text_width, self.encoded.tokens
        return training_flops_per_image(self.recipe, *given) - 3 * self._routed()

    def _routed(self) -> float:
        """FLOPs of a forward pass that token routing saves."""
        model, data = self.recipe.model, self.recipe.data
        if not isinstance(model, DiTConfig) or not model.routing.share:
            return 0.0
        passed = max(0, model.depth - model.routing.first - model.routing.after)
        if (self.recipe.latent_side // model.patch) ** 2 < model.routing.min_tokens or not passed:
            return 0.0

        def blocks(tokens: int) -> float:
            """FLOPs of the blocks that are passed by, for a square number of tokens."""
            pixels = math.isqrt(tokens) * model.patch * self.recipe.downsampling
            sized = data.model_copy(update={"image_size": pixels})
            given = self.encoded.channels, self.encoded.text_width, self.encoded.tokens
            deep, flat = (
                flops_per_image(self.recipe.model_copy(update={"data": sized, "model": one}), *given)
                for one in (model.model_copy(update={"depth": d}) for d in (passed + 1, 1))
            )
            return deep - flat

        # A polynomial of second degree in the tokens, of which three values tell the rest.
        tokens = (self.recipe.latent_side // model.patch) ** 2
        kept = round(tokens * (1 - model.routing.share))
        at_1, at_4, at_9 = (blocks(count) for count in (1, 4, 9))
        curve = ((at_9 - at_4) / 5 - (at_4 - at_1) / 3) / 8
        slope = (at_4 - at_1) / 3 - 5 * curve
        return curve * (tokens**2 - kept**2) + slope * (tokens - kept)

    @property
    def flops(self) -> float:
        """FLOPs of the whole run."""
        return self.flops_per_image * self.recipe.training.images

    @property
    def rows(self) -> int:
        """Rows of the shards: every picture, and its augmented version if the recipe uses any."""
        return self.pictures * (2 if self.recipe.objective.augment_probability else 1)

    def row_bytes(self, augmented: bool = False) -> float:
        """Bytes of a row: latents (a patch codec's have no deviation) and the states of the captions."""
        data, most = self.recipe.data, self.recipe.text.max_tokens
        token = self.encoded.text_width * _TEXT_BYTES[data.text_storage]
        token += 4 if data.text_storage == "int8" else 0
        tokens = self.encoded.tokens
        if augmented:  # CutMix describes both pictures, Crop says which part it is
            tokens = min(most, 2 * tokens if data.augment.kind == "cutmix" else tokens + TOKENS["aio"])
        if not augmented and data.captioner != "aio":
            tokens += TOKENS["aio"]  # the short caption
        moments = 1 if isinstance(self.recipe.autoencoder, PatchCodecConfig) else 2
        latents = moments * 2 * self.encoded.channels * self.recipe.latent_side**2
        return float(latents + tokens * token + _ROW)

    @property
    def shard_bytes(self) -> float:
        """Bytes of all shards."""
        augmented = self.rows - self.pictures
        return self.pictures * self.row_bytes() + augmented * self.row_bytes(augmented=True)

    @property
    def checkpoint_bytes(self) -> float:
        """Bytes of one checkpoint: weights, averages, the optimizer's state."""
        return sum(self._states)

    @property
    def averages(self) -> int:
        """Averaged copies that are kept."""
        return len(getattr(self.recipe.training.average, "sigma_rel", (0,)))

    @cached_property
    def _states(self) -> tuple[float, float, float]:
        """Bytes of the weights, of the optimizer's state, of the averages."""
        one = 4.0 * self.parameters
        groups = build_optimizer(self.recipe.optimizer, self.network).param_groups
        kept = sum(p.numel() * (1 if group.get("muon") else 2) for group in groups for p in group["params"])
        return one, 4.0 * kept, self.averages * one

    @property
    def compiled(self) -> bool:
        """Whether training compiles its blocks there."""
        wanted = self.recipe.training.compile
        return self.on_gpu if wanted == "auto" else wanted

    @cached_property
    def memory(self) -> Memory:
        """Bytes on a device, of which the longest texts are taken: by those a run finds its micro-batch."""
        weights, optimizer, averages = self._states
        precision = getattr(torch, self.precision)
        given = self.recipe, self.encoded.channels, self.encoded.text_width, precision
        casts, per_image, held = activations(*given, self.on_gpu, self.compiled)  # pyright: ignore[reportArgumentType]
        context = CONTEXT if self.on_gpu else 0.0
        return Memory(weights, weights, optimizer, averages, casts, per_image, BATCHES * held, context)

    def device_hours(self, device: Device, utilisation: float) -> float:
        """Hours of the run on one device that does a share of its peak."""
        peak = device.peak(self.precision)
        if peak is None:
            raise UserError(f"device {device.name}: has no {self.precision}; plan with --precision float32.")
        return self.flops / (utilisation * peak) / 3600
