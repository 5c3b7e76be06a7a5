"""What is looked at while a run goes on; none of it changes what is learnt.

In: recipe sections. Out: their configs. `every` counts images, and 0 is never.
"""

from typing import Literal

from pydantic import Field

from kilopix.config import Config

TrackerName = Literal["tensorboard", "wandb"]


class ValidationConfig(Config):
    """Loss on held-out samples, and on as many training samples, with fixed noise at fixed times.

    A round costs 4 x samples x levels forward passes: of the weights and their average, on both sets.
    """

    every: int = Field(default=50_000, ge=1)
    samples: int = Field(default=256, ge=1, le=10_000_000)
    levels: int = Field(default=8, ge=1, le=1000, description="times, spread evenly between data and noise")
    batch_size: int = Field(default=64, ge=1, le=100_000)


class PreviewConfig(Config):
    """A sheet of pictures of the same prompts and seeds, made with the average."""

    every: int = Field(default=0, ge=0)
    prompts: tuple[str, ...] = Field(default=(), description="some of what it is trained on, if none")
    seeds: int = Field(default=2, ge=1, le=64, description="pictures of every prompt")
    steps: int = Field(default=20, ge=1, le=1000)
    guidance: float | None = Field(default=None, ge=0, description="the recipe's if not given")


class ScoresConfig(Config):
    """Scores of pictures made with the average against held-out ones, as `kilopix fidelity` gives them."""

    every: int = Field(default=0, ge=0)
    images: int = Field(default=1_000, ge=16, le=10_000_000)
    only: tuple[str, ...] = Field(default=(), description="the scores to make; all that can be, if none")
    settings: tuple[str, ...] = Field(default=(), description="section.key=value, as kilopix fidelity takes")


def is_due(every: int, before: int, images_seen: int) -> bool:
    """Whether a multiple of `every` lies after `before` and up to `images_seen`; never where it is 0."""
    return every > 0 and images_seen // every > before // every
