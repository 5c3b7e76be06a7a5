"""Sets of pictures to be scored: which files they are, and the prompt of each.

In: a folder that `kilopix sample` wrote, one laid out as GenEval's, any other folder of pictures, a manifest,
Parquet or tar files, or an array of images. Out: a `PictureSet` in a fixed order, and the pixels of some of
it. A picture that is missing, listed twice, unreadable or of another size is a `UserError` that names it.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from kilopix.data.image_arrays import IMAGES, array_file, array_image, unpack_images
from kilopix.data.manifest import is_manifest, read_manifest
from kilopix.data.sources import BrokenImage, list_source, open_picture, split_reference, square
from kilopix.data.sources.items import IMAGE_ENDINGS
from kilopix.prompt_files import file_name, is_geneval_layout, prompts_by_file, read_geneval_layout
from kilopix.runtime import cache_folder, read_json, say, sha256_of_text
from kilopix.types import UserError

SAMPLES, PROMPTS, ARRAYS = "samples.json", "prompts.jsonl", ".npz"
_CONTAINERS = {".parquet", ".tar"}
_READERS = 4
_SIDE_FILES = {".json", ".jsonl", ".txt", ".md", ".csv", ".parquet", ".npz"}


@dataclass(frozen=True)
class PictureSet:
    """Pictures by their paths below `root`, with the prompt of each where prompts are known."""

    root: Path
    files: tuple[str, ...]
    prompts: tuple[str, ...] | None = None

    @property
    def prompts_sha256(self) -> str | None:
        """Hash of all prompts in the pictures' order."""
        return None if self.prompts is None else sha256_of_text("\n".join(self.prompts))


def read_picture_set(path: Path, prompts: Path | None = None, cache: Path | None = None) -> PictureSet:
    """Find the pictures of a folder, manifest or file; `prompts`, JSON lines, comes before theirs.

    Images of an `.npz` file are unpacked below `cache`.
    """
    found = _find(path, cache or cache_folder())
    if prompts is not None:
        found = PictureSet(found.root, found.files, prompts_by_file(prompts, found.root, found.files))
    if not found.files:
        raise UserError(f"{path}: no pictures in it.")
    if len(set(found.files)) < len(found.files):
        twice = Counter(found.files).most_common(1)[0][0]
        raise UserError(f"{path}: lists {twice!r} twice.")
    for file in dict.fromkeys(_file_of(found.root, name) for name in found.files):
        if not (found.root / file).is_file():
            raise UserError(f"{found.root / file}: is missing, though {path} lists it.")
    return found


def _file_of(root: Path, name: str) -> str:
    """The file below the root that a picture is, or lies in."""
    if (root / name).is_file():
        return name
    parts = split_reference(name)
    return parts[0] if parts else array_file(name) or name


def _find(path: Path, cache: Path) -> PictureSet:
    if path.is_file():
        return _from_file(path, cache)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder of pictures, and no manifest either.")
    if (path / SAMPLES).is_file():
        return _from_samples(path)
    return _from_geneval(path) if is_geneval_layout(path) else _from_folder(path)


def _from_file(path: Path, cache: Path) -> PictureSet:
    if path.suffix.lower() == ARRAYS:
        images = unpack_images(path, cache)
        if images is None:
            raise UserError(f"{path}: holds no images; they would be in the key {IMAGES!r}.")
        return PictureSet(*images)
    if path.suffix in _CONTAINERS and not is_manifest(path):
        return _from_source(path)
    manifest = read_manifest(path)
    files, captions = zip(*((row.path, row.caption) for row in manifest.rows), strict=True)
    return PictureSet(manifest.root, files, captions if all(captions) else None)


def _from_source(place: Path) -> PictureSet:
    """The pictures of Parquet or tar files, with their captions if all have one."""
    source = list_source(place)
    if source.unused:
        name, why = source.unused[0]
        say(f"{place}: {len(source.unused)} passed over, such as {name} ({why}).")
    captions = tuple(item.caption for item in source.items)
    files = tuple(item.path for item in source.items)
    return PictureSet(source.root, files, captions if all(captions) else None)


def _from_samples(folder: Path) -> PictureSet:
    path = folder / SAMPLES
    made = read_json(path)
    images = made.get("images") if isinstance(made, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise UserError(f"{path}: not a list of samples; make the pictures again.")
    files: list[str] = []
    prompts: list[str] = []
    for number, image in enumerate(images, start=1):
        where = f"{path}, image {number}"
        if not isinstance(image.get("prompt"), str):
            raise UserError(f"{where}: 'prompt' must be a text, not {image.get('prompt')!r}.")
        files.append(file_name(image.get("file"), where, folder))
        prompts.append(image["prompt"])
    return PictureSet(folder, tuple(files), tuple(prompts))


def _from_geneval(folder: Path) -> PictureSet:
    read = read_geneval_layout(folder, IMAGE_ENDINGS)
    files = tuple(file for one in read for file in one.files)
    return PictureSet(folder, files, tuple(one.prompt for one in read for _ in one.files))


def _from_folder(folder: Path) -> PictureSet:
    names = sorted(
        f.relative_to(folder).as_posix()
        for f in folder.rglob("*")
        if f.is_file() and not any(part.startswith(".") for part in f.relative_to(folder).parts)
    )
    files = [name for name in names if Path(name).suffix.lower() in IMAGE_ENDINGS]
    if not files and any(Path(n).suffix in _CONTAINERS and not is_manifest(folder / n) for n in names):
        return _from_source(folder)
    strange = [name for name in names if Path(name).suffix.lower() not in IMAGE_ENDINGS | _SIDE_FILES]
    if strange:
        raise UserError(f"{folder / strange[0]}: no picture by its name ({len(strange)} such); take it away.")
    beside = folder / PROMPTS
    return PictureSet(
        folder, tuple(files), prompts_by_file(beside, folder, files) if beside.is_file() else None
    )


def _other_size(path: Path, found: tuple[int, int], size: tuple[int, int]) -> UserError:
    return UserError(
        f"{path}: is {found[0]} x {found[1]}, and the pictures are {size[0]} x {size[1]}. "
        "Make them all of one size; fit_reference=true cuts the real ones."
    )


def read_pixels(
    root: Path, files: Sequence[str], size: tuple[int, int], fit: bool = False
) -> UInt8[Tensor, "B 3 H W"]:
    """Pictures of one size (width, height); with `fit` the centred square of each is resized to it."""
    with ThreadPoolExecutor(_READERS) as pool:
        arrays = list(pool.map(lambda name: _read_one(root, name, size, fit), files))
    return rearrange(torch.from_numpy(np.stack(arrays)), "b h w c -> b c h w")


def _read_one(root: Path, name: str, size: tuple[int, int], fit: bool) -> np.ndarray:
    picture = _open(root, name)
    if fit and picture.size != size:
        picture = square(picture, size[0])
    if picture.size != size:
        raise _other_size(root / name, picture.size, size)
    return np.asarray(picture)


def _open(root: Path, name: str) -> Image.Image:
    """The picture of a file, a container's row or member, or an array's row."""
    try:
        array = array_image(root, name)
        return open_picture(root, name) if array is None else Image.fromarray(array)
    except BrokenImage as error:
        why = str(error) or type(error).__name__
        raise UserError(f"{root / name}: cannot be read ({why}); every picture counts, so mend it.") from None
