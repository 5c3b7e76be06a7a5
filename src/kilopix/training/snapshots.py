"""Snapshots of averages: what is stored while training goes on, so that other widths can be had afterwards.

In: the tensors of an average, when it was taken, its width. Out: files such as
`RUN/averages/000000012345-0.1.safetensors` with the recipe in the header, thinned by a rule that depends
on the number of images alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kilopix.errors import UserError
from kilopix.training.averages import PowerConfig
from kilopix.training.checkpoint import read_weights, save_tensors
from kilopix.training.posthoc import Profile, coefficients, mismatch

FOLDER = "averages"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def snapshot_path(folder: Path, profile: Profile) -> Path:
    """The file of an average."""
    return folder / f"{profile.images:012d}-{profile.sigma_rel!r}.safetensors"


def stored_snapshots(folder: Path) -> dict[Profile, Path]:
    """The snapshots in a folder, oldest first."""
    found: dict[Profile, Path] = {}
    for path in sorted(folder.glob("[0-9]*-*.safetensors")):
        images, _, width = path.name.removesuffix(".safetensors").partition("-")
        try:
            found[Profile(int(images), float(width))] = path
        except ValueError:
            raise UserError(f"{path}: not the name of a snapshot; move it elsewhere.") from None
    return found


def is_due(config: PowerConfig, before: int, images_seen: int) -> bool:
    """Whether a snapshot is taken after a step that ended at `images_seen`."""
    every = interval(config, images_seen)
    return images_seen // every > before // every


def interval(config: PowerConfig, images_seen: int) -> int:
    """Images between snapshots: doubled whenever there would be more than are kept."""
    every = config.snapshot_every
    while images_seen // every > config.snapshots:
        every *= 2
    return every


def write_snapshot(
    folder: Path, tensors: Mapping[str, Tensor], profile: Profile, config: PowerConfig, header: dict[str, Any]
) -> Path:
    """Store an average, whole or not at all; values too large for the recipe's dtype are an error."""
    dtype, path = _DTYPES[config.snapshot_dtype], snapshot_path(folder, profile)
    stored = {
        name: (value.detach().to("cpu", dtype) if value.is_floating_point() else value.cpu()).contiguous()
        for name, value in tensors.items()
    }
    if any(value.is_floating_point() and not bool(value.isfinite().all()) for value in stored.values()):
        raise UserError(
            f"{path}: the averaged weights do not fit {config.snapshot_dtype}; "
            "set training.average.snapshot_dtype=bfloat16."
        )
    header = {**header, "images_seen": profile.images, "sigma_rel": profile.sigma_rel}
    save_tensors(path, stored, header)
    return path


def thin_snapshots(folder: Path, config: PowerConfig, images_seen: int) -> None:
    """Delete what the rule does not keep at this moment, and what was taken after it.

    Kept is the first snapshot at or after each multiple of the interval, and the one taken now.
    """
    every, last = interval(config, images_seen), -1
    stored = stored_snapshots(folder)
    for moment in sorted({profile.images for profile in stored}):
        kept = moment == images_seen or (moment < images_seen and moment // every > max(last, 0))
        if kept:
            last = moment // every
            continue
        for profile, path in stored.items():
            if profile.images == moment:
                path.unlink()


def reconstruct(
    stored: Mapping[Profile, Path], wanted: Profile
) -> tuple[dict[str, Tensor], dict[str, Any], float]:
    """The average of a width at a moment that is stored: float32 tensors, a header, and the mismatch.

    Only what was stored up to that moment is used; tensors without a fraction are the newest ones.
    """
    usable = [profile for profile in stored if profile.images <= wanted.images]
    weights = coefficients(usable, wanted)
    total: dict[str, Tensor] = {}
    header: dict[str, Any] = {}
    for profile, weight in sorted(zip(usable, weights, strict=True), key=lambda pair: pair[0].images):
        tensors, header = read_weights(stored[profile])
        for name, value in tensors.items():
            if not value.is_floating_point():
                total[name] = value
            elif name in total:
                total[name].add_(value.float(), alpha=float(weight))
            else:
                total[name] = value.float() * float(weight)
    header |= {"sigma_rel": wanted.sigma_rel, "images_seen": wanted.images}
    return total, header, mismatch(usable, wanted, weights)


def nearest_moment(stored: Sequence[Profile], at: int | None) -> int:
    """The moment with snapshots that lies nearest to `at`, or the newest."""
    moments = np.array(sorted({p.images for p in stored}))
    return int(moments[-1] if at is None else moments[np.abs(moments - at).argmin()])
