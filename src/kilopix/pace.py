"""How the encoders of a data set are kept busy: batches by measured memory, packing beside the device.

In: a text encoder and an autoencoder, and captions. Out: batch sizes, and text states as they are stored.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import current_process

import torch

from kilopix.behind import behind, to_host
from kilopix.data.text_storage import TextStorage, packed, to_stored
from kilopix.pretrained.autoencoder import Autoencoder
from kilopix.pretrained.memory import NOT_ONE, BatchSize, GpuMemory, Memory, measured_size, most_at_once
from kilopix.pretrained.text_encoder import TextEncoder, text_batches
from kilopix.runtime import SPEAKERS, say
from kilopix.types import TextStates, UserError

MOST_IMAGES = 256
MOST_TOKENS = 65_536
"""What is computed at once at most: larger batches make a GPU no faster."""


@dataclass(frozen=True)
class Pace:
    """How much is computed at a time, and in how many threads pictures are decoded."""

    images: BatchSize
    tokens: BatchSize
    threads: int

    @classmethod
    def of(cls, text: TextEncoder, autoencoder: Autoencoder, device: str, size: int) -> "Pace":
        """Batches that fill a GPU, by what they are measured to take; a CPU is fastest with what its caches
        hold."""
        if not device.startswith("cuda"):
            images = min(max(int(16 * (64 / size) ** 2), 1), 64)
            return cls(BatchSize(images), BatchSize(2048), 1)
        images, tokens = measured_batches(text, autoencoder, device, size, GpuMemory(device))
        if current_process().name in SPEAKERS:
            say(f"{device}: {images} images and {tokens:,} tokens of text at a time, by measured memory.")
        threads = max(2, (os.cpu_count() or 2) // torch.cuda.device_count())
        return cls(BatchSize(images), BatchSize(tokens), threads)


def measured_batches(
    text: TextEncoder, autoencoder: Autoencoder, device: str, size: int, memory: Memory
) -> tuple[int, int]:
    """How many images of `size` pixels, and how many tokens of the longest texts, a device takes at once."""

    def encode_pictures(count: int) -> None:
        autoencoder.encode(torch.zeros(count, 3, size, size, device=device))

    longest = "a " * text.max_tokens  # what is beyond the limit is cut
    tokens = text.token_counts([longest])[0]

    def encode_texts(count: int) -> None:
        text.encode([longest] * count)

    try:
        most_images = min(MOST_IMAGES, most_at_once(lambda: encode_pictures(1)))
        texts = min(max(MOST_TOKENS // tokens, 1), most_at_once(lambda: encode_texts(1)))
    except torch.OutOfMemoryError:
        raise UserError(NOT_ONE) from None
    images = measured_size(encode_pictures, memory, most_images)
    return images, tokens * measured_size(encode_texts, memory, texts)


def pack_in_batches(
    encoder: TextEncoder, texts: Sequence[str], storage: TextStorage, tokens: BatchSize
) -> list[bytes]:
    """The states of each text as they are stored, in the order given; equal texts share their bytes.

    They are brought to their stored form where they are computed, and are copied and packed in a thread
    while the next batch is computed.
    """

    def begin(some: list[str], answer: TextStates) -> Callable[[], list[tuple[str, bytes]]]:
        values, scales = to_stored(answer.states, storage)
        arrive = to_host(values, answer.mask, *(() if scales is None else (scales,)))

        def finish() -> list[tuple[str, bytes]]:
            values, mask, *scales = arrive()
            rows = []
            for i, real in enumerate(mask):
                count = int(real.sum())
                kept = slice(count) if bool(real[:count].all()) else real  # a slice copies nothing
                rows.append(packed(values[i, kept], scales[0][i, kept] if scales else None, storage))
            return list(zip(some, rows, strict=True))

        return finish

    made: dict[str, bytes] = {}
    for rows in behind(begin(*batch) for batch in text_batches(encoder, texts, tokens)):
        made.update(rows)
    return [made[text] for text in texts]
