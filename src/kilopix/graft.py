"""From the weights of one run to those with which another begins: larger pictures, more latents, other data.

In: weights with what they were made by, and the recipe of the new run. Out: weights that the new network
loads, and lines that say what was changed. A difference that cannot be bridged is a `UserError` that names
its key. What is done, and the loss before and after: docs/recipes.md.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from kilopix.config import Config
from kilopix.diffusion.objective import ObjectiveConfig
from kilopix.diffusion.paths import GammaPath, PathConfig
from kilopix.model_files import CODEC_PREFIX, SHIPPED_MODEL, check_fit, find_weights, read_released
from kilopix.models.published import load_published
from kilopix.models.rin import RIN, RINConfig
from kilopix.network import empty_network
from kilopix.recipe import ModelConfig, Recipe
from kilopix.runtime import read_json, say, sha256_of_file, torch_generator
from kilopix.training.checkpoint import read_weights
from kilopix.types import UserError
from kilopix.weights_header import WeightsHeader, check_depth

_FREE = {"dit": ("routing",), "rin": ("latents",)}
"""Keys of a network's config that may change: routing has no weights, latents are grown."""
_APART = 0.1
"""Deviation of the noise that moves copies of latents apart, as a share of the latents' own."""
_FINGERPRINTS = ("text_fingerprint", "autoencoder_fingerprint")


@dataclass(frozen=True)
class Shape:
    """What decides the shapes of a network's weights."""

    model: ModelConfig
    latent_side: int
    channels: int
    text_width: int

    @classmethod
    def of(cls, recipe: Recipe, channels: int, text_width: int) -> "Shape":
        """The shape of a recipe's network over encoders of these sizes."""
        return cls(recipe.model, recipe.latent_side, channels, text_width)

    @property
    def tokens_per_side(self) -> int:
        """Patch tokens along one side of a picture."""
        return self.latent_side // self.model.patch


@dataclass(frozen=True)
class Source:
    """Weights to begin from, what they were made by, and where they come from."""

    path: Path
    weights: dict[str, Tensor]
    shape: Shape
    objective: ObjectiveConfig
    images_seen: int
    header: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """What the new run keeps of its beginning."""
        return {
            "path": str(self.path),
            "sha256": sha256_of_file(self.path),
            "images_seen": self.images_seen,
            "started_from": self.header.get("started_from"),
        }


def beginning(
    recipe: Recipe, header: dict[str, Any], record: Path | None, begun: bool, tell: bool = True
) -> dict[str, Tensor] | None:
    """The weights with which a run begins that is to start from another; None if it has begun, or from none.

    `header` gets an entry `started_from`; if the run's `record` (its recipe.json, if it has begun) has
    one already, the weights must be the same still.
    """
    if not recipe.training.start_from:
        return None
    before = read_json(record).get("started_from") if record else None
    if begun:
        header["started_from"] = before
        return None
    source = read_source(find_weights(_known(recipe.training.start_from)))
    header["started_from"] = source.record()
    if record and before and before["sha256"] != header["started_from"]["sha256"]:
        raise UserError(
            f"{source.path}: has changed since {record.parent} was begun from it; put the old weights back, "
            "or choose another folder for the new run."
        )
    grafted = start_from(source, recipe, header)
    if tell:
        say(f"starting from {source.path}" + "".join(f"; {change}" for change in grafted.changes) + ".")
    return grafted.weights


def _known(name: str) -> Path | str:
    """The name of the installed model, or a path that exists."""
    if name == SHIPPED_MODEL:
        return name
    if (path := Path(name).expanduser()).exists():
        return path
    raise UserError(
        f"training.start_from={name}: not there. The recipe begins from another run: train that first, give "
        f"its folder by --start-from (or `{SHIPPED_MODEL}`, the installed model), or begin from nothing by "
        "--start-from ''."
    )


def read_source(weights: Path) -> Source:
    """Read a weights file of kilopix, or a released CAD-I with its `config.json` beside it."""
    tensors, header = read_weights(weights)
    if "recipe" in header:
        # Weights may carry their codec; the shards of the new run have their own, which is held against it.
        tensors = {name: value for name, value in tensors.items() if not name.startswith(CODEC_PREFIX)}
        said = WeightsHeader.of(header, f"{weights}: header")
        check_depth(said.recipe, tensors, weights)
        check_fit(empty_network(said.recipe, said.latent_channels, said.text_width), tensors, weights)
        shape = Shape.of(said.recipe, said.latent_channels, said.text_width)
        return Source(weights, tensors, shape, said.recipe.objective, said.images_seen, header)
    recipe, channels, text_width = read_released(weights, tensors)
    check_depth(recipe, tensors, weights)
    network = empty_network(recipe, channels, text_width)
    assert isinstance(network, RIN)
    load_published(network, tensors, assign=True)  # which refuses what is not whole
    shape = Shape.of(recipe, channels, text_width)
    return Source(weights, network.state_dict(), shape, recipe.objective, 0, {})


@dataclass(frozen=True)
class Grafted:
    """Weights for the new network, and what was changed, in words."""

    weights: dict[str, Tensor]
    changes: list[str]


