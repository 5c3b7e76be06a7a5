"""Rows of a manifest to rows of shards: pictures and captions through the encoders, part by part.

In: pictures with their captions, and a recipe's encoders. Out: for every part a table of latents and text
states that says what made it. `kilopix encode` hands the parts to workers.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kilopix.data.augmented import Pictures, load_ahead
from kilopix.data.manifest import Row
from kilopix.data.part_facts import LatentSums, PartFacts, ShardParts
from kilopix.data.reused import ASIDE, WORK, Before, Texts
from kilopix.data.shards import to_shard
from kilopix.data.sources import BrokenImage, release_arrays
from kilopix.data.windows import windows_of
from kilopix.pretrained.autoencoder import (
    Autoencoder,
    SDAutoencoderConfig,
    encode_images,
    load_autoencoder,
)
from kilopix.pretrained.text_encoder import TextEncoder, encode_in_batches, load_text_encoder
from kilopix.recipe import Recipe
from kilopix.runtime import pick_device
from kilopix.types import LatentMoments

if TYPE_CHECKING:
    import pyarrow as pa


def to_images(pixels: np.ndarray, device: str) -> Tensor:
    """Pixels `B H W 3` in uint8 as images `B 3 H W` in [-1, 1], sent to the device as bytes."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True)
class Pace:
    """How much is computed at a time, and in how many threads pictures are decoded."""

    images: int
    tokens: int
    threads: int

    @classmethod
    def of(cls, device: str, size: int) -> "Pace":
        """Batches that fill a GPU, by its memory; a CPU is fastest with what its caches hold."""
        if not device.startswith("cuda"):
            return cls(min(max(int(16 * (64 / size) ** 2), 1), 64), 2048, 1)
        gib = torch.cuda.get_device_properties(device).total_memory / 2**30
        images = int(gib * 4 * (256 / size) ** 2)  # a quarter of a GiB for each at 256 pixels is ample
        threads = max(2, (os.cpu_count() or 2) // torch.cuda.device_count())
        return cls(min(max(images, 1), 512), int(gib * 1024), threads)


@dataclass(frozen=True)
class Encoded:
    """Rows with their latents and the states of their captions, and the files that were left out."""

    rows: list[Row]
    moments: LatentMoments
    texts: list[Tensor | bytes]
    left_out: list[tuple[str, str]]
    reused: dict[int, Texts] = field(default_factory=dict)
    """The texts that need not be encoded, by the number of their row."""


@dataclass(frozen=True)
class EncodePart:
    """Encodes the rows of one part; a value, so that it can be sent to a worker, which loads the encoders."""

    pictures: dict[str, Pictures]
    parts: ShardParts
    recipe: Recipe
    out: Path
    device: str
    stored: bool = False

    @cached_property
    def _device(self) -> str:
        return pick_device(self.device)

    @cached_property
    def _encoders(self) -> tuple[TextEncoder, Autoencoder]:
        text = load_text_encoder(self.recipe.text, self._device)
        return text, load_autoencoder(self.recipe.autoencoder, self.out, self._device)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}  # encoders stay here

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __call__(self, part: int) -> "pa.Table":
        """Latents and text states of part number `part`, as a table of shard rows with its facts."""
        kind, _ = self.parts.place(part)
        pictures, rows = self.pictures[kind], self.rows(part)
        text, autoencoder = self._encoders
        from_release = self.stored and kind == "plain"
        made = self._take_stored(pictures, rows) if from_release else self._encode(pictures, rows)
        side = pictures.size // autoencoder.downsampling
        facts = PartFacts(
            text_encoder_name=text.name,
            text_width=text.width,
            text_fingerprint=text.fingerprint,
            autoencoder_name=autoencoder.name,
            autoencoder_fingerprint=autoencoder.fingerprint,
            latent_shape=(autoencoder.channels, side, side),
            left_out=made.left_out,
            sums=LatentSums.of(made.moments),
        )
        short_texts = self._short_texts(made)
        data = self.recipe.data
        windows = windows_of(made.rows, data.windows, self.pictures["plain"].rows)
        table = to_shard(
            made.rows,
            made.moments,
            made.texts,
            short_texts,
            data.text_storage,
            windows,
            self._more_texts(made),
        )
        return facts.put_into(table, text.encode([""]) if part == 0 else None)

    def rows(self, part: int) -> list[Row]:
        """The rows of part number `part`."""
        kind, number = self.parts.place(part)
        start, count = number * self.parts.rows_per_part, self.parts.rows_per_part
        return self.pictures[kind].span(start, start + count)

    def _encode(self, pictures: Pictures, rows: list[Row]) -> Encoded:
        """Latents and text states of the rows; those that lie aside from before are taken from there."""
        text, autoencoder = self._encoders
        pace = Pace.of(self._device, pictures.size)
        made: dict[str, tuple[Tensor, Tensor]] = {}
        for row, known in zip(rows, self._before.latents(rows), strict=True):
            if known is not None:
                made[row.path] = self._stored(known[0]), self._stored(known[1])
        left_out = []
        fresh = [row for row in rows if row.path not in made]
        for batch in load_ahead(pictures, fresh, pace.images, pace.threads):
            left_out += batch.left_out
            if batch.rows:
                moments = encode_images(autoencoder, to_images(batch.pixels, self._device))
                pairs = zip(moments.mean.cpu().split(1), moments.std.cpu().split(1), strict=True)
                made |= {row.path: pair for row, pair in zip(batch.rows, pairs, strict=True)}
        good = [row for row in rows if row.path in made]
        known = self._before.texts(good)
        reused = {i: texts for i, texts in enumerate(known) if texts is not None}
        fresh = [row.caption for i, row in enumerate(good) if i not in reused]
        encoded = iter(encode_in_batches(text, fresh, pace.tokens))
        texts = [reused[i].text if i in reused else next(encoded) for i in range(len(good))]
        pairs = [made[row.path] for row in good]
        moments = self._together([mean for mean, _ in pairs], [std for _, std in pairs])
        return Encoded(good, moments, texts, left_out, reused)

    @cached_property
    def _before(self) -> Before:
        text, autoencoder = self._encoders
        return Before(self.out / WORK / ASIDE, text.fingerprint, autoencoder.fingerprint)

    def _stored(self, values: bytes) -> Tensor:
        """Latents `1 C H W` as they lie in shards; no bytes are zeros."""
        autoencoder = self._encoders[1]
        side = self.recipe.data.image_size // autoencoder.downsampling
        shape = 1, autoencoder.channels, side, side
        if not values:
            return torch.zeros(shape)
        return torch.from_numpy(np.frombuffer(values, np.float16).astype(np.float32)).reshape(shape)

    def _take_stored(self, pictures: Pictures, rows: list[Row]) -> Encoded:
        """What the published release holds of the rows; latents are brought to the recipe's scale."""
        config = self.recipe.autoencoder
        assert isinstance(config, SDAutoencoderConfig)
        good, means, stds, texts, left_out = [], [], [], [], []
        for row in rows:
            try:
                arrays = release_arrays(pictures.rows.root, row.path)
            except BrokenImage as error:
                left_out.append((row.path, str(error)))
                continue
            good.append(row)
            means.append(torch.from_numpy(arrays.mean).float()[None] * config.scale)
            stds.append(torch.from_numpy(arrays.std).float()[None] * config.scale)
            texts.append(torch.from_numpy(arrays.text).float()[: self.recipe.text.max_tokens])
        return Encoded(good, self._together(means, stds), texts, left_out)

    def _together(self, means: list[Tensor], stds: list[Tensor]) -> LatentMoments:
        autoencoder = self._encoders[1]
        side = self.recipe.data.image_size // autoencoder.downsampling
        empty = torch.empty(0, autoencoder.channels, side, side)
        return LatentMoments(torch.cat([empty, *means]), torch.cat([empty, *stds]))

    def _more_texts(self, made: Encoded) -> list[Sequence[Tensor | bytes]]:
        """States of the further captions of every row."""
        tokens = Pace.of(self._device, self.recipe.data.image_size).tokens
        fresh = [row for i, row in enumerate(made.rows) if i not in made.reused]
        captions = [caption for row in fresh for caption in row.more]
        states = iter(encode_in_batches(self._encoders[0], captions, tokens))
        return [
            made.reused[i].more if i in made.reused else list(islice(states, len(row.more)))
            for i, row in enumerate(made.rows)
        ]

    def _short_texts(self, made: Encoded) -> list[Tensor | bytes]:
        """States of the short captions; those of the caption itself where there is no other."""
        fresh = [i for i in range(len(made.rows)) if i not in made.reused]
        other = [i for i in fresh if made.rows[i].short and made.rows[i].short != made.rows[i].caption]
        tokens = Pace.of(self._device, self.recipe.data.image_size).tokens
        encoded = encode_in_batches(self._encoders[0], [made.rows[i].short for i in other], tokens)
        texts = [made.reused[i].short if i in made.reused else text for i, text in enumerate(made.texts)]
        for i, states in zip(other, encoded, strict=True):
            texts[i] = states
        return texts
