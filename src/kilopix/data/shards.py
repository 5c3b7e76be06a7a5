"""Shards: latents and text states on disk, memory-mapped, in a folder that explains itself.

In: rows of latents (mean, standard deviation) and text states. Out: Arrow files, and an `index.json`
with schema, encoders, token limit, image size, counts and SHA-256 of every file. Numbers are stored
in half precision: latents as float16, text states as float16.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kilopix.config import Config
from kilopix.data.manifest import Row
from kilopix.data.parts import read_table
from kilopix.runtime import read_json, sha256_of_file, write_json
from kilopix.types import LatentMoments, TextStates, UserError

if TYPE_CHECKING:
    import pyarrow as pa

INDEX = "index.json"
CODEC = "codec.safetensors"
EMPTY_TEXT = "empty_text.safetensors"
_COLUMNS = {
    "path": "string: id of the picture",
    "caption": "string",
    "class_name": "string",
    "base": "string: id of the plain picture that an augmented one is made from",
    "kind": "string: plain, cutmix or crop",
    "window": "4 x float32: the part of the whole picture that is shown (x0, y0, x1, y1)",
    "mean": "latent_shape x float16: mean of the latents",
    "std": "latent_shape x float16: their standard deviation; no bytes where it is 0 everywhere",
    "text": "tokens x text_width x float16: states of the caption's real tokens",
    "short_text": "the same of the short caption",
}


class ShardIndex(Config):
    """What `index.json` says."""

    format: str = "kilopix shards 1"
    image_size: int
    latent_shape: tuple[int, int, int]
    text_width: int
    text_encoder_name: str
    text_encoder: dict[str, Any]
    text_fingerprint: str
    autoencoder_name: str
    autoencoder: dict[str, Any]
    autoencoder_fingerprint: str
    plain: int
    augmented: int
    left_out: int
    psnr_db: float | None
    columns: dict[str, str] = _COLUMNS
    files: dict[str, str]


def to_shard(
    rows: list[Row], moments: LatentMoments, texts: list[torch.Tensor], short_texts: list[torch.Tensor]
) -> "pa.Table":
    """One Arrow table of rows with their latents and the states (tokens, width) of both captions."""
    import pyarrow as pa

    means, stds = moments.mean.half().cpu().numpy(), moments.std.half().cpu().numpy()
    full = (0.0, 0.0, 1.0, 1.0)
    windows = [row.box if row.kind == "crop" else full for row in rows]
    columns = {
        "path": pa.array([row.path for row in rows], pa.string()),
        "caption": pa.array([row.caption for row in rows], pa.string()),
        "class_name": pa.array([row.class_name for row in rows], pa.string()),
        "base": pa.array([row.base for row in rows], pa.string()),
        "kind": pa.array([row.kind for row in rows], pa.string()),
        "window": pa.array(windows, pa.list_(pa.float32(), 4)),
        "mean": pa.array([m.tobytes() for m in means], pa.large_binary()),
        "std": pa.array([s.tobytes() if s.any() else b"" for s in stds], pa.large_binary()),
        "text": _binary(texts),
        "short_text": _binary(short_texts),
    }
    return pa.table(columns)


def _binary(texts: list[torch.Tensor]) -> "pa.Array":
    import pyarrow as pa

    return pa.array([text.half().cpu().numpy().tobytes() for text in texts], pa.large_binary())


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write the index, which makes the folder complete."""
    write_json(folder / INDEX, index.model_dump())


def read_index(folder: Path) -> ShardIndex:
    """Read the index of a complete folder of shards."""
    if not (folder / INDEX).exists():
        raise UserError(f"{folder}: no {INDEX} in it, so no finished shards; run `kilopix encode` (again).")
    values = read_json(folder / INDEX)
    if values.get("format") != "kilopix shards 1":
        raise UserError(f"{folder / INDEX}: not written by this version of kilopix.")
    return ShardIndex(**values)


def verify(folder: Path) -> None:
    """Check every file of the shards against its hash; a `UserError` names those that differ."""
    wrong = [
        name
        for name, digest in read_index(folder).files.items()
        if not (folder / name).is_file() or sha256_of_file(folder / name) != digest
    ]
    if wrong:
        raise UserError(f"{folder}: damaged or missing: {', '.join(wrong)}; encode again into a new folder.")


@dataclass(frozen=True)
class Sample:
    """One row of the shards, not copied: latents `C H W`, text `tokens D`, window of the picture."""

    path: str
    mean: np.ndarray
    std: np.ndarray | None
    text: np.ndarray
    short_text: np.ndarray
    window: tuple[float, float, float, float]


class Shards:
    """All rows of a folder of shards, memory-mapped; `plain[i]` and its augmented version, if any."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.index = read_index(folder)
        missing = [name for name in self.index.files if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder / missing[0]}: missing; encode again into a new folder.")
        self._tables = {"plain": self._open("plain"), "augmented": self._open("augmented")}
        plain_paths = self._tables["plain"].column("path").to_pylist()
        position = {path: i for i, path in enumerate(plain_paths)}
        bases = self._tables["augmented"].column("base").to_pylist() if self.index.augmented else []
        self._augmented_of: dict[int, list[int]] = {}
        for j, base in enumerate(bases):
            if base in position:
                self._augmented_of.setdefault(position[base], []).append(j)
        self.empty_text = load_text(folder / EMPTY_TEXT)

    def _open(self, kind: str) -> "pa.Table":
        import pyarrow as pa

        names = sorted(n for n in self.index.files if n.startswith(kind) and n.endswith(".arrow"))
        tables = [read_table(self.folder / n) for n in names]
        return pa.concat_tables(tables) if tables else pa.table({})

    def __len__(self) -> int:
        return self.index.plain

    def plain(self, i: int) -> Sample:
        """The plain picture number i."""
        return self._sample("plain", i)

    def augmented(self, i: int, choice: int = 0) -> Sample | None:
        """An augmented version of plain picture i, `choice` taken modulo how many there are."""
        versions = self._augmented_of.get(i)
        return self._sample("augmented", versions[choice % len(versions)]) if versions else None

    def _sample(self, kind: str, i: int) -> Sample:
        row = self._tables[kind].slice(i, 1)
        std = row["std"][0].as_buffer()
        shape = self.index.latent_shape
        return Sample(
            row["path"][0].as_py(),
            np.frombuffer(row["mean"][0].as_buffer(), np.float16).reshape(shape),
            np.frombuffer(std, np.float16).reshape(shape) if std.size else None,
            np.frombuffer(row["text"][0].as_buffer(), np.float16).reshape(-1, self.index.text_width),
            np.frombuffer(row["short_text"][0].as_buffer(), np.float16).reshape(-1, self.index.text_width),
            tuple(row["window"][0].as_py()),
        )


def save_text(path: Path, text: TextStates) -> None:
    """Keep one text's states in a file."""
    from safetensors.torch import save_file

    from kilopix.runtime import atomic_path

    with atomic_path(path) as temporary:
        save_file({"states": text.states.cpu().contiguous(), "mask": text.mask.cpu()}, temporary)


def load_text(path: Path) -> TextStates:
    """Read the file of one text's states."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    return TextStates(tensors["states"], tensors["mask"])