def start_from(source: Source, recipe: Recipe, header: Mapping[str, Any]) -> Grafted:
    """The weights with which a recipe's run begins; `header` says what encoders its shards were made with.

    Raises `UserError` if the source's network, objective or encoders are others than the recipe's.
    """
    new = Shape.of(recipe, header["latent_channels"], header["text_width"])
    for key in _FINGERPRINTS:
        made_with, now = source.header.get(key), header.get(key)
        if made_with and now and made_with != now:
            what = key.removesuffix("_fingerprint").replace("_", " ")
            raise _differs(source.path, what, made_with, now, "encode with the source's.")
    for key in ("path", "prediction"):
        before, after = getattr(source.objective, key), getattr(recipe.objective, key)
        if before != after:
            before, after = (v.kind if isinstance(v, Config) else v for v in (before, after))
            raise _differs(source.path, f"objective.{key}", before, after, f"set objective.{key} to it.")
    grafted = graft(source.weights, source.shape, new, recipe.seed, source.path)
    changes = list(grafted.changes)
    changes += _shift_note(source, recipe, new)
    changes += _whitening_note(source, header)
    return Grafted(grafted.weights, changes)


def graft(
    weights: Mapping[str, Tensor], old: Shape, new: Shape, seed: int = 0, origin: Path | str = "the source"
) -> Grafted:
    """Weights of the old shape as weights of the new one.

    DiT's positions are fractions of the picture, so its weights stay as they are. RIN's learned positions
    are interpolated. Latents grow by whole multiples: each is repeated, which changes no attention's
    result, and the copies are moved apart by a little noise, without which they would never differ.
    """
    _refuse_other_networks(old, new, origin)
    out = {name: value.clone() for name, value in weights.items()}
    changes: list[str] = []
    before, after = old.tokens_per_side, new.tokens_per_side
    if before != after:
        changes.append(f"{before} x {before} patch tokens became {after} x {after}")
    if isinstance(new.model, RINConfig) and isinstance(old.model, RINConfig):
        if before != after:
            out["data_pos_embedding"] = resized_positions(out["data_pos_embedding"], before, after)
        if (count := new.model.latents) != old.model.latents:
            out["latents"] = grown_latents(out["latents"], count, seed)
            changes.append(f"{old.model.latents} latents became {count}")
    return Grafted(out, changes)


def _refuse_other_networks(old: Shape, new: Shape, origin: Path | str) -> None:
    if old.model.kind != new.model.kind:
        raise _differs(origin, "model.kind", old.model.kind, new.model.kind, "choose a recipe of its kind.")
    ours, theirs = new.model.model_dump(), old.model.model_dump()
    for key in ours:
        if key not in _FREE[new.model.kind] and ours[key] != theirs[key]:
            hint = f"set model.{key}={theirs[key]}."
            raise _differs(origin, f"model.{key}", theirs[key], ours[key], hint)
    for what, a, b in (
        ("the autoencoder's channels", old.channels, new.channels),
        ("the text encoder's width", old.text_width, new.text_width),
    ):
        if a != b:
            raise _differs(origin, what, a, b, "encode with the source's encoders.")
    if isinstance(old.model, RINConfig) and isinstance(new.model, RINConfig):
        had, wanted = old.model.latents, new.model.latents
        if wanted % had:
            raise _differs(origin, "model.latents", had, wanted, f"latents grow by multiples of {had}.")


def _differs(origin: Path | str, what: str, there: object, here: object, hint: str) -> UserError:
    return UserError(
        f"{origin}: cannot be started from: {what} is {there!r} there and {here!r} in the new run; {hint}"
    )


def resized_positions(positions: Tensor, before: int, after: int) -> Tensor:
    """Learned positions of a square grid, `tokens width`, for another grid over the same picture."""
    # The cubic of torch's antialiased mode keeps straight lines straight; that of its plain mode does not.
    grid = rearrange(positions.float(), "(h w) d -> 1 d h w", h=before)
    out = F.interpolate(grid, size=(after, after), mode="bicubic", antialias=True)
    return rearrange(out, "1 d h w -> (h w) d").to(positions.dtype)


def grown_latents(latents: Tensor, count: int, seed: int) -> Tensor:
    """Each latent repeated until there are `count`, the copies moved apart by a little noise."""
    times = count // len(latents)
    out = latents.repeat(times, 1)
    noise = torch.randn(out.shape, generator=torch_generator("latents", seed)).to(out)
    noise[: len(latents)] = 0
    return out + _APART * latents.std() * noise


def resolution_shift(path: PathConfig, tokens_before: int, tokens_after: int) -> float:
    """By how much `time_shift` grows with the number of tokens, so that pictures are as hidden as before.

    sigma / alpha must grow with the picture's side (Esser et al. 2024, eq. 23). On the straight path it is
    t / (1 - t), which the shift multiplies; on CAD-I's linear gamma path it is the root of that.
    """
    side = math.sqrt(tokens_after / tokens_before)
    return side**2 if isinstance(path, GammaPath) else side


def _shift_note(source: Source, recipe: Recipe, new: Shape) -> list[str]:
    before, after = source.shape.tokens_per_side**2, new.tokens_per_side**2
    if before == after:
        return []
    shift = resolution_shift(recipe.objective.path, before, after)
    wanted = source.objective.time_shift * shift
    line = f"objective.time_shift was {source.objective.time_shift:g} and is {recipe.objective.time_shift:g}"
    if not math.isclose(wanted, recipe.objective.time_shift, rel_tol=0.01):
        line += f", where {wanted:g} would hide as much of the larger picture"
    return [line]


def _whitening_note(source: Source, header: Mapping[str, Any]) -> list[str]:
    """What latents are whitened with belongs to the data: it must be there in both runs, or in none."""
    before, now = source.header.get("latent_whitening"), header.get("latent_whitening")
    if before == now:
        return []
    if not before or not now:
        there, here = bool(before), bool(now)
        raise _differs(source.path, "autoencoder.whiten", there, here, "set autoencoder.whiten to it.")
    ratios = [a / b for a, b in zip(now["std"], before["std"], strict=True)]
    return [
        "latents are whitened by the new pictures, whose deviations are "
        f"{min(ratios):.2f} to {max(ratios):.2f} of the old ones"
    ]
