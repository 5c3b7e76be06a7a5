"""The samples of a batch, looked at before they are trained on.

In: shards, and which images of a batch are wanted. Out: the samples, and which of them cannot be trained on,
each with the reason; in their place stands an empty sample. And samples as tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kilopix.data.loader import SampleOrder, read_sample, stack_latents
from kilopix.data.shards import Sample, Shards
from kilopix.data.text_storage import StoredText, is_finite, is_finite_half
from kilopix.progress import Progress
from kilopix.runtime import sha256_of_file
from kilopix.types import LatentMoments, UserError

READ_ERRORS = (OSError, ValueError, IndexError)


@dataclass(frozen=True)
class Fault:
    """A sample of a batch that cannot be trained on: its place in the batch, its id, and why."""

    place: int
    sample: str
    error: str


def load_samples(
    shards: Shards,
    order: SampleOrder,
    first: int,
    offsets: Sequence[int],
    augmented: Sequence[bool],
    short: Sequence[bool],
) -> tuple[list[Sample], list[Fault]]:
    """The samples of the images `first + offset` of every offset; nothing is copied yet.

    Where `augmented`, the augmented version is taken, if there is one; where `short`, the short caption: both
    are given for the whole batch. In place of a sample that cannot be trained on stands an empty one.
    """
    samples: list[Sample] = []
    faults: list[Fault] = []
    for place, offset in enumerate(offsets):
        image = first + offset
        try:
            sample = read_sample(shards, order, image, augmented[offset], short[offset])
            if not _is_finite(shards, sample):
                faults.append(Fault(place, sample.path, "latents or text states are not finite"))
                sample = _empty(shards, sample.path)
        except READ_ERRORS as error:
            path = str(shards.column("plain", "path")[order.at(image)[0]].as_py())
            faults.append(Fault(place, path, f"cannot be read: {error}"))
            sample = _empty(shards, path)
        samples.append(sample)
    return samples, faults


def moments_of(shards: Shards, samples: Sequence[Sample]) -> LatentMoments:
    """The latents of samples, whitened where the shards say so."""
    moments = stack_latents(samples)
    return moments if shards.whitening is None else shards.whitening.whiten(moments)


def _is_finite(shards: Shards, sample: Sample) -> bool:
    """By the stored bytes, of which int8 states have only a scale a token to be looked at."""
    latents = (sample.mean,) if sample.std is None else (sample.mean, sample.std)
    text = is_finite(sample.text, shards.index.text_storage)
    return text and bool(np.isfinite(sample.window).all()) and all(map(is_finite_half, latents))


def _empty(shards: Shards, path: str) -> Sample:
    """A sample of zeros with a text of one token."""
    index = shards.index
    int8 = index.text_storage == "int8"
    values = np.zeros((1, index.text_width), np.int8 if int8 else np.int16)
    text = StoredText(values, np.zeros(1, np.float32) if int8 else None)
    return Sample(path, np.zeros(index.latent_shape, np.float16), None, text, (0.0, 0.0, 1.0, 1.0))


def readable(shards: Shards, count: int) -> list[int]:
    """At most `count` numbers of plain samples, spread evenly over the shards, of those that can be read.

    Raises `UserError` if none of them can.
    """
    count = min(count, len(shards))
    numbers = [i * len(shards) // count for i in range(count)]
    good = [i for i in numbers if _can_be_read(shards, i)]
    if not good:
        raise UserError(f"{shards.folder}: none of {count} samples can be read; `kilopix verify` says more.")
    return good


def _can_be_read(shards: Shards, i: int) -> bool:
    try:
        return _is_finite(shards, shards.plain(i))
    except READ_ERRORS:
        return False


def mean_text_tokens(shards: Shards, count: int) -> int:
    """The mean length of the texts of at most `count` samples, in tokens."""
    lengths = [len(shards.plain(i).text) for i in readable(shards, count)]
    return round(sum(lengths) / len(lengths))


def check_hashes(folder: Path, files: dict[str, str], quiet: bool = False) -> None:
    """Read files whole, and raise a `UserError` that names those that are not what they were."""
    damaged = []
    with Progress("verify shards", len(files), unit="file", quiet=quiet) as shown:
        for name, digest in files.items():
            if sha256_of_file(folder / name) != digest:
                damaged.append(name)
            shown.advance()
    if damaged:
        raise UserError(
            f"{folder}: damaged: {', '.join(damaged)} (SHA-256 is not that of index.json). Encode again "
            "into a new folder, or bring the files back from a copy; nothing was made of them."
        )
