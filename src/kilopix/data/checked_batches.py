"""Batches whose samples are looked at before they are trained on.

In: shards, and which images of a batch are wanted. Out: the batch, and the samples in it that cannot be
trained on, each with the reason; in their place stands an empty sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kilopix.data.loader import Batch, SampleOrder, collate, read_sample
from kilopix.data.shards import Sample, Shards
from kilopix.data.text_storage import StoredText
from kilopix.progress import Progress
from kilopix.runtime import sha256_of_file
from kilopix.types import UserError

READ_ERRORS = (OSError, ValueError, IndexError)


@dataclass(frozen=True)
class Fault:
    """A sample of a batch that cannot be trained on: its place in the batch, its id, and why."""

    place: int
    sample: str
    error: str


def load_checked(
    shards: Shards,
    order: SampleOrder,
    first: int,
    offsets: Sequence[int],
    augmented: Sequence[bool],
    short: Sequence[bool],
    dtype: torch.dtype = torch.float32,
) -> tuple[Batch, list[Fault]]:
    """The images `first + offset` of every offset; `augmented` and `short` are given for the whole batch."""

    def read(offset: int) -> Sample:
        return read_sample(shards, order, first + offset, augmented[offset], short[offset])

    def name(offset: int) -> str:
        return str(shards.column("plain", "path")[order.at(first + offset)[0]].as_py())

    try:
        batch = _collated(shards, [read(offset) for offset in offsets], dtype)
    except READ_ERRORS:
        return _one_by_one(shards, offsets, read, name, dtype)
    return (batch, []) if _is_finite(batch) else _one_by_one(shards, offsets, read, name, dtype)


def _collated(shards: Shards, samples: list[Sample], dtype: torch.dtype) -> Batch:
    batch = collate(samples, shards.index.text_storage, dtype)
    if shards.whitening is None:
        return batch
    return Batch(shards.whitening.whiten(batch.moments), batch.text, batch.window, batch.paths)


def _is_finite(batch: Batch) -> bool:
    # A sum is finite only if all of its terms are, and needs no memory for the answers; latents and text
    # states are far too small to overflow it.
    parts = (batch.moments.mean, batch.moments.std, batch.text.states, batch.window)
    return all(bool(part.sum(dtype=torch.float32).isfinite()) for part in parts)


def _one_by_one(
    shards: Shards,
    offsets: Sequence[int],
    read: Callable[[int], Sample],
    name: Callable[[int], str],
    dtype: torch.dtype,
) -> tuple[Batch, list[Fault]]:
    """The batch with an empty sample in place of every one that cannot be read or is not finite."""
    samples: list[Sample] = []
    faults: list[Fault] = []
    for place, offset in enumerate(offsets):
        try:
            sample = read(offset)
            if not _is_finite(_collated(shards, [sample], dtype)):
                faults.append(Fault(place, sample.path, "latents or text states are not finite"))
                sample = _empty(shards, sample.path)
        except READ_ERRORS as error:
            faults.append(Fault(place, name(offset), f"cannot be read: {error}"))
            sample = _empty(shards, faults[-1].sample)
        samples.append(sample)
    return _collated(shards, samples, dtype), faults


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
        return _is_finite(_collated(shards, [shards.plain(i)], torch.float32))
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
