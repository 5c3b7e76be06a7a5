"""Images to captions: one manifest with a row per picture, and the list of files left out.

In: a source of pictures (class folders, a captions file, Parquet, tar), or a manifest whose pictures are
to be described anew. Out: a Parquet manifest. Every file is decoded once, so that a damaged one is named
here and not in the middle of training.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kilopix.data.captions import aio
from kilopix.data.cleaning import Cleaning, clean
from kilopix.data.engines import Engine
from kilopix.data.manifest import (
    Manifest,
    Row,
    finished,
    from_table,
    is_manifest,
    read_manifest,
    to_table,
    write_manifest,
)
from kilopix.data.parts import Parts, make_parts, open_job
from kilopix.data.quality import Fault, examine
from kilopix.data.sources import EVERYTHING, BrokenImage, Selection, list_source, open_picture
from kilopix.data.world.captions import short_caption, structured_caption
from kilopix.data.world.scenes import Scene, load_scenes
from kilopix.pretrained.captioner import ONLY_SPEED, Captioner, CaptionerConfig, load_captioner
from kilopix.runtime import pick_device, remove_folder, say, seed_from, sha256_of_file, sha256_of_text
from kilopix.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

Rule = Literal["aio", "structured", "given"]
"""Captions without a model: from the class name, from scenes.jsonl, or as the source has them."""

REDONE: tuple[Fault, ...] = ("empty", "truncated", "loop", "refusal", "duplicate")
NO_CAPTION = "no caption: "
"""How the error of a picture begins that is whole, but that the captioner could not describe."""

ROWS_PER_PART = 1024
ROWS_PER_PART_OF_MODEL = 256
REDO_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Pictures:
    """What is to be captioned, as rows with the captions that the source has, and what is no picture."""

    root: Path
    rows: list[Row]
    fingerprint: str
    unused: list[Row] = field(default_factory=list)


def run(
    images: Path,
    out: Path,
    captioner: Rule | CaptionerConfig = "aio",
    seed: int = 0,
    workers: int | None = None,
    cleaning: Cleaning = "recommended",
    device: str = "auto",
    engine: Engine = "local",
    selection: Selection = EVERYTHING,
) -> Manifest:
    """Caption the selected pictures of `images`; the same command again goes on, or says that it is done."""
    pictures = read_pictures(images, selection)
    scenes = _scenes(images, captioner)
    job = _job(pictures, captioner, seed, cleaning)
    if done := finished(out, job):
        say(f"{out}: already complete, {len(done.rows)} captions.")
        return done
    make = _maker(pictures, captioner, seed, cleaning, device, scenes)
    rows = _make_all(make, out, job, workers, engine)
    failed = write_manifest(out, pictures.root, rows + pictures.unused, job)
    _clean_up(out)
    say(f"{out}: {len(rows) + len(pictures.unused) - len(failed)} captions by {_name(captioner)}.")
    return read_manifest(out)


def redo(
    manifest: Path,
    out: Path,
    captioner: Rule | CaptionerConfig,
    seed: int = 0,
    cleaning: Cleaning = "recommended",
    device: str = "auto",
    faults: tuple[Fault, ...] = REDONE,
) -> Manifest:
    """Caption anew what the quality report finds fault with, and what got no caption; keep all else.

    A model is sampled at a temperature, since it would say the same again without. Of two captions the
    one with fewer faults is kept, of equals the first.
    """
    if isinstance(captioner, str):
        raise UserError(f"--redo: {captioner} would write the same captions again; use a model or a server.")
    warm = captioner.model_copy(update={"temperature": captioner.temperature or REDO_TEMPERATURE})
    source = read_manifest(manifest)
    job = _job(Pictures(source.root, [], sha256_of_file(manifest)), warm, seed, cleaning)
    job |= {"redo": list(faults)}
    if done := finished(out, job):
        say(f"{out}: already complete, {len(done.rows)} captions.")
        return done
    before = _counted(source.rows, faults)
    todo = [source.rows[i] for i in before]
    todo += _split_failed(source)[0]
    made: dict[str, Row] = {}
    if todo:
        make = _maker(Pictures(source.root, todo, job["images"]), warm, seed, cleaning, device, None)
        made = {row.path: row for row in _make_all(make, out, job, None)}
    rows = [made.get(row.path, row) for row in source.rows]
    after = _counted(
        [row if row.error == "" else old for row, old in zip(rows, source.rows, strict=True)], faults
    )
    kept = [
        old if new.error or (i in before and after.get(i, 0) >= before[i]) else new
        for i, (new, old) in enumerate(zip(rows, source.rows, strict=True))
    ]
    late = [made.get(row.path, row) for row in source.failed]
    failed = write_manifest(out, source.root, kept + late, job)
    _clean_up(out)
    mended = sum(old != new for old, new in zip(source.rows, kept, strict=True))
    say(
        f"{out}: {mended} of {len(before)} captions with faults are replaced, and "
        f"{len(source.failed) - len(failed)} of {len(source.failed)} pictures left out have a caption now."
    )
    return read_manifest(out)


def read_pictures(images: Path, selection: Selection = EVERYTHING) -> Pictures:
    """The pictures of a source or of a manifest, with a fingerprint that changes when they do."""
    if is_manifest(images):
        if selection:
            raise UserError(f"{images}: a manifest has no columns to select by; give the source it is of.")
        manifest = read_manifest(images)
        again, broken = _split_failed(manifest)
        return Pictures(manifest.root, manifest.rows + again, sha256_of_file(images), broken)
    source = list_source(images, selection)
    if source.tally:
        say(f"{images}: {source.tally}.")
    rows = [Row(item.path, item.class_name, item.caption, error=item.error) for item in source.items]
    unused = [Row(_printable(path), "", error=why) for path, why in source.unused]
    return Pictures(source.root, rows, source.fingerprint(), unused)


def _split_failed(manifest: Manifest) -> tuple[list[Row], list[Row]]:
    """Of the rows left out of a manifest, those that only lack a caption, and the broken ones."""
    lacking = [row for row in manifest.failed if row.error.startswith(NO_CAPTION)]
    broken = [row for row in manifest.failed if not row.error.startswith(NO_CAPTION)]
    return [replace(row, error="") for row in lacking], broken


def _counted(rows: list[Row], faults: tuple[Fault, ...]) -> dict[int, int]:
    """How many of the given faults each row has that has some."""
    quality = examine([row.caption for row in rows], [row.class_name for row in rows])
    found = {i: len(set(have) & set(faults)) for i, have in quality.faults.items()}
    return {i: count for i, count in found.items() if count}


def _job(
    pictures: Pictures, captioner: Rule | CaptionerConfig, seed: int, cleaning: Cleaning
) -> dict[str, Any]:
    job: dict[str, Any] = {"stage": "caption", "seed": seed, "images": sha256_of_text(pictures.fingerprint)}
    if isinstance(captioner, str):
        return job | {"captioner": captioner}
    return job | {"captioner": captioner.model_dump(exclude=ONLY_SPEED), "cleaning": cleaning}


def _name(captioner: Rule | CaptionerConfig) -> str:
    return captioner if isinstance(captioner, str) else f"a {captioner.kind}"


def _scenes(images: Path, captioner: Rule | CaptionerConfig) -> dict[str, Scene] | None:
    if captioner != "structured":
        return None
    if not (images / "scenes.jsonl").exists():
        raise UserError(
            f"{images / 'scenes.jsonl'}: not there; structured captions are written from it. `kilopix mini` "
            "makes it for its own pictures; use --captioner aio for others."
        )
    return load_scenes(images)


def _maker(
    pictures: Pictures,
    captioner: Rule | CaptionerConfig,
    seed: int,
    cleaning: Cleaning,
    device: str,
    scenes: dict[str, Scene] | None,
) -> "RulePart | ModelPart":
    if isinstance(captioner, str):
        return RulePart(pictures.root, pictures.rows, captioner, scenes, seed, ROWS_PER_PART)
    # The device is picked where the model is loaded, which may be another machine.
    return ModelPart(pictures.root, pictures.rows, captioner, cleaning, seed, device, ROWS_PER_PART_OF_MODEL)


def _make_all(
    make: "RulePart | ModelPart",
    out: Path,
    job: dict[str, Any],
    workers: int | None,
    engine: Engine = "local",
) -> list[Row]:
    """All rows, part by part; a model is loaded once by every worker, which is this process by itself."""
    open_job(_parts_folder(out), job)
    parts = Parts(_parts_folder(out), -(-len(make.rows) // make.rows_per_part))
    is_model = isinstance(make, ModelPart)
    # A server has one caller, which keeps it busy; a model has a worker for every GPU that is asked for.
    workers = 1 if is_model and (engine == "local" or make.config.kind == "server") else workers
    wants_gpu = is_model and make.config.kind != "server" and make.device != "cpu"
    make_parts(parts, make, "caption", len(make.rows), workers, engine, wants_gpu)
    return [row for table in parts.tables() for row in from_table(table)]


def _parts_folder(out: Path) -> Path:
    return out.with_name(f".{out.stem}.parts")


def _clean_up(out: Path) -> None:
    remove_folder(_parts_folder(out))


def _printable(path: str) -> str:
    """The path, or where its bytes are no UTF-8, an escaped form that can be written to a file."""
    return path if _is_utf8(path) else ascii(path)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class _Opened:
    """A row whose picture has been opened: its size is known, or why it cannot be used."""

    row: Row
    picture: "Image.Image | None" = None


def _open(root: Path, row: Row) -> _Opened:
    if not _is_utf8(row.path):
        return _Opened(replace(row, path=ascii(row.path), error="its name is not UTF-8"))
    if row.error:
        return _Opened(row)
    try:
        picture = open_picture(root, row.path)
    except BrokenImage as error:
        return _Opened(replace(row, error=str(error)))
    return _Opened(replace(row, width=picture.width, height=picture.height), picture)


@dataclass(frozen=True)
class RulePart:
    """Makes one part of the manifest by a rule; a value, so that it can be sent to another process."""

    root: Path
    rows: list[Row]
    rule: Rule
    scenes: dict[str, Scene] | None
    seed: int
    rows_per_part: int

    def __call__(self, part: int) -> "pa.Table":
        """The rows of part number `part`."""
        start = part * self.rows_per_part
        return to_table(self._row(row) for row in self.rows[start : start + self.rows_per_part])

    def _row(self, row: Row) -> Row:
        row = _open(self.root, row).row
        if row.error:
            return row
        if self.rule == "given":
            return row if row.caption else replace(row, error="the source has no caption for it")
        if self.rule == "aio":
            if not row.class_name:
                return replace(row, error="the source does not say its class, which aio captions need")
            return replace(row, caption=aio(row.class_name), short=aio(row.class_name))
        if self.scenes is None or row.path not in self.scenes:
            return replace(row, error="not described in scenes.jsonl")
        scene, seed = self.scenes[row.path], seed_from(self.seed, row.path)
        return replace(row, caption=structured_caption(scene, seed), short=short_caption(scene, seed))


@dataclass(frozen=True)
class ModelPart:
    """Makes one part of the manifest with a captioner, which is loaded where the first part is made."""

    root: Path
    rows: list[Row]
    config: CaptionerConfig
    cleaning: Cleaning
    seed: int
    device: str
    rows_per_part: int

    @cached_property
    def _captioner(self) -> Captioner:
        return load_captioner(self.config, pick_device(self.device))

    def __call__(self, part: int) -> "pa.Table":
        """The rows of part number `part`."""
        start = part * self.rows_per_part
        rows = self.rows[start : start + self.rows_per_part]
        opened: dict[int, Row] = {}
        loads = [partial(self._load, i, row, opened) for i, row in enumerate(rows)]
        answers = self._captioner.caption(loads, seed_from(self.seed, part))
        return to_table(self._told(opened[i], answer.text, answer.error) for i, answer in enumerate(answers))

    def _load(self, i: int, row: Row, opened: dict[int, Row]) -> "Image.Image | None":
        found = _open(self.root, row)
        opened[i] = found.row
        return found.picture

    def _told(self, row: Row, text: str, error: str) -> Row:
        if row.error:
            return row
        caption = clean(text, self.cleaning) if not error else ""
        if not caption:
            return replace(
                row, caption="", error=NO_CAPTION + (error or "the captioner's answer has no words")
            )
        return replace(
            row, caption=caption, short=row.short or (aio(row.class_name) if row.class_name else "")
        )
