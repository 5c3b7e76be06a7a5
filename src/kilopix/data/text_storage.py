"""How text states lie in shards: half precision, or bytes with a scale per token.

In: states of a text, `tokens x width` in float32. Out: bytes, views of them that copy nothing, and batches.
What each way loses is measured in benchmarks/results/data.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kilopix.types import TextStates, UserError

TextStorage = Literal["float16", "bfloat16", "int8"]
STORAGES: tuple[TextStorage, ...] = ("float16", "bfloat16", "int8")
_HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}
STORED = {**_HALF, "int8": torch.int8}
"""The type of the values as they are stored."""
_SCALE = np.dtype(np.float32)


@dataclass(frozen=True)
class StoredText:
    """Views of one text's bytes: values `tokens width`, and for int8 the scales `tokens`.

    Half-precision values are the numbers' bits, as int16.
    """

    values: np.ndarray
    scales: np.ndarray | None

    def __len__(self) -> int:
        return len(self.values)


def pack(states: Float[Tensor, "N D"], storage: TextStorage) -> bytes:
    """The bytes of a text's states; int8 begins with the scale of every token, in float32."""
    return packed(*to_stored(states.cpu(), storage), storage)


def to_stored(states: Float[Tensor, "... D"], storage: TextStorage) -> tuple[Tensor, Tensor | None]:
    """States as they are stored (halves as their bits, in int16), and int8's scales, on the states' device.

    Every device gives the same numbers: what is divided by is a tensor, since by a plain number CUDA
    multiplies with the inverse, which rounds differently.
    """
    states = states.float()
    if storage != "int8":
        return states.to(_HALF[storage]).view(torch.int16), None
    peaks = states.abs().amax(-1).clamp_min(1e-12)
    scales = peaks / torch.full_like(peaks, 127.0)
    return (states / scales[..., None]).round().to(torch.int8), scales


def packed(values: Tensor, scales: Tensor | None, storage: TextStorage) -> bytes:
    """The bytes of one text that `to_stored` has stored, on the CPU; a `UserError` if it is not finite."""
    text = StoredText(values.numpy(), None if scales is None else scales.numpy().astype(_SCALE, copy=False))
    if not is_finite(text, storage):
        raise UserError(
            f"data.text_storage={storage!r}: the text encoder gave states that it cannot hold, or that are "
            "not finite; use bfloat16, and text.dtype=float32 if that fails too."
        )
    return (b"" if text.scales is None else text.scales.tobytes()) + text.values.tobytes()


def view(data: np.ndarray, storage: TextStorage, width: int) -> StoredText:
    """A text's states in its bytes, without copying."""
    if storage == "int8":
        tokens = len(data) // (width + _SCALE.itemsize)
        split = tokens * _SCALE.itemsize
        return StoredText(data[split:].view(np.int8).reshape(tokens, width), data[:split].view(_SCALE))
    return StoredText(data.view(np.int16).reshape(-1, width), None)


def tokens_in(size: int, storage: TextStorage, width: int) -> int:
    """The number of tokens that `size` bytes hold; -1 if they are no whole number."""
    a_token = token_bytes(storage, width)
    return size // a_token if size % a_token == 0 else -1


def token_bytes(storage: TextStorage, width: int) -> int:
    """The bytes of one token."""
    return width + _SCALE.itemsize if storage == "int8" else 2 * width


@dataclass(frozen=True)
class StoredBatch:
    """Texts of a batch as they are stored, padded with zeros; `scales` are those of int8 values."""

    values: Tensor
    scales: Float[Tensor, "B N"] | None
    mask: Bool[Tensor, "B N"]


def stack_stored(texts: Sequence[StoredText], storage: TextStorage, length: int) -> StoredBatch:
    """Copy texts as they are; to a device they go so in half the time, or a quarter of it."""
    int8 = storage == "int8"
    shape = len(texts), length, texts[0].values.shape[1]
    values = empty(*shape, dtype=torch.int8 if int8 else torch.int16)
    scales, mask = np.zeros(shape[:2], np.float32), np.zeros(shape[:2], bool)
    rows = values.numpy()
    for i, text in enumerate(texts):
        count = len(text)
        rows[i, :count], rows[i, count:], mask[i, :count] = text.values, 0, True
        if text.scales is not None:
            scales[i, :count] = text.scales
    stored = values.view(STORED[storage])
    return StoredBatch(stored, torch.from_numpy(scales) if int8 else None, torch.from_numpy(mask))


def unpack(values: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Float[Tensor, "B N D"]:
    """The states of a stored batch, as numbers of a type, on the device where they are."""
    states = values.to(dtype)
    return states if scales is None else states * scales.to(dtype)[..., None]


def stack(
    texts: Sequence[StoredText], storage: TextStorage, dtype: torch.dtype = torch.float32
) -> TextStates:
    """A batch, padded with zeros to the longest text; each text is converted as it is copied, once.

    A `dtype` that is the storage's own needs no conversion, and half the memory of float32.
    """
    longest = max(len(text) for text in texts)
    states = empty(len(texts), longest, texts[0].values.shape[1], dtype=dtype)
    mask = np.zeros((len(texts), longest), bool)
    for i, text in enumerate(texts):
        mask[i, : len(text)] = True
        _convert(text, states[i, : len(text)], storage)
        states[i, len(text) :].zero_()
    return TextStates(states, torch.from_numpy(mask))


def is_finite(text: StoredText, storage: TextStorage) -> bool:
    """Whether every state of a text is a finite number, by its stored bytes."""
    if text.scales is not None:
        return bool(np.isfinite(text.scales).all())
    return _has_no_exponent(text.values, 0x7C00 if storage == "float16" else 0x7F80)


def is_finite_half(values: np.ndarray) -> bool:
    """Whether every number of an array of float16 is finite; several times as fast as to ask NumPy."""
    return _has_no_exponent(values.view(np.int16), 0x7C00)


def _has_no_exponent(bits: np.ndarray, ones: int) -> bool:
    """Whether no number has the exponent that is all ones, as infinities and what is no number have."""
    return bits.size == 0 or int((bits & np.int16(ones)).max()) != ones


def _convert(text: StoredText, out: Float[Tensor, "N D"], storage: TextStorage) -> None:
    if text.scales is not None:  # the second pass finds the text in the processor's cache
        scales = torch.from_numpy(text.scales.astype(_SCALE)).to(out.dtype)
        out.copy_(torch.from_numpy(text.values)).mul_(scales[:, None])
    elif out.dtype == _HALF[storage]:
        out.view(torch.int16).numpy()[:] = text.values  # faster than torch's copy
    else:
        out.copy_(torch.from_numpy(text.values).view(_HALF[storage]))


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor for a batch, not yet filled.

    NumPy asks the kernel for huge pages, and torch does not: without them, as much time goes into the
    pages of a new batch as into its numbers.
    """
    return torch.from_numpy(np.empty(prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
