"""Shards: latents and text states on disk, memory-mapped, in a folder that explains itself.

In: rows of latents (mean, standard deviation) and text states. Out: Arrow files, and an `index.json`
with schema, encoders, token limit, image size, statistics of the latents, counts and SHA-256 of every file.
Latents are stored in float16 as the autoencoder gives them, and whitened only when they are used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from kilopix.config import Config, parse
from kilopix.data.columns import COLUMNS, Blobs, ListedBlobs, check_columns
from kilopix.data.manifest import Row
from kilopix.data.part_facts import EMPTY_TEXT as EMPTY_TEXT
from kilopix.data.part_facts import load_text
from kilopix.data.parts import open_table
from kilopix.data.pixels import WHOLE, Box
from kilopix.data.reused import image_key, text_key
from kilopix.data.text_storage import StoredText, TextStorage, pack, token_bytes, view
from kilopix.data.trained_on import Origin
from kilopix.runtime import no_folder, not_below, read_json, sha256_of_file, write_json
from kilopix.types import LatentMoments, LatentStatistics, UserError

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "kilopix shards 2"
LARGEST_SIDE, WIDEST_TEXT, MOST_CHANNELS = 8192, 65536, 4096
Channels = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
INDEX = "index.json"
CODEC = "codec.safetensors"


class ShardIndex(Config):
    """What `index.json` says."""

    format: str = FORMAT
    image_size: int = Field(ge=1, le=LARGEST_SIDE)
    latent_shape: tuple[Channels, Side, Side]
    text_width: int = Field(ge=1, le=WIDEST_TEXT)
    text_encoder_name: str
    text_encoder: dict[str, Any]
    text_fingerprint: str
    text_storage: TextStorage = "float16"
    autoencoder_name: str
    autoencoder: dict[str, Any]
    autoencoder_fingerprint: str
    latent_statistics: LatentStatistics
    augmentation: dict[str, Any] = Field(default_factory=dict)
    plain: int = Field(ge=1)
    augmented: int = Field(ge=0)
    left_out: int = Field(ge=0)
    psnr_db: float | None
    origin: Origin | None = None
    columns: dict[str, str] = COLUMNS
    files: dict[str, str]

    @field_validator("files")
    @classmethod
    def _below_the_folder(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            if not_below(name) or "/" in name:
                raise ValueError(f"{name[:80]!r} is no file of this folder")
        return files


def to_shard(
    rows: list[Row],
    moments: LatentMoments,
    texts: Sequence[Tensor | bytes],
    short_texts: Sequence[Tensor | bytes],
    storage: TextStorage = "float16",
    windows: Sequence[Box] | None = None,
    more_texts: Sequence[Sequence[Tensor | bytes]] | None = None,
) -> "pa.Table":
    """One Arrow table of rows with their latents and the states (tokens, width) of their captions.

    States may be bytes as they lie in other shards. `more_texts` are those of each row's further captions.
    Without `windows`, each row of kind crop shows its box, and each other the whole.
    A short text that is the very tensor of the long one is not stored a second time.
    """
    import pyarrow as pa

    means, stds = moments.mean.half().cpu().numpy(), moments.std.half().cpu().numpy()
    if windows is None:
        windows = [row.box if row.kind == "crop" else WHOLE for row in rows]

    def packed(states: Tensor | bytes) -> bytes:
        return states if isinstance(states, bytes) else pack(states, storage)

    shorts = [b"" if short is text else packed(short) for short, text in zip(short_texts, texts, strict=True)]
    columns = {
        "path": pa.array([row.path for row in rows], pa.string()),
        "caption": pa.array([row.caption for row in rows], pa.string()),
        "class_name": pa.array([row.class_name for row in rows], pa.string()),
        "base": pa.array([row.base for row in rows], pa.string()),
        "kind": pa.array([row.kind for row in rows], pa.string()),
        "window": pa.array(windows, pa.list_(pa.float32(), 4)),
        "mean": pa.array([m.tobytes() for m in means], pa.large_binary()),
        "std": pa.array([s.tobytes() if s.any() else b"" for s in stds], pa.large_binary()),
        "text": pa.array([packed(text) for text in texts], pa.large_binary()),
        "short_text": pa.array(shorts, pa.large_binary()),
        "more_captions": pa.array([row.more for row in rows], pa.list_(pa.string())),
        "more_text": pa.array(
            [[packed(text) for text in some] for some in more_texts or [()] * len(rows)],
            pa.list_(pa.large_binary()),
        ),
        "image_key": pa.array([image_key(row) for row in rows], pa.string()),
        "text_key": pa.array([text_key(row) for row in rows], pa.string()),
    }
    return pa.table(columns)


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write the index, which makes the folder complete."""
    write_json(folder / INDEX, index.model_dump())


