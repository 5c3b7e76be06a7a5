"""Sets of pictures to be scored: which files they are, and the prompt of each.

In: a folder that `kilopix sample` wrote, one laid out as GenEval's, any other folder of pictures, or a
manifest. Out: a `PictureSet` in a fixed order, and the pixels of some of it. A picture that is missing,
listed twice, unreadable or of another size is a `UserError` that names it.
"""

import json
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

from kilopix.data.manifest import read_manifest
from kilopix.data.sources import BrokenImage, open_image, square
from kilopix.data.sources.items import IMAGE_ENDINGS
from kilopix.runtime import read_json, sha256_of_text
from kilopix.types import UserError

SAMPLES, PROMPTS = "samples.json", "prompts.jsonl"
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


def read_picture_set(path: Path, prompts: Path | None = None) -> PictureSet:
    """Find the pictures of a folder or manifest; `prompts`, JSON lines, comes before theirs."""
    found = _find(path)
    if prompts is not None:
        found = PictureSet(found.root, found.files, _read_prompts(prompts, found.files))
    if not found.files:
        raise UserError(f"{path}: no pictures in it.")
    if len(set(found.files)) < len(found.files):
        twice = Counter(found.files).most_common(1)[0][0]
        raise UserError(f"{path}: lists {twice!r} twice.")
    for name in found.files:
        if not (found.root / name).is_file():
            raise UserError(f"{found.root / name}: is missing, though {path} lists it.")
    return found


def _find(path: Path) -> PictureSet:
    if path.is_file():
        manifest = read_manifest(path)
        files, captions = zip(*((row.path, row.caption) for row in manifest.rows), strict=True)
        return PictureSet(manifest.root, files, captions)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder of pictures, and no manifest either.")
    if (path / SAMPLES).is_file():
        return _from_samples(path)
    numbered = sorted(f for f in path.iterdir() if f.is_dir() and (f / "metadata.jsonl").is_file())
    return _from_geneval(path, numbered) if numbered else _from_folder(path)


def _from_samples(folder: Path) -> PictureSet:
    try:
        images = read_json(folder / SAMPLES)["images"]
        files, prompts = tuple(i["file"] for i in images), tuple(i["prompt"] for i in images)
    except (KeyError, TypeError):
        raise UserError(f"{folder / SAMPLES}: not a list of samples; make the pictures again.") from None
    return PictureSet(folder, files, prompts)


def _from_geneval(folder: Path, numbered: list[Path]) -> PictureSet:
    """`NNNNN/samples/*.png`, the prompt in `NNNNN/metadata.jsonl`; every prompt has as many pictures."""
    files: list[str] = []
    prompts: list[str] = []
    expected = None
    for one in numbered:
        line = one.joinpath("metadata.jsonl").read_text().splitlines()[0]
        pictures = sorted(f for f in (one / "samples").glob("*") if f.suffix.lower() in IMAGE_ENDINGS)
        expected = len(pictures) if expected is None else expected
        if len(pictures) != expected:
            raise UserError(f"{one / 'samples'}: holds {len(pictures)} pictures, and others {expected}.")
        files += [f.relative_to(folder).as_posix() for f in pictures]
        prompts += [json.loads(line)["prompt"]] * len(pictures)
    return PictureSet(folder, tuple(files), tuple(prompts))


def _from_folder(folder: Path) -> PictureSet:
    names = sorted(
        f.relative_to(folder).as_posix()
        for f in folder.rglob("*")
        if f.is_file() and not any(part.startswith(".") for part in f.relative_to(folder).parts)
    )
    files = [name for name in names if Path(name).suffix.lower() in IMAGE_ENDINGS]
    strange = [name for name in names if Path(name).suffix.lower() not in IMAGE_ENDINGS | _SIDE_FILES]
    if strange:
        raise UserError(f"{folder / strange[0]}: no picture by its name ({len(strange)} such); take it away.")
    beside = folder / PROMPTS
    return PictureSet(folder, tuple(files), _read_prompts(beside, files) if beside.is_file() else None)


def _read_prompts(path: Path, files: Sequence[str]) -> tuple[str, ...]:
    """The prompt of every file from JSON lines, which must be of these files and no others."""
    found: dict[str, str] = {}
    try:
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            found[entry["file"]] = entry["prompt"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise UserError(f'{path}: write one line {{"file": ..., "prompt": ...}} for every picture.') from None
    lacking = [name for name in files if name not in found]
    if lacking:
        raise UserError(f"{path}: has no prompt for {lacking[0]} ({len(lacking)} such).")
    extra = sorted(found.keys() - set(files))
    if extra:
        raise UserError(f"{path}: has a prompt for {extra[0]}, which is not there ({len(extra)} such).")
    return tuple(found[name] for name in files)


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
        arrays = list(pool.map(lambda name: _read_one(root / name, size, fit), files))
    return rearrange(torch.from_numpy(np.stack(arrays)), "b h w c -> b c h w")


def _read_one(path: Path, size: tuple[int, int], fit: bool) -> np.ndarray:
    picture = _open(path)
    if fit and picture.size != size:
        picture = square(picture, size[0])
    if picture.size != size:
        raise _other_size(path, picture.size, size)
    return np.asarray(picture)


def _open(path: Path) -> Image.Image:
    try:
        return open_image(path)
    except BrokenImage as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    why = str(error) or type(error).__name__
    return UserError(f"{path}: cannot be read ({why}); every picture counts, so mend it.")
