"""Images in a NumPy array, as sample batches and reference batches of published evaluations hold them.

In: an `.npz` file with the key `arr_0`, N x H x W x 3 of 8 bits. Out: an array on disk that is mapped into
memory, so that any number of processes share one copy, and its images by name. Nothing is ever unpickled.
"""

import os
import re
import shutil
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from kilopix.data.sources import BrokenImage
from kilopix.data.sources.opening import MIN_SIDE
from kilopix.errors import UserError
from kilopix.runtime import atomic_path, sha256_of_file

IMAGES = "arr_0"
_NAME = re.compile(r"(?P<file>arr_0\.npy)#(?P<row>\d{6,})")


def holds_images(npz: Path) -> bool:
    """Whether an `.npz` file has the key of images."""
    try:
        with zipfile.ZipFile(npz) as archive:
            return f"{IMAGES}.npy" in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def unpack_images(npz: Path, cache: Path) -> tuple[Path, tuple[str, ...]] | None:
    """The folder below `cache` that holds the images of an `.npz` file, and their names; None without any.

    The folder is named by the file's hash, so that it is written once.
    """
    try:
        with zipfile.ZipFile(npz) as archive:
            if f"{IMAGES}.npy" not in archive.namelist():
                return None
            folder = cache / "arrays" / sha256_of_file(npz)[:16]
            file = folder / f"{IMAGES}.npy"
            if not file.exists():
                with (
                    atomic_path(file) as temporary,
                    archive.open(f"{IMAGES}.npy") as packed,
                    open(temporary, "wb") as out,
                ):
                    shutil.copyfileobj(packed, out, 1 << 20)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        raise UserError(f"{npz}: not an .npz file that can be read ({error}).") from None
    except OSError as error:
        raise UserError(f"{npz}: its images cannot be read or unpacked into {cache} ({error}).") from None
    try:
        array = _mapped(str(file), os.stat(file).st_mtime_ns)
    except ValueError as error:
        file.unlink()
        raise UserError(f"{npz}: the key {IMAGES!r} cannot be read ({error}).") from None
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or not len(array):
        shape = " x ".join(map(str, array.shape)) or "one number"
        raise UserError(
            f"{npz}: the key {IMAGES!r} holds {shape} of {array.dtype}; images are N x height x width x 3 "
            "of uint8."
        )
    if min(array.shape[1:3]) < MIN_SIDE:
        raise UserError(f"{npz}: the images of {IMAGES!r} are of {array.shape[2]} x {array.shape[1]} pixels.")
    return folder, tuple(f"{IMAGES}.npy#{row:06d}" for row in range(len(array)))


def array_file(name: str) -> str | None:
    """The file of an image that `unpack_images` named; None for any other name."""
    match = _NAME.fullmatch(name)
    return match["file"] if match else None


def array_image(root: Path, name: str) -> np.ndarray | None:
    """The pixels of an image that `unpack_images` named, height x width x 3; None for any other name."""
    match = _NAME.fullmatch(name)
    if match is None or not (file := root / match["file"]).is_file():
        return None
    array = _mapped(str(file), os.stat(file).st_mtime_ns)
    if int(match["row"]) >= len(array):
        raise BrokenImage(f"has no image {match['row']}")
    return np.array(array[int(match["row"])])


@lru_cache(maxsize=4)
def _mapped(file: str, _stamp: int) -> np.ndarray:
    return np.load(file, mmap_mode="r", allow_pickle=False)