def read_index(folder: Path) -> ShardIndex:
    """Read the index of a complete folder of shards."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {no_folder(folder)} of shards; `kilopix encode` writes one.")
    if not (folder / INDEX).exists():
        raise UserError(f"{folder}: no {INDEX} in it, so no finished shards; run `kilopix encode` (again).")
    values = read_json(folder / INDEX)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{folder / INDEX}: not written by this version of kilopix.")
    return parse(ShardIndex, values, str(folder / INDEX))


@dataclass(frozen=True)
class Sample:
    """One row of the shards, not copied: latents `C H W`, one caption's text, window of the picture."""

    path: str
    mean: np.ndarray
    std: np.ndarray | None
    text: StoredText
    window: tuple[float, float, float, float]


class Shards:
    """All rows of a folder of shards, memory-mapped; `plain(i)` and its augmented version, if any.

    Each file is opened when a row of it is first asked for.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.index = read_index(folder)
        missing = [name for name in self.index.files if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder / missing[0]}: missing; the same `kilopix encode` again makes it, alone."
            )
        for name, digest in self.index.files.items():
            if not name.endswith(".arrow") and sha256_of_file(folder / name) != digest:
                raise UserError(
                    f"{folder / name}: damaged; its SHA-256 is not the one in {INDEX}. Bring it back from "
                    "a copy; or the same `kilopix encode` again makes it anew."
                )
        self._files = {kind: self._open(kind) for kind in ("plain", "augmented")}
        self._starts = {
            kind: np.cumsum([0, *(len(file) for file in files)]) for kind, files in self._files.items()
        }
        for kind, count in (("plain", self.index.plain), ("augmented", self.index.augmented)):
            if (held := int(self._starts[kind][-1])) != count:
                raise UserError(
                    f"{folder}: {INDEX} says {count} {kind} images, but {kind}-*.arrow hold {held}; "
                    "`kilopix verify` says which are damaged."
                )
        self._versions = Versions.of(self.column("plain", "path"), self.column("augmented", "base"))
        self.empty_text = load_text(folder / EMPTY_TEXT, self.index.text_width)

    def _open(self, kind: str) -> "list[ShardFile]":
        return [
            ShardFile(open_table(self.folder / n), self.index, self.folder / n) for n in self._names(kind)
        ]

    def _names(self, kind: str) -> list[str]:
        return sorted(n for n in self.index.files if n.startswith(f"{kind}-") and n.endswith(".arrow"))

    def files_of(self, rows: Sequence[int], kind: str = "plain") -> dict[str, str]:
        """The files that hold these rows of a kind, with the hashes of the index."""
        names = self._names(kind)
        held = sorted({self._place(kind, row)[0] for row in rows})
        return {names[number]: self.index.files[names[number]] for number in held}

    def column(self, kind: str, name: str) -> "pa.ChunkedArray":
        """A column of texts (path, caption, class_name, base, kind) of all plain or augmented rows."""
        import pyarrow as pa

        return pa.chunked_array([file.table.column(name) for file in self._files[kind]], pa.string())

    def captions(self, i: int) -> list[str]:
        """All captions of plain picture number i, the one that counts where one is needed first."""
        number, row = self._place("plain", i)
        table = self._files["plain"][number].table
        more = table.column("more_captions")[row].as_py() if "more_captions" in table.schema.names else []
        return [table.column("caption")[row].as_py(), *more]

    def __len__(self) -> int:
        return self.index.plain

    @cached_property
    def whitening(self) -> LatentStatistics | None:
        """What the latents are whitened with when they are used, if the autoencoder's settings say so."""
        return self.index.latent_statistics if self.index.autoencoder.get("whiten") else None

    def plain(self, i: int, short: bool = False, draw: int = 0) -> Sample:
        """The plain picture number i, with its caption or its short one.

        Of several captions `draw` chooses, taken modulo how many there are; 0 is the first.
        """
        return self._sample("plain", i, short, draw)

    def augmented(self, i: int, choice: int = 0, short: bool = False) -> Sample | None:
        """An augmented version of plain picture i, `choice` taken modulo how many there are."""
        versions = self._versions[i]
        return (
            self._sample("augmented", int(versions[choice % len(versions)]), short) if len(versions) else None
        )

    def versions(self, i: int) -> list[int]:
        """The numbers of the augmented rows that are made from plain picture i."""
        return self._versions[i].tolist()

    def _sample(self, kind: str, i: int, short: bool, draw: int = 0) -> Sample:
        file, row = self._place(kind, i)
        return self._files[kind][file].sample(row, short, draw)

    def _place(self, kind: str, i: int) -> tuple[int, int]:
        """The file that holds row i of a kind, and the row's number in it."""
        file = int(np.searchsorted(self._starts[kind], i, "right")) - 1
        return file, i - int(self._starts[kind][file])


