"""Encoded prompts that are kept: who asks again for a text does not wait for its encoder.

In: texts. Out: their states, of which the most recently used are kept.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kilopix.pretrained.text_encoder import TextEncoder
from kilopix.types import TextStates

_AT_ONCE = 32


class TextCache:
    """A text encoder with its last answers; a text has the same states whatever it is asked for with.

    Several threads may share one. `size` texts of Flan-T5-XL take up to a megabyte each.
    """

    def __init__(self, encoder: TextEncoder, size: int = 256):
        self.encoder = encoder
        self.size = size
        self.encoded = 0
        """How many texts went through the encoder so far."""
        self._rows: OrderedDict[str, Float[Tensor, "_ D"]] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> TextStates:
        """States padded with zeros to the longest text."""
        with self._lock:
            rows = {text: self._rows[text] for text in texts if text in self._rows}
            missing = [text for text in dict.fromkeys(texts) if text not in rows]
            for start in range(0, len(missing), _AT_ONCE):
                some = missing[start : start + _AT_ONCE]
                rows.update(zip(some, self._encode(some), strict=True))
            for text in texts:
                self._rows[text] = rows[text]
                self._rows.move_to_end(text)
            while len(self._rows) > self.size:
                self._rows.popitem(last=False)
        return padded([rows[text] for text in texts])

    def _encode(self, texts: list[str]) -> list[Tensor]:
        self.encoded += len(texts)
        answer = self.encoder.encode(texts)
        # Copies, so that a long neighbour's padding is not kept with a short text.
        return [states[mask].clone() for states, mask in zip(answer.states, answer.mask, strict=True)]


def padded(rows: Sequence[Float[Tensor, "_ D"]]) -> TextStates:
    """A batch of texts of different lengths."""
    states = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(states.shape[1])[None] < lengths[:, None]
    return TextStates(states, mask.to(states.device))
