"""Pictures and captions to shards: latents and text states, ready for training.

In: a manifest, that of its augmented pictures (or none, if they are made while encoding), and a recipe's
encoders. Out: Arrow shards that explain themselves. A patch codec is fitted on the pictures first, and kept
beside the shards.
"""

import os
import random
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kilopix.data.augmented import Augmenter, Pictures, load_ahead
from kilopix.data.engines import Engine
from kilopix.data.manifest import Manifest, Row, read_manifest
from kilopix.data.part_facts import EMPTY_TEXT, LatentSums, PartFacts, ShardParts, gather
from kilopix.data.parts import JOB, check_same_job, make_parts, open_job
from kilopix.data.rows import write_rows
from kilopix.data.shards import (
    CODEC,
    INDEX,
    ShardIndex,
    read_index,
    to_shard,
    write_index,
)
from kilopix.data.sources import BrokenImage, release_arrays
from kilopix.pretrained.autoencoder import (
    Autoencoder,
    SDAutoencoderConfig,
    encode_images,
    load_autoencoder,
)
from kilopix.pretrained.patch_codec import PatchCodec, PatchCodecConfig
from kilopix.pretrained.text_encoder import TextEncoder, encode_in_batches, load_text_encoder
from kilopix.recipe import Recipe
from kilopix.runtime import (
    atomic_path,
    pick_device,
    read_json,
    remove_folder,
    report_left_out,
    say,
    seed_from,
    sha256_of_file,
)
from kilopix.types import LatentMoments, UserError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_PART = 1024
FIT_IMAGES = 2000
PSNR_IMAGES = 200
RELEASE_SIDE = 256


def run(
    manifest: Path,
    out: Path,
    recipe: Recipe,
    augmented: Path | None = None,
    device: str = "auto",
    online: bool = False,
    workers: int | None = None,
    engine: Engine = "local",
    rows_per_part: int = ROWS_PER_PART,
    stored: bool = False,
    codec_of: Path | None = None,
) -> ShardIndex:
    """Encode a manifest into shards; the same command again goes on, or says that it is done.

    With `online`, the recipe's augmented pictures are made while encoding rather than read. With `stored`,
    what the published release keeps beside its pictures is taken as it is, and nothing plain is encoded.
    With `codec_of`, other shards' patch codec is taken rather than one fitted here.
    """
    codec = _codec_of(codec_of, recipe)
    if stored:
        _check_release(recipe)
    if online and augmented is not None:
        raise UserError("--online makes the augmented pictures; leave out --augmented, or --online.")
    plain = read_manifest(manifest)
    job = {
        "stage": "encode",
        "text": recipe.text.model_dump(mode="json"),
        "text_storage": recipe.data.text_storage,
        "autoencoder": recipe.autoencoder.model_dump(mode="json"),
        "image_size": recipe.data.image_size,
        "seed": recipe.seed,
        "manifest": sha256_of_file(manifest),
        "augmented": sha256_of_file(augmented) if augmented else "",
        "online": recipe.data.augment.model_dump(mode="json") if online else {},
        "rows_per_part": rows_per_part,
        "stored": stored,
    }
    if codec is not None:
        job["codec"] = sha256_of_file(codec)
    if (out / INDEX).exists():
        check_same_job(read_json(out / JOB), job, out)
        index = read_index(out)
        say(f"{out}: already complete, {index.plain} + {index.augmented} pictures.")
        return index
    pictures = _pictures(plain, manifest, augmented, online, recipe, out, job)
    device = device if engine == "ray" else pick_device(device)
    if codec is not None:
        with atomic_path(out / CODEC) as temporary:
            shutil.copyfile(codec, temporary)
    psnr = _fit_codec(pictures["plain"], out, recipe)
    parts = ShardParts.of({kind: len(p) for kind, p in pictures.items()}, out, rows_per_part)
    make = EncodePart(pictures, parts, recipe, out, device, stored)
    total = sum(len(p) for p in pictures.values())
    if workers is None and engine == "local" and device != "cpu":
        workers = torch.cuda.device_count() if device == "cuda" else 1
    make_parts(parts, make, "encode", total, workers, engine, wants_gpu=device != "cpu")
    index, left_out = _index(parts, recipe, out, psnr, job["online"])
    if not index.plain:
        raise UserError(f"{manifest}: none of its pictures could be read below {plain.root}.")
    write_index(out, index)
    remove_folder(out / "work")
    note = f", PSNR of the codec {psnr:.1f} dB" if psnr else ""
    say(f"{out}: {index.plain} + {index.augmented} pictures{note}.")
    report_left_out(left_out, out / "failures.jsonl")
    return index


