"""How text states lie in shards: half precision, or bytes with a scale per token.

In: states of a text, `tokens x width` in float32. Out: bytes, views of them that copy nothing, and batches.
What each way loses is measured in benchmarks/results/data.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kilopix.types import TextStates, UserError

TextStorage = Literal["float16", "bfloat16", "int8"]
STORAGES: tuple[TextStorage, ...] = ("float16", "bfloat16", "int8")
_HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_SCALE = np.dtype(np.float32)


@dataclass(frozen=True)
class StoredText:
    """Views of one text's bytes: values `tokens width`, and for int8 the scales `tokens`."""

    values: np.ndarray
    scales: np.ndarray | None

    def __len__(self) -> int:
        return len(self.values)


def pack(states: Float[Tensor, "N D"], storage: TextStorage) -> bytes:
    """The bytes of a text's states; int8 begins with the scale of every token, in float32."""
    states = states.float().cpu()
    if storage == "int8":
        scales = states.abs().amax(1).clamp_min(1e-12) / 127
        values = (states / scales[:, None]).round().to(torch.int8)
        _check_finite(scales, storage)
        return scales.numpy().astype(_SCALE).tobytes() + values.numpy().tobytes()
    values = states.to(_HALF[storage])
    _check_finite(values, storage)
    return values.view(torch.int16).numpy().tobytes()


def _check_finite(values: Tensor, storage: TextStorage) -> None:
    if not torch.isfinite(values).all():
        raise UserError(
            f"data.text_storage={storage!r}: the text encoder gave states that it cannot hold, or that are "
            "not finite; use bfloat16, and text.dtype=float32 if that fails too."
        )


def view(data: np.ndarray, storage: TextStorage, width: int) -> StoredText:
    """A text's states in its bytes, without copying."""
    if storage == "int8":
        tokens = len(data) // (width + _SCALE.itemsize)
        split = tokens * _SCALE.itemsize
        return StoredText(data[split:].view(np.int8).reshape(tokens, width), data[:split].view(_SCALE))
    return StoredText(data.view(np.int16).reshape(-1, width), None)


def tokens_in(size: int, storage: TextStorage, width: int) -> int:
    """The number of tokens that `size` bytes hold; -1 if they are no whole number."""
    a_token = width + _SCALE.itemsize if storage == "int8" else 2 * width
    return size // a_token if size % a_token == 0 else -1


def stack(
    texts: Sequence[StoredText], storage: TextStorage, dtype: torch.dtype = torch.float32
) -> TextStates:
    """A batch, padded with zeros to the longest text; the bytes are copied once, then converted together.

    A `dtype` that is the storage's own needs no conversion, and half the memory of float32.
    """
    longest = max(len(text) for text in texts)
    shape = len(texts), longest
    values = np.empty((*shape, texts[0].values.shape[1]), texts[0].values.dtype)
    scales = np.zeros(shape, _SCALE)
    mask = np.zeros(shape, bool)
    for i, text in enumerate(texts):
        values[i, : len(text)] = text.values
        values[i, len(text) :] = 0
        mask[i, : len(text)] = True
        if text.scales is not None:
            scales[i, : len(text)] = text.scales
    states = torch.from_numpy(values)
    if storage == "int8":
        states = states.to(dtype).mul_(torch.from_numpy(scales)[..., None].to(dtype))
    else:
        states = states.view(_HALF[storage]).to(dtype)
    return TextStates(states, torch.from_numpy(mask))
