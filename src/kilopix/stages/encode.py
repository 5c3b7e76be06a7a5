"""Pictures and captions to shards: latents and text states, ready for training.

In: a manifest, that of its augmented pictures, and a recipe's encoders. Out: Arrow shards that explain
themselves. A patch codec is fitted on the pictures first, and kept beside the shards.
"""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from kilopix.data.manifest import Manifest, Row, read_manifest
from kilopix.data.parts import JOB, Parts, check_same_job, make_parts, open_job, read_table
from kilopix.data.shards import (
    CODEC,
    EMPTY_TEXT,
    INDEX,
    ShardIndex,
    read_index,
    save_text,
    to_shard,
    write_index,
)
from kilopix.data.sources import BrokenImage, open_image, square
from kilopix.pretrained.autoencoder import Autoencoder, load_autoencoder
from kilopix.pretrained.patch_codec import PatchCodec, PatchCodecConfig
from kilopix.pretrained.text_encoder import TextEncoder, encode_in_batches, load_text_encoder
from kilopix.recipe import Recipe
from kilopix.runtime import (
    pick_device,
    read_json,
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


def run(
    manifest: Path, out: Path, recipe: Recipe, augmented: Path | None = None, device: str = "auto"
) -> ShardIndex:
    """Encode a manifest into shards; the same command again goes on, or says that it is done."""
    manifests = {"plain": read_manifest(manifest)}
    if augmented is not None:
        manifests["augmented"] = read_manifest(augmented)
        _check_bases(manifests["plain"], manifests["augmented"], augmented)
    job = {
        "stage": "encode",
        "text": recipe.text.model_dump(mode="json"),
        "autoencoder": recipe.autoencoder.model_dump(mode="json"),
        "image_size": recipe.data.image_size,
        "seed": recipe.seed,
        "manifest": sha256_of_file(manifest),
        "augmented": sha256_of_file(augmented) if augmented else "",
    }
    if (out / INDEX).exists():
        check_same_job(read_json(out / JOB), job, out)
        index = read_index(out)
        say(f"{out}: already complete, {index.plain} + {index.augmented} pictures.")
        return index
    open_job(out, job)
    torch_device = pick_device(device)
    psnr = _fit_codec(manifests["plain"], out, recipe)
    text = load_text_encoder(recipe.text, torch_device)
    autoencoder = load_autoencoder(recipe.autoencoder, out, torch_device)
    save_text(out / EMPTY_TEXT, text.encode([""]))
    left_out: list[tuple[str, str]] = []
    counts = {"plain": 0, "augmented": 0}
    files: dict[str, str] = {}
    for kind, rows in manifests.items():
        parts = Parts(out, -(-len(rows.rows) // ROWS_PER_PART), kind)
        make = EncodePart(rows, recipe.data.image_size, text, autoencoder)
        make_parts(parts, make, f"encode ({kind})", len(rows.rows), workers=1)
        counts[kind], missing = _count(parts, rows, files)
        left_out += missing
    if not counts["plain"]:
        raise UserError(f"{manifest}: none of its pictures could be read below {manifests['plain'].root}.")
    for name in (CODEC, EMPTY_TEXT):
        if (out / name).exists():
            files[name] = sha256_of_file(out / name)
    index = _index(recipe, text, autoencoder, counts, len(left_out), psnr, files)
    write_index(out, index)
    note = f", PSNR of the codec {psnr:.1f} dB" if psnr else ""
    say(f"{out}: {counts['plain']} + {counts['augmented']} pictures{note}.")
    report_left_out(left_out, out / "failures.jsonl")
    return index


def _check_bases(plain: Manifest, augmented: Manifest, path: Path) -> None:
    known = {row.path for row in plain.rows}
    if not any(row.base in known for row in augmented.rows):
        raise UserError(f"{path}: none of its pictures is made from one of the plain manifest.")


def _fit_codec(manifest: Manifest, out: Path, recipe: Recipe) -> float | None:
    """Fit the patch codec on a sample of the pictures, and measure it on pictures outside the sample."""
    if not isinstance(recipe.autoencoder, PatchCodecConfig):
        return None
    rows = manifest.rows.copy()
    random.Random(seed_from("codec", recipe.seed)).shuffle(rows)
    measured = max(1, min(PSNR_IMAGES, len(rows) // 10))
    _, for_psnr = load_pictures(manifest, rows[:measured], recipe.data.image_size)
    if not (out / CODEC).exists():
        # A data set of a few pictures is measured on what it is fitted on; there is nothing else.
        fitting = rows[measured : measured + FIT_IMAGES] or rows
        _, pictures = load_pictures(manifest, fitting, recipe.data.image_size)
        if not len(pictures):
            raise UserError(f"{manifest.root}: none of the pictures to fit the codec on could be read.")
        PatchCodec.fit(pictures, recipe.autoencoder).save(out / CODEC)
    codec = load_autoencoder(recipe.autoencoder, out, "cpu")
    if not len(for_psnr) or not isinstance(codec, PatchCodec):
        return None
    return codec.psnr(for_psnr)


def load_pictures(manifest: Manifest, rows: list[Row], size: int) -> tuple[list[Row], torch.Tensor]:
    """The rows whose pictures can be read, and the pictures, `B 3 H W` in [-1, 1]."""

    def load(row: Row) -> np.ndarray | None:
        try:
            return np.asarray(square(open_image(manifest.file(row), size), size))
        except BrokenImage:
            return None

    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load, rows))
    good = [(row, array) for row, array in zip(rows, loaded, strict=True) if array is not None]
    if not good:
        return [], torch.empty(0, 3, size, size)
    pixels = torch.from_numpy(np.stack([array for _, array in good])).permute(0, 3, 1, 2)
    return [row for row, _ in good], pixels.float() / 127.5 - 1


@dataclass(frozen=True)
class EncodePart:
    """Encodes the rows of one part."""

    manifest: Manifest
    size: int
    text: TextEncoder
    autoencoder: Autoencoder
    batch: int = 64

    def __call__(self, part: int) -> "pa.Table":
        """Latents and text states of part number `part`, as a table of shard rows."""
        start = part * ROWS_PER_PART
        rows, pictures = load_pictures(
            self.manifest, self.manifest.rows[start : start + ROWS_PER_PART], self.size
        )
        texts = encode_in_batches(self.text, [row.caption for row in rows])
        short_texts = encode_in_batches(self.text, [row.short or row.caption for row in rows])
        moments = [self.autoencoder.encode(batch) for batch in pictures.split(self.batch) if len(batch)]
        side = self.size // self.autoencoder.downsampling
        empty = torch.empty(0, self.autoencoder.channels, side, side)
        mean = torch.cat([m.mean.cpu() for m in moments]) if moments else empty
        std = torch.cat([m.std.cpu() for m in moments]) if moments else empty
        return to_shard(rows, LatentMoments(mean, std), texts, short_texts)


def _count(parts: Parts, manifest: Manifest, files: dict[str, str]) -> tuple[int, list[tuple[str, str]]]:
    """Hash the finished parts; return how many rows they hold, and the pictures that they lack."""
    written: set[str] = set()
    count = 0
    for i in range(parts.count):
        table = read_table(parts.path(i))
        written.update(table.column("path").to_pylist())
        count += len(table)
        files[parts.path(i).name] = sha256_of_file(parts.path(i))
    return count, [
        (r.path, "could not be read when encoding") for r in manifest.rows if r.path not in written
    ]


def _index(
    recipe: Recipe,
    text: TextEncoder,
    autoencoder: Autoencoder,
    counts: dict[str, int],
    left_out: int,
    psnr: float | None,
    files: dict[str, str],
) -> ShardIndex:
    side = recipe.data.image_size // autoencoder.downsampling
    return ShardIndex(
        image_size=recipe.data.image_size,
        latent_shape=(autoencoder.channels, side, side),
        text_width=text.width,
        text_encoder_name=text.name,
        text_encoder=recipe.text.model_dump(mode="json"),
        text_fingerprint=text.fingerprint,
        autoencoder_name=autoencoder.name,
        autoencoder=recipe.autoencoder.model_dump(mode="json"),
        autoencoder_fingerprint=autoencoder.fingerprint,
        plain=counts["plain"],
        augmented=counts["augmented"],
        left_out=left_out,
        psnr_db=psnr,
        files=files,
    )
