"""What every part of the shards says of itself, and the parts put together.

In: tables of encoded rows, with the encoders that the worker had. Out: facts in the metadata of each Arrow
file; then, of all files, one set of facts, hashes, counts and statistics. Workers of a cluster that held
different weights are found here.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kilopix.artefacts.digests import check_table
from kilopix.config import Config
from kilopix.data.parts import Parts, read_table
from kilopix.runtime import read_tensors, sha256_of_file, write_tensors
from kilopix.types import LatentMoments, LatentStatistics, TextStates, UserError

if TYPE_CHECKING:
    import pyarrow as pa

EMPTY_TEXT = "empty_text.safetensors"
_KEY, _EMPTY_KEY = b"kilopix", b"kilopix empty text"


@dataclass(frozen=True)
class ShardParts(Parts):
    """The files of a set of shards, all kinds one after the other: `plain-00000.arrow`, ..."""

    kinds: tuple[tuple[str, int], ...] = ()
    rows_per_part: int = 1024

    @classmethod
    def of(cls, counts: dict[str, int], folder: Path, rows_per_part: int) -> "ShardParts":
        """The parts of so many rows of each kind."""
        kinds = tuple((kind, -(-count // rows_per_part)) for kind, count in counts.items())
        return cls(folder, sum(n for _, n in kinds), kinds=kinds, rows_per_part=rows_per_part)

    def place(self, part: int) -> tuple[str, int]:
        """The kind of a part, and its number within the kind."""
        for kind, count in self.kinds:
            if part < count:
                return kind, part
            part -= count
        raise IndexError(part)

    def path(self, part: int) -> Path:
        """The file of a part."""
        kind, number = self.place(part)
        return self.folder / f"{kind}-{number:05d}.arrow"


class LatentSums(Config):
    """Sums over latents, by channel: from them come the statistics of any number of parts."""

    count: int
    first: tuple[float, ...]
    second: tuple[float, ...]

    @classmethod
    def of(cls, moments: LatentMoments) -> "LatentSums":
        """The sums of values and of squares, as they are when latents are drawn from their moments.

        Of what is stored, in half precision, so that rows taken from other shards have the same sums.
        """
        mean, std = moments.mean.half().double(), moments.std.half().double()
        first, second = mean.sum((0, 2, 3)), (mean.square() + std.square()).sum((0, 2, 3))
        positions = len(mean) * mean.shape[2] * mean.shape[3]
        return cls(count=positions, first=tuple(first.tolist()), second=tuple(second.tolist()))

    def plus(self, other: "LatentSums") -> "LatentSums":
        """The sums of both."""
        return LatentSums(
            count=self.count + other.count,
            first=tuple(a + b for a, b in zip(self.first, other.first, strict=True)),
            second=tuple(a + b for a, b in zip(self.second, other.second, strict=True)),
        )

    def statistics(self) -> LatentStatistics:
        """Mean and standard deviation of every channel; a channel without variance has 1."""
        count = max(self.count, 1)
        means = tuple(v / count for v in self.first)
        variances = [max(s / count - m * m, 0.0) for s, m in zip(self.second, means, strict=True)]
        return LatentStatistics(means, tuple(v**0.5 if v > 1e-12 else 1.0 for v in variances))


class PartFacts(Config):
    """The encoders that made a part, the pictures left out of it, and the sums of its latents."""

    text_encoder_name: str
    text_width: int
    text_fingerprint: str
    autoencoder_name: str
    autoencoder_fingerprint: str
    latent_shape: tuple[int, int, int]
    left_out: list[tuple[str, str]]
    sums: LatentSums

    @classmethod
    def of(cls, table: "pa.Table") -> "PartFacts":
        """The facts in the metadata of a part."""
        return cls.model_validate_json(table.schema.metadata[_KEY])

    def put_into(self, table: "pa.Table", empty_text: TextStates | None) -> "pa.Table":
        """The table with these facts, and in one part the states of the empty text, in its metadata."""
        from safetensors.torch import save

        metadata = {_KEY: self.model_dump_json().encode()}
        if empty_text is not None:
            tensors = {"states": empty_text.states.cpu().contiguous(), "mask": empty_text.mask.cpu()}
            metadata[_EMPTY_KEY] = save(tensors)
        return table.replace_schema_metadata(metadata)


@dataclass(frozen=True)
class Gathered:
    """All parts together."""

    facts: PartFacts
    files: dict[str, str]
    rows: dict[str, int]
    left_out: list[tuple[str, str]]
    sums: LatentSums


def gather(paths: Sequence[Path], folder: Path) -> Gathered:
    """Hash the parts, put what they say together, and write the empty text that the first one holds."""
    from safetensors.torch import load

    facts: list[PartFacts] = []
    rows: dict[str, int] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(
            pool.map(lambda path: check_table(path, required=True), paths)
        )  # before its hash is taken for what it should be
    for path in paths:
        table = read_table(path)
        metadata = table.schema.metadata
        facts.append(PartFacts.of(table))
        _check_same_encoders(facts[0], facts[-1], path)
        kind = path.name.split("-")[0]
        rows[kind] = rows.get(kind, 0) + len(table)
        if _EMPTY_KEY in metadata:
            write_tensors(folder / EMPTY_TEXT, load(metadata[_EMPTY_KEY]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = list(pool.map(sha256_of_file, paths))
    plain = [f.sums for f, path in zip(facts, paths, strict=True) if path.name.startswith("plain")]
    sums = plain[0]
    for other in plain[1:]:
        sums = sums.plus(other)
    files = {path.name: digest for path, digest in zip(paths, hashes, strict=True)}
    return Gathered(facts[0], files, rows, [item for f in facts for item in f.left_out], sums)


def _check_same_encoders(first: PartFacts, other: PartFacts, path: Path) -> None:
    for key in ("text_fingerprint", "autoencoder_fingerprint", "latent_shape", "text_width"):
        if getattr(first, key) != getattr(other, key):
            raise UserError(
                f"{path}: made with {key} {getattr(other, key)}, but the first part with "
                f"{getattr(first, key)}. The machines hold different weights; delete the file, and run the "
                "command again."
            )


def save_text(path: Path, text: TextStates) -> None:
    """Keep one text's states in a file."""
    write_tensors(path, {"states": text.states.cpu().contiguous(), "mask": text.mask.cpu()})


def load_text(path: Path, width: int) -> TextStates:
    """Read the file of one text's states, of this width."""
    tensors, _ = read_tensors(path)
    states, mask = tensors.get("states"), tensors.get("mask")
    if (
        states is None
        or mask is None
        or not (states.ndim == 3 and states.shape[::2] == (1, width) and states.shape[:2] == mask.shape)
        or not (states.is_floating_point() and mask.dtype == torch.bool and mask.any())
    ):
        raise UserError(f"{path}: not the states of one text, {width} wide; run `kilopix encode` again.")
    return TextStates(states, mask)
