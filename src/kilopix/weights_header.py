"""What the header of a weights file, and the record of a run, say: checked whole, before any of it is used.

In: the JSON values beside the tensors, or those of `recipe.json`. Out: frozen models of known types within
bounds, or one `UserError` that names the file and the key.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from kilopix.config import Config, parse
from kilopix.data.shards import MOST_CHANNELS, WIDEST_TEXT
from kilopix.data.trained_on import TrainedOn
from kilopix.models.dit import DiTConfig
from kilopix.pretrained.patch_codec import PatchCodecConfig
from kilopix.recipe import Recipe
from kilopix.types import LatentStatistics, UserError


class RunRecord(Config):
    """What a run keeps of itself in `recipe.json`; further keys are let be."""

    model_config = ConfigDict(extra="ignore")

    recipe: Recipe
    shards: str = ""
    trained_on: TrainedOn | None = None

    @classmethod
    def of(cls, values: dict[str, Any], origin: str):
        """The checked values; `origin` is what an error names as their source."""
        return parse(cls, values, origin)

    def known_of_training(self) -> TrainedOn:
        """What the weights were trained on; where an earlier version did not say, what the recipe tells."""
        return self.trained_on or TrainedOn.by_recipe(self.recipe.data.captioner, self.recipe.world.classes)


class WeightsHeader(RunRecord):
    """What weights of kilopix carry in their header."""

    latent_channels: int = Field(ge=1, le=MOST_CHANNELS)
    text_width: int = Field(ge=1, le=WIDEST_TEXT)
    images_seen: int = Field(ge=0)
    text_fingerprint: str
    autoencoder_fingerprint: str
    latent_whitening: LatentStatistics | None = None
    codec: PatchCodecConfig | None = None
    started_from: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _whitening_fits(self):
        if self.latent_whitening:
            check_statistics(self.latent_whitening, self.latent_channels)
        return self


def check_statistics(statistics: LatentStatistics, channels: int) -> None:
    """Refuse statistics that are not one finite mean and one deviation above 0 for every channel."""
    mean, std = statistics.mean, statistics.std
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"the latents' statistics are of {len(mean)} and {len(std)}, not {channels} channels"
        )
    if not all(map(isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError("the latents' statistics must be finite, and their deviations above 0")


def check_depth(recipe: Recipe, tensors: Mapping[str, Tensor], origin: object) -> None:
    """Refuse weights with fewer tensors than their recipe has layers, before a network is built of it."""
    model = recipe.model
    own = model.depth if isinstance(model, DiTConfig) else model.blocks * (1 + model.layers)
    if own + model.text_layers > len(tensors):
        raise UserError(
            f"{origin}: its weights do not fit the recipe in its header ({own + model.text_layers} layers "
            f"need more than its {len(tensors)} tensors)."
        )
