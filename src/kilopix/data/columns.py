"""The columns of shards: what they are, whether a file has them, and the bytes in them as arrays.

In: Arrow tables, mapped from files. Out: views of their bytes, or a `UserError` that names file and column.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from kilopix.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_NOT_IN_OLDER = ("more_captions", "more_text", "image_key", "text_key")
COLUMNS = {
    "path": "string: id of the picture",
    "caption": "string",
    "class_name": "string",
    "base": "string: id of the plain picture that an augmented one is made from",
    "kind": "string: plain, cutmix or crop",
    "window": "4 x float32: the part of the whole picture that is shown (x0, y0, x1, y1)",
    "mean": "latent_shape x float16: mean of the latents",
    "std": "latent_shape x float16: their standard deviation; no bytes where it is 0 everywhere",
    "text": "tokens x text_width x text_storage: states of the caption's real tokens; before int8 states "
    "lie their scales, one float32 a token",
    "short_text": "the same of the short caption; no bytes where it is the caption",
    "more_captions": "list of strings: further captions of the same picture",
    "more_text": "list of states, each as in text: those of the further captions",
    "image_key": "string: hash of what the latents are made from",
    "text_key": "string: hash of what the text states are made from",
}


def check_columns(table: "pa.RecordBatch", place: Path) -> None:
    """Refuse a table without one of the columns, or with one of another type, with nulls, or whose
    offsets lead out of its data: Arrow follows them out of its memory."""
    import pyarrow as pa

    for name in COLUMNS:
        if name in _NOT_IN_OLDER and name not in table.schema.names:
            continue
        wanted = _type_of(name)
        if name not in table.schema.names or table.schema.field(name).type != wanted:
            raise UserError(f"{place}: no column {name!r} of type {wanted}; run `kilopix encode` again.")
        try:
            table.column(name).validate(full=True)
        except pa.ArrowInvalid as error:
            raise UserError(f"{place}: its column {name!r} is damaged ({error}).") from None
        if table.column(name).null_count:
            raise UserError(f"{place}: its column {name!r} has nulls.")


def _type_of(name: str) -> "pa.DataType":
    import pyarrow as pa

    if name == "window":
        return pa.list_(pa.float32(), 4)
    if name.startswith("more_"):
        return pa.list_(pa.string() if name == "more_captions" else pa.large_binary())
    return pa.large_binary() if name in ("mean", "std", "text", "short_text") else pa.string()


class Blobs:
    """A column of bytes, as views of one array; Arrow's own access costs several times as much."""

    def __init__(self, column: "pa.Array"):
        import pyarrow as pa

        _, offsets, data = column.buffers()
        self._offsets = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
        size = data.size if data is not None else 0
        # Through torch, which warns of every array that says that it cannot be written to, as one straight
        # from the mapped file would; nobody writes to it.
        self._data = torch.from_dlpack(pa.Array.from_buffers(pa.uint8(), size, [None, data])).numpy()

    def __getitem__(self, i: int) -> np.ndarray:
        return self._data[self._offsets[i] : self._offsets[i + 1]]

    def sizes(self) -> np.ndarray:
        """Bytes of every entry."""
        return np.diff(self._offsets)


@dataclass(frozen=True)
class ListedBlobs:
    """A column of lists of bytes: those of row i are `blobs[starts[i]]` to before `blobs[starts[i + 1]]`."""

    blobs: Blobs
    starts: np.ndarray

    @classmethod
    def of(cls, table: "pa.RecordBatch", name: str) -> "ListedBlobs | None":
        """The column of a table; None if it is not there, as in older shards, or holds nothing."""
        if name not in table.schema.names:
            return None
        column = table.column(name)
        starts = column.offsets.to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        if starts[0] == starts[-1]:
            return None
        return cls(Blobs(column.values), starts)  # pyright: ignore[reportAttributeAccessIssue]