def _pictures(
    plain: Manifest,
    path: Path,
    augmented: Path | None,
    online: bool,
    recipe: Recipe,
    out: Path,
    job: dict[str, Any],
) -> dict[str, Pictures]:
    """What is to be encoded, by kind; the folder is opened when all is checked."""
    size, augment = recipe.data.image_size, recipe.data.augment
    other = read_manifest(augmented) if augmented is not None else None
    known = {row.path for row in plain.rows}
    if other is not None and not any(row.base in known for row in other.rows):
        raise UserError(f"{augmented}: none of its pictures is made from one of the plain manifest.")
    if online and augment.kind == "cutmix" and len({row.class_name for row in plain.rows}) < 2:
        raise UserError(f"{path}: CutMix pastes a picture of another class, and there is only one class.")
    open_job(out, job)
    rows = write_rows(plain, out / "work" / "plain.arrow")
    pictures = {"plain": Pictures(rows, size)}
    if other is not None:
        pictures["augmented"] = Pictures(write_rows(other, out / "work" / "augmented.arrow"), size)
    if online:
        augmenter = Augmenter(rows, augment.kind, augment.setting, size, recipe.seed)
        pictures["augmented"] = Pictures(rows, size, augmenter)
    return pictures


def _codec_of(shards: Path | None, recipe: Recipe) -> Path | None:
    """The file of other shards' patch codec; an autoencoder that is not fitted is the same for all."""
    if shards is None or not isinstance(recipe.autoencoder, PatchCodecConfig):
        return None
    if not (shards / CODEC).is_file():
        raise UserError(f"--codec-of {shards}: no {CODEC} in it; name the shards that a model is trained on.")
    return shards / CODEC


def _check_release(recipe: Recipe) -> None:
    """Refuse a recipe whose encoders are not those of the published release."""
    text, autoencoder = recipe.text, recipe.autoencoder
    if text.kind != "t5" or autoencoder.kind != "sd" or recipe.data.image_size != RELEASE_SIDE:
        raise UserError(
            "--stored: the release holds states of Flan-T5-XL and latents of Stable Diffusion's autoencoder; "
            f"set text.kind=t5, autoencoder.kind=sd and data.image_size={RELEASE_SIDE}."
        )


