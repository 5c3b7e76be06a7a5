"""Statistics of real images in place of the images: mean and covariance of Inception's features.

In: an `.npz` file with `mu` and `sigma`, as the reference batches of ADM, which DiT is scored with too, EDM's
and pytorch-fid's files hold them. Out: `ReferenceStatistics`. They say nothing of single images, so that only
FID can be computed from them. Nothing is ever unpickled.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kilopix.evaluation.fidelity import Moments
from kilopix.faults import first_line
from kilopix.runtime import sha256_of_file
from kilopix.types import UserError

WIDTH = 2048
"""Features of FID's Inception-v3."""
MEAN, COVARIANCE = "mu", "sigma"
SPATIAL = ("mu_s", "sigma_s")
ORIGIN = (
    "mu and sigma of the file, taken to be of FID's Inception-v3 of 2015 with TensorFlow 1's resizing; "
    "comparable only if they are"
)
"""What a card says of an FID that was computed from statistics."""
_ASYMMETRY = 1e-3  # of the largest entry; float32 leaves 1e-7
_NEGATIVE = 1e-4


@dataclass(frozen=True)
class ReferenceStatistics:
    """Mean and covariance of Inception's features, their file's hash, and whether it has spatial ones."""

    moments: Moments
    sha256: str
    spatial: bool

    def on(self, device: str) -> Moments:
        """The moments on a device that has float64, else on the CPU."""
        if device == "mps":
            return self.moments
        made = self.moments
        return Moments(made.count, made.mean.to(device), made.scatter.to(device))


def read_statistics(path: Path) -> ReferenceStatistics | None:
    """The statistics of an `.npz` file; None if it holds images alone.

    A file with neither, or with statistics that cannot be Inception's, is a `UserError` that names the key.
    """
    try:
        with open(path, "rb") as file:  # NumPy leaves it open where it is damaged
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path}: holds a bare array, not an .npz file with keys.")
            keys = list(archive.keys())
            if MEAN not in keys and COVARIANCE not in keys:
                if "arr_0" in keys:
                    return None
                listed = ", ".join(keys[:8]) or "none"
                raise UserError(
                    f"{path}: has neither the keys {MEAN!r} and {COVARIANCE!r}, which are statistics, nor "
                    f"'arr_0', which is images; its keys are: {listed}."
                )
            mean, covariance = (_array(archive, keys, key, path) for key in (MEAN, COVARIANCE))
    except UserError:  # which is a ValueError, too
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an .npz file that can be read ({first_line(error)}).") from None
    _check(mean, covariance, path)
    # As many images as features of full rank need; the sample covariance is then as in the file.
    count = WIDTH + 1
    scatter = (covariance + covariance.T) / 2 * (count - 1)
    moments = Moments(count, torch.from_numpy(mean), torch.from_numpy(scatter))
    return ReferenceStatistics(moments, sha256_of_file(path), all(key in keys for key in SPATIAL))


def _array(archive: np.lib.npyio.NpzFile, keys: list[str], key: str, path: Path) -> np.ndarray:
    if key not in keys:
        raise UserError(f"{path}: the key {key!r} is missing; statistics are {MEAN!r} and {COVARIANCE!r}.")
    try:
        array = archive[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: the key {key!r} cannot be read ({first_line(error)}).") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise UserError(f"{path}: the key {key!r} does not hold numbers.")
    return array.astype(np.float64)


def _check(mean: np.ndarray, covariance: np.ndarray, path: Path) -> None:
    for key, array, shape in ((MEAN, mean, (WIDTH,)), (COVARIANCE, covariance, (WIDTH, WIDTH))):
        if array.shape != shape:
            found, wanted = (" x ".join(map(str, one)) or "a single number" for one in (array.shape, shape))
            raise UserError(
                f"{path}: {key!r} is {found}, and for the {WIDTH:,} features of FID's Inception-v3 it is "
                f"{wanted}; statistics of other networks do not compare."
            )
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {key!r} holds numbers that are not finite.")
    largest = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > _ASYMMETRY * largest:
        raise UserError(f"{path}: {COVARIANCE!r} is not symmetric, so it is no covariance.")
    if np.linalg.eigvalsh(covariance)[0] < -_NEGATIVE * largest:
        raise UserError(f"{path}: {COVARIANCE!r} has negative variances, so it is no covariance.")
