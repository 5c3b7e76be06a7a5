"""Pictures and captions to shards: latents and text states, ready for training.

In: a manifest, that of its augmented pictures (or none, if they are made while encoding), and a recipe's
encoders. Out: Arrow shards that explain themselves. A patch codec is fitted on the pictures first, and kept
beside the shards. Of a manifest that has changed since, only what is new is encoded.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kilopix.artefacts.locks import owns
from kilopix.data.augmented import Augmenter, Pictures, load_ahead
from kilopix.data.cutmix import one_class
from kilopix.data.engines import Engine
from kilopix.data.manifest import Manifest, read_manifest
from kilopix.data.part_facts import EMPTY_TEXT, ShardParts, gather
from kilopix.data.parts import make_parts
from kilopix.data.reused import ASIDE, WORK, earlier_job, put_aside
from kilopix.data.rows import write_rows
from kilopix.data.shards import (
    CODEC,
    INDEX,
    ShardIndex,
    read_index,
    write_index,
)
from kilopix.data.trained_on import Origin
from kilopix.data.verify import lost_files
from kilopix.encoding import EncodePart, to_images
from kilopix.english import counted
from kilopix.jobs import JOB, Folder, open_job
from kilopix.model_files import find_weights, load_model
from kilopix.pretrained.autoencoder import (
    load_autoencoder,
)
from kilopix.pretrained.patch_codec import PatchCodec, PatchCodecConfig
from kilopix.progress import working
from kilopix.recipe import Recipe
from kilopix.runtime import (
    name_some,
    pick_device,
    read_json,
    remove_folder,
    report_left_out,
    say,
    seed_from,
    sha256_of_file,
)
from kilopix.types import UserError

ROWS_PER_PART = 1024
FAILURES = "failures.jsonl"
FOLDER = Folder(
    ("plain-*.arrow", "augmented-*.arrow", f"{WORK}/{ASIDE}/*"),
    (INDEX, CODEC, EMPTY_TEXT, FAILURES, f"{WORK}/*"),
)
FIT_IMAGES = 2000
PSNR_IMAGES = 200
RELEASE_SIDE = 256


@owns("out")
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
    codec: Path | str | None = None,
    overwrite: bool = False,
) -> ShardIndex:
    """Encode a manifest into shards; the same command again goes on, or says that it is done.

    `codec` names other shards, or a model, whose patch codec is used instead of one fitted on the images,
    so that a run on them can start from one on those. With `online`, the recipe's augmented pictures are
    made while encoding rather than read. With `stored`, what the published release keeps beside its
    pictures is taken as it is, and nothing plain is encoded.
    """
    if stored:
        _check_release(recipe)
    if online and augmented is not None:
        raise UserError("--online makes the augmented pictures; leave out --augmented, or --online.")
    plain = read_manifest(manifest)
    other = read_manifest(augmented) if augmented else None
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
    if recipe.data.windows != "square":
        job["windows"] = recipe.data.windows
    given = None if codec is None else _given_codec(codec, recipe)
    if given:
        job["codec"] = given.fingerprint
    if (out / INDEX).exists() and read_json(out / JOB) == job:
        index = read_index(out)
        lost = lost_files(out, index)
        if not lost:
            told = f"{counted(index.plain, 'picture')} and {index.augmented:,} augmented"
            say(f"{out}: already complete, {told}.")
            return index
        say(f"{out}: was complete, but these are missing or cut short, and made anew: {name_some(lost)}.")
        for name in (INDEX, *lost):
            (out / name).unlink(missing_ok=True)
    before = None
    if not stored and not FOLDER.unfinished(out):
        before = earlier_job(out, job, plain.rows, overwrite)
    if before and (out / INDEX).exists() and not overwrite:
        raise UserError(
            f"{out}: images or captions have changed since these shards were made. With --overwrite only the "
            "rows that are new or changed are encoded, but runs that were begun on these shards cannot be "
            "resumed on changed ones: finish them first, or choose another folder."
        )
    pictures = _pictures(
        plain, manifest, augmented, other, online, recipe, out, None if before else job, overwrite
    )
    parts = ShardParts.of({kind: len(p) for kind, p in pictures.items()}, out, rows_per_part)
    make = EncodePart(pictures, parts, recipe, out, device, stored)
    if before:
        same = put_aside(out, job, parts, make.rows)
        say(
            f"{out}: {same} of {parts.count} parts stay as they are, and of the others only rows "
            "that are new or changed are encoded."
            + (" The codec stays as it was fitted." if (out / CODEC).exists() else "")
        )
    device = device if engine == "ray" else pick_device(device)
    if given and not (out / CODEC).exists():
        given.save(out / CODEC)
    psnr = _fit_codec(pictures["plain"], out, recipe)
    make = replace(make, device=device)
    total = sum(len(p) for p in pictures.values())
    if workers is None and engine == "local" and device != "cpu":
        workers = torch.cuda.device_count() if device == "cuda" else 1
    make_parts(parts, make, "encode", total, workers, engine, wants_gpu=device != "cpu")
    index, left_out = _index(parts, recipe, out, psnr, job["online"], Origin.of(plain))
    if not index.plain:
        raise UserError(f"{manifest}: none of its pictures could be read below {plain.root}.")
    write_index(out, index)
    remove_folder(out / WORK)
    note = f", PSNR of the codec {psnr:.1f} dB" if psnr else ""
    say(f"{out}: {counted(index.plain, 'picture')} and {index.augmented:,} augmented{note}.")
    report_left_out(left_out, out / FAILURES)
    return index


def _pictures(
    plain: Manifest,
    path: Path,
    augmented: Path | None,
    other: Manifest | None,
    online: bool,
    recipe: Recipe,
    out: Path,
    job: dict[str, Any] | None,
    overwrite: bool,
) -> dict[str, Pictures]:
    """What is to be encoded, by kind; the folder is opened for a new job when all is checked."""
    size, augment = recipe.data.image_size, recipe.data.augment
    known = {row.path for row in plain.rows}
    if other is not None and not any(row.base in known for row in other.rows):
        raise UserError(f"{augmented}: none of its pictures is made from one of the plain manifest.")
    if online and augment.kind == "cutmix" and len({row.class_name for row in plain.rows}) < 2:
        raise UserError(f"{path}: {one_class(row.class_name for row in plain.rows)}")
    if job is not None:
        open_job(out, FOLDER, job, overwrite)
    with working("write the list of images"):
        rows = write_rows(plain, out / WORK / "plain.arrow")
    pictures = {"plain": Pictures(rows, size)}
    if other is not None:
        pictures["augmented"] = Pictures(write_rows(other, out / WORK / "augmented.arrow"), size)
    if online:
        augmenter = Augmenter(rows, augment.kind, augment.setting, size, recipe.seed)
        pictures["augmented"] = Pictures(rows, size, augmenter)
    return pictures


def _check_release(recipe: Recipe) -> None:
    """Refuse a recipe whose encoders are not those of the published release."""
    text, autoencoder = recipe.text, recipe.autoencoder
    if text.kind != "t5" or autoencoder.kind != "sd" or recipe.data.image_size != RELEASE_SIDE:
        raise UserError(
            "--stored: the release holds states of Flan-T5-XL and latents of Stable Diffusion's autoencoder; "
            f"set text.kind=t5, autoencoder.kind=sd and data.image_size={RELEASE_SIDE}."
        )


def _given_codec(name: Path | str, recipe: Recipe) -> PatchCodec:
    """The patch codec of other shards, of a run or of a model, checked against the recipe's settings."""
    config = recipe.autoencoder
    if not isinstance(config, PatchCodecConfig):
        raise UserError(f"--codec: for autoencoder.kind=patch; the recipe's is {config.kind!r}.")
    if (file := Path(name) / CODEC).is_file():
        codec = PatchCodec.load(file)
    elif (Path(name) / INDEX).is_file():
        raise UserError(
            f"--codec {name}: its images were encoded by another autoencoder, without a patch codec."
        )
    else:
        codec = load_model(find_weights(name)).codec
    if codec is None:
        raise UserError(f"--codec {name}: these weights carry no patch codec, and none lies beside them.")
    codec.check(config, str(name))
    return codec


@working("prepare the codec")
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


@working("hash the shards")
def _index(
    parts: ShardParts,
    recipe: Recipe,
    out: Path,
    psnr: float | None,
    augmentation: dict[str, Any],
    origin: Origin,
) -> tuple[ShardIndex, list[tuple[str, str]]]:
    """The index of the finished parts, and the pictures that they lack."""
    gathered = gather([parts.path(i) for i in range(parts.count)], out)
    files = gathered.files | {n: sha256_of_file(out / n) for n in (CODEC, EMPTY_TEXT) if (out / n).exists()}
    facts = gathered.facts
    if (out / CODEC).exists():
        codec = load_autoencoder(recipe.autoencoder, out, "cpu").fingerprint
        if codec != facts.autoencoder_fingerprint:
            raise UserError(
                f"{out / CODEC}: is {codec}, but the parts were made with {facts.autoencoder_fingerprint}: "
                "the images that it is fitted on have changed. Delete the folder, and encode anew."
            )
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
        origin=origin,
        files=files,
    )
    return index, gathered.left_out
