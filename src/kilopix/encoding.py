"""Rows of a manifest to rows of shards: pictures and captions through the encoders, part by part.

In: pictures with their captions, and a recipe's encoders. Out: for every part a table of latents and text
states that says what made it. `kilopix encode` hands the parts to workers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kilopix.behind import behind, to_device, to_host
from kilopix.data.augmented import LoadedBatch, Pictures, load_ahead
from kilopix.data.manifest import Row
from kilopix.data.part_facts import LatentSums, PartFacts, ShardParts
from kilopix.data.reused import ASIDE, WORK, Before, Texts
from kilopix.data.shards import to_shard
from kilopix.data.sources import BrokenImage, release_arrays
from kilopix.data.windows import windows_of
from kilopix.pace import Pace, pack_in_batches
from kilopix.pretrained.autoencoder import (
    Autoencoder,
    SDAutoencoderConfig,
    encode_images,
    load_autoencoder,
)
from kilopix.pretrained.text_encoder import TextEncoder, load_text_encoder
from kilopix.recipe import Recipe
from kilopix.runtime import pick_device
from kilopix.types import LatentMoments

if TYPE_CHECKING:
    import pyarrow as pa


def to_images(pixels: np.ndarray, device: str) -> Tensor:
    """Pixels `B H W 3` in uint8 as images `B 3 H W` in [-1, 1], sent to the device as bytes."""
    return to_device(torch.from_numpy(pixels), device).permute(0, 3, 1, 2).float() / 127.5 - 1


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
        made: dict[str, tuple[Tensor, Tensor]] = {}
        for row, known in zip(rows, self._before.latents(rows), strict=True):
            if known is not None:
                made[row.path] = self._stored(known[0]), self._stored(known[1])
        left_out = []
        fresh = [row for row in rows if row.path not in made]
        loaded = load_ahead(pictures, fresh, self._pace.images.most, self._pace.threads)
        for batch, pairs in behind(self._begin(batch) for batch in loaded):
            left_out += batch.left_out
            made |= {row.path: pair for row, pair in zip(batch.rows, pairs, strict=True)}
        good = [row for row in rows if row.path in made]
        known = self._before.texts(good)
        reused = {i: texts for i, texts in enumerate(known) if texts is not None}
        encoded = iter(self._texts([row.caption for i, row in enumerate(good) if i not in reused]))
        texts: list[Tensor | bytes] = [
            reused[i].text if i in reused else next(encoded) for i in range(len(good))
        ]
        pairs = [made[row.path] for row in good]
        moments = self._together([mean for mean, _ in pairs], [std for _, std in pairs])
        return Encoded(good, moments, texts, left_out, reused)

    def _begin(self, batch: LoadedBatch) -> Callable[[], tuple[LoadedBatch, list[tuple[Tensor, Tensor]]]]:
        """Begin to encode a batch of pictures; what is returned waits for their moments, one pair each."""
        if not batch.rows:
            return lambda: (batch, [])
        images = to_images(batch.pixels, self._device)
        moments = encode_images(self._encoders[1], images, self._pace.images)
        arrive = to_host(moments.mean, moments.std)

        def finish() -> tuple[LoadedBatch, list[tuple[Tensor, Tensor]]]:
            mean, std = arrive()
            return batch, list(zip(mean.split(1), std.split(1), strict=True))

        return finish

    def _texts(self, texts: Sequence[str]) -> list[bytes]:
        """The states of texts, as they are stored."""
        return pack_in_batches(self._encoders[0], texts, self.recipe.data.text_storage, self._pace.tokens)

    @cached_property
    def _pace(self) -> Pace:
        return Pace.of(*self._encoders, self._device, self.recipe.data.image_size)

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
        fresh = [row for i, row in enumerate(made.rows) if i not in made.reused]
        states = iter(self._texts([caption for row in fresh for caption in row.more]))
        return [
            made.reused[i].more if i in made.reused else list(islice(states, len(row.more)))
            for i, row in enumerate(made.rows)
        ]

    def _short_texts(self, made: Encoded) -> list[Tensor | bytes]:
        """States of the short captions; those of the caption itself where there is no other."""
        fresh = [i for i in range(len(made.rows)) if i not in made.reused]
        other = [i for i in fresh if made.rows[i].short and made.rows[i].short != made.rows[i].caption]
        encoded = self._texts([made.rows[i].short for i in other])
        texts = [made.reused[i].short if i in made.reused else text for i, text in enumerate(made.texts)]
        for i, states in zip(other, encoded, strict=True):
            texts[i] = states
        return texts
