"""Images to captions: one manifest with a row per picture, and the list of files left out.

In: class folders. Out: a Parquet manifest. Every file is decoded once, so that a damaged one is named
here and not in the middle of training.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kilopix.data.captions import aio
from kilopix.data.engines import Engine
from kilopix.data.manifest import Manifest, Row, finished, from_table, to_table, write_manifest
from kilopix.data.parts import Parts, make_parts, open_job
from kilopix.data.sources import BrokenImage, SourceItem, class_folders, loose_images, open_image
from kilopix.data.world.captions import short_caption, structured_caption
from kilopix.data.world.scenes import Scene, load_scenes
from kilopix.runtime import remove_folder, say, seed_from, sha256_of_text
from kilopix.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Captioner = Literal["aio", "structured"]
ROWS_PER_PART = 1024


def run(
    images: Path,
    out: Path,
    captioner: Captioner = "aio",
    seed: int = 0,
    workers: int | None = None,
    engine: Engine = "local",
) -> Manifest:
    """Caption every picture below `images`; the same command again goes on, or says that it is done."""
    items = class_folders(images)
    scenes = _scenes(images, captioner)
    sizes = [(item.path, (images / item.path).stat().st_size) for item in items]
    job = {
        "stage": "caption",
        "captioner": captioner,
        "seed": seed,
        "images": sha256_of_text(repr(sizes)),
    }
    if done := finished(out, job):
        say(f"{out}: already complete, {len(done.rows)} captions.")
        return done
    folder = out.with_name(f".{out.stem}.parts")
    open_job(folder, job)
    parts = Parts(folder, -(-len(items) // ROWS_PER_PART))
    make = CaptionPart(images, items, scenes, seed)
    make_parts(parts, make, "caption", len(items), workers, engine)
    rows = [row for table in parts.tables() for row in from_table(table)]
    rows += [Row(name, "", error="not in a class folder") for name in loose_images(images)]
    failed = write_manifest(out, images, rows, job)
    remove_folder(folder)
    say(f"{out}: {len(rows) - len(failed)} captions by {captioner}.")
    return Manifest(images.resolve(), [row for row in rows if not row.error], job)


def _scenes(images: Path, captioner: Captioner) -> dict[str, Scene] | None:
    if captioner == "aio":
        return None
    if not (images / "scenes.jsonl").exists():
        raise UserError(
            f"{images / 'scenes.jsonl'}: not there; structured captions are written from it. `kilopix mini` "
            "makes it for its own pictures; use --captioner aio for others."
        )
    return load_scenes(images)


@dataclass(frozen=True)
class CaptionPart:
    """Makes one part of the manifest; a value, so that it can be sent to another process."""

    images: Path
    items: list[SourceItem]
    scenes: dict[str, Scene] | None
    seed: int

    def __call__(self, part: int) -> "pa.Table":
        """The rows of part number `part`."""
        start = part * ROWS_PER_PART
        return to_table(self._row(item) for item in self.items[start : start + ROWS_PER_PART])

    def _row(self, item: SourceItem) -> Row:
        try:
            item.path.encode()
        except UnicodeEncodeError:
            return Row(ascii(item.path), item.class_name, error="its name is not UTF-8")
        try:
            picture = open_image(self.images / item.path)
        except BrokenImage as error:
            return Row(item.path, item.class_name, error=str(error))
        width, height = picture.size
        if self.scenes is None:
            caption = aio(item.class_name)
            return Row(item.path, item.class_name, caption, caption, width, height)
        if item.path not in self.scenes:
            return Row(item.path, item.class_name, error="not described in scenes.jsonl")
        scene, seed = self.scenes[item.path], seed_from(self.seed, item.path)
        captions = structured_caption(scene, seed), short_caption(scene, seed)
        return Row(item.path, item.class_name, *captions, width, height)
