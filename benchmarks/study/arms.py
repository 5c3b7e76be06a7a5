"""What the study compares: arms, seeds and claims, read from `study.toml`.

In: a TOML file. Out: a frozen `Study`; an unknown key, arm or score is an error that names it.
"""

from pathlib import Path
from typing import Literal

from methods import Method
from pydantic import Field, model_validator

from kilopix.config import Config, parse, parse_overrides, read_toml
from kilopix.recipe import Recipe, load_recipe


class Arm(Config):
    """One way of training: captions, augmented pictures, and changes of the recipe.

    `network` replaces the study's; `method` is one of `methods.py`; arms with one `encoding` share shards.
    """

    title: str
    recipe: str = "mini"
    captions: Literal["aio", "structured"] = "structured"
    augment: Literal["none", "cutmix", "crop"] = "none"
    network: tuple[str, ...] | None = None
    overrides: tuple[str, ...] = ()
    method: Method = "usual"
    encoding: str = ""


class Claim(Config):
    """That the arm `better` scores higher than the arm `base`, or lower where `lower` is set.

    `score` is a score's name on the card, `placed` and one on that of prompts that say where, `chooses` and a
    task of `choose.py`, or `seam`.
    """

    text: str
    better: str
    base: str
    score: str
    lower: bool = False


class Study(Config):
    """Arms, trained with each of the seeds on the same pictures, and what is claimed of them.

    `overrides` hold for all arms, unless an arm says otherwise; `changes`, of the command line, come last.
    `curves` are evaluation settings for the checkpoints, which are scored with fewer pictures. `styles` are
    those of the prompts that a training is scored with. In a study of trials, `against` is the arm of
    `study.toml` that each of them changes.
    """

    seeds: tuple[int, ...] = Field(min_length=1)
    overrides: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    styles: tuple[Literal["plain", "placed"], ...] = ("plain", "placed")
    changes: tuple[str, ...] = ()
    arms: dict[str, Arm] = Field(min_length=1)
    claims: tuple[Claim, ...] = ()
    against: str = ""

    @model_validator(mode="after")
    def _claims_name_arms(self):
        for claim in self.claims:
            for arm in (claim.better, claim.base):
                if arm not in self.arms:
                    raise ValueError(
                        f"claims: {claim.text!r} names the arm {arm!r}, which is not among the arms"
                    )
        return self

    def recipe(self, arm: Arm, seed: int) -> Recipe:
        """The recipe of one training."""
        network = self.network if arm.network is None else arm.network
        return load_recipe(
            arm.recipe, [*network, *self.overrides, *arm.overrides, *self.changes, f"seed={seed}"]
        )


def load_study(path: Path, changes: tuple[str, ...] = ()) -> Study:
    """Read and check a study; `changes` are made to every arm."""
    values = read_toml(path)
    parse_overrides(changes)
    values["changes"] = changes
    study = parse(Study, values, str(path))
    for arm in study.arms.values():
        for seed in study.seeds:
            study.recipe(arm, seed)
    return study