def _fit_codec(pictures: Pictures, out: Path, recipe: Recipe) -> float | None:
    """Fit the patch codec on a sample of the pictures, and measure it on pictures outside the sample."""
    if not isinstance(recipe.autoencoder, PatchCodecConfig):
        return None
    numbers = list(range(len(pictures)))
    random.Random(seed_from("codec", recipe.seed)).shuffle(numbers)
    measured = max(1, min(PSNR_IMAGES, len(numbers) // 10))
    for_psnr = _load_some(pictures, numbers[:measured])
    if not (out / CODEC).exists():
        # A data set of a few pictures is measured on what it is fitted on; there is nothing else.
        fitting = numbers[measured : measured + FIT_IMAGES] or numbers
        loaded = _load_some(pictures, fitting)
        if not len(loaded):
            raise UserError(f"{pictures.rows.root}: none of the pictures to fit the codec on could be read.")
        PatchCodec.fit(loaded, recipe.autoencoder).save(out / CODEC)
    codec = load_autoencoder(recipe.autoencoder, out, "cpu")
    if not len(for_psnr) or not isinstance(codec, PatchCodec):
        return None
    return codec.psnr(for_psnr)


def _load_some(pictures: Pictures, numbers: list[int]) -> Tensor:
    """The pictures of some rows, without those that cannot be read."""
    rows = [pictures.rows[i] for i in numbers]
    loaded = [batch.pixels for batch in load_ahead(pictures, rows, len(rows), threads=4)]
    return to_images(loaded[0], "cpu")


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
        kind, number = self.parts.place(part)
        start, count = number * self.parts.rows_per_part, self.parts.rows_per_part
        pictures = self.pictures[kind]
        text, autoencoder = self._encoders
        rows = pictures.span(start, start + count)
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
        table = to_shard(made.rows, made.moments, made.texts, short_texts, self.recipe.data.text_storage)
        return facts.put_into(table, text.encode([""]) if part == 0 else None)

    def _encode(self, pictures: Pictures, rows: list[Row]) -> "Encoded":
        text, autoencoder = self._encoders
        pace = Pace.of(self._device, pictures.size)
        good, means, stds, left_out = [], [], [], []
        for batch in load_ahead(pictures, rows, pace.images, pace.threads):
            good += batch.rows
            left_out += batch.left_out
            if batch.rows:
                moments = encode_images(autoencoder, to_images(batch.pixels, self._device))
                means.append(moments.mean.cpu())
                stds.append(moments.std.cpu())
        texts = encode_in_batches(text, [row.caption for row in good], pace.tokens)
        return Encoded(good, self._together(means, stds), texts, left_out)

    def _take_stored(self, pictures: Pictures, rows: list[Row]) -> "Encoded":
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

    def _short_texts(self, made: "Encoded") -> list[Tensor]:
        """States of the short captions; those of the caption itself where there is no other."""
        other = [i for i, row in enumerate(made.rows) if row.short and row.short != row.caption]
        tokens = Pace.of(self._device, self.recipe.data.image_size).tokens
        encoded = encode_in_batches(self._encoders[0], [made.rows[i].short for i in other], tokens)
        texts = list(made.texts)
        for i, states in zip(other, encoded, strict=True):
            texts[i] = states
        return texts


@dataclass(frozen=True)
class Encoded:
    """Rows with their latents and the states of their captions, and the files that were left out."""

    rows: list[Row]
    moments: LatentMoments
    texts: list[Tensor]
    left_out: list[tuple[str, str]]


def _index(
    parts: ShardParts, recipe: Recipe, out: Path, psnr: float | None, augmentation: dict[str, Any]
) -> tuple[ShardIndex, list[tuple[str, str]]]:
    """The index of the finished parts, and the pictures that they lack."""
    gathered = gather([parts.path(i) for i in range(parts.count)], out)
    files = gathered.files | {n: sha256_of_file(out / n) for n in (CODEC, EMPTY_TEXT) if (out / n).exists()}
    facts = gathered.facts
    index = ShardIndex(
        image_size=recipe.data.image_size,
        latent_shape=facts.latent_shape,
        text_width=facts.text_width,
        text_encoder_name=facts.text_encoder_name,
        text_encoder=recipe.text.model_dump(mode="json"),
        text_fingerprint=facts.text_fingerprint,
        text_storage=recipe.data.text_storage,
        autoencoder_name=facts.autoencoder_name,
        autoencoder=recipe.autoencoder.model_dump(mode="json"),
        autoencoder_fingerprint=facts.autoencoder_fingerprint,
        latent_statistics=gathered.sums.statistics(),
        augmentation=augmentation,
        plain=gathered.rows.get("plain", 0),
        augmented=gathered.rows.get("augmented", 0),
        left_out=len(gathered.left_out),
        psnr_db=psnr,
        files=files,
    )
    return index, gathered.left_out