class ShardFile:
    """One Arrow file; its columns become arrays over the mapped bytes when first used."""

    def __init__(self, table: "pa.RecordBatch", index: ShardIndex, place: Path | None = None):
        self.table = table
        self._index = index
        self._place = place or Path("shard")
        check_columns(table, self._place)

    def _blobs(self, name: str, sizes: tuple[int, ...] = ()) -> "Blobs":
        """A column of bytes; those of an array have one of these sizes, those of texts whole tokens."""
        blobs = Blobs(self.table.column(name))
        found = blobs.sizes()
        storage, width = self._index.text_storage, self._index.text_width
        fits = np.isin(found, sizes) if sizes else found % token_bytes(storage, width) == 0
        if not fits.all():
            row = int(fits.argmin())
            raise UserError(
                f"{self._place}: {name} of row {row} has {found[row]:,} bytes, which do not fit its index."
            )
        return blobs

    def __len__(self) -> int:
        return self.table.num_rows

    def sample(self, i: int, short: bool, draw: int = 0) -> Sample:
        """Row i of the file."""
        shape = self._index.latent_shape
        blob = self._short[i] if short else self._caption(i, draw)
        blob = blob if len(blob) else self._caption(i, draw)
        text = view(blob, self._index.text_storage, self._index.text_width)
        std = self._std[i]
        x0, y0, x1, y1 = self._window[i].tolist()
        return Sample(
            self._path[i].as_py(),
            self._mean[i].view(np.float16).reshape(shape),
            std.view(np.float16).reshape(shape) if len(std) else None,
            text,
            (x0, y0, x1, y1),
        )

    def _caption(self, i: int, draw: int) -> np.ndarray:
        """The states of the caption that `draw` chooses of row i's."""
        if self._more is None:
            return self._text[i]
        first, after = int(self._more.starts[i]), int(self._more.starts[i + 1])
        chosen = draw % (1 + after - first)
        return self._more.blobs[first + chosen - 1] if chosen else self._text[i]

    @cached_property
    def _more(self) -> "ListedBlobs | None":
        return ListedBlobs.of(self.table, "more_text")

    @property
    def _latent_bytes(self) -> int:
        return 2 * prod(self._index.latent_shape)

    @cached_property
    def _path(self) -> "pa.Array":
        return self.table.column("path")

    @cached_property
    def _window(self) -> np.ndarray:
        return self.table.column("window").flatten().to_numpy().reshape(-1, 4)

    @cached_property
    def _mean(self) -> "Blobs":
        return self._blobs("mean", (self._latent_bytes,))

    @cached_property
    def _std(self) -> "Blobs":
        return self._blobs("std", (0, self._latent_bytes))

    @cached_property
    def _text(self) -> "Blobs":
        return self._blobs("text")

    @cached_property
    def _short(self) -> "Blobs":
        return self._blobs("short_text")


@dataclass(frozen=True)
class Versions:
    """Which augmented rows belong to a plain one: of number i, `rows[starts[i]:starts[i + 1]]`."""

    rows: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, paths: "pa.ChunkedArray", bases: "pa.ChunkedArray") -> "Versions":
        """Find the plain path of every base; an augmented row without one is never used."""
        import pyarrow.compute as pc

        found = pc.index_in(bases, value_set=paths.combine_chunks())  # pyright: ignore
        plain = pc.fill_null(found, -1).to_numpy()
        rows = np.argsort(plain, kind="stable")
        return cls(rows, np.searchsorted(plain[rows], np.arange(len(paths) + 1)))

    def __getitem__(self, i: int) -> np.ndarray:
        return self.rows[self.starts[i] : self.starts[i + 1]]
