"""Images to captions: one manifest with a row per picture, and the list of files left out.

In: a source of pictures (class folders, a captions file, Parquet, tar), or a manifest whose pictures are
to be described anew. Out: a Parquet manifest. Every file is decoded once, so that a damaged one is named
here and not in the middle of training. A caption is kept as long as its image and all else that it was made
from stay as they are, whatever is added, removed or renamed beside it.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kilopix.artefacts.locks import owns
from kilopix.captioning import (
    NO_CAPTION,
    ModelPart,
    Rule,
    RulePart,
    keep_caption,
    printable,
    with_what_made_it,
)
from kilopix.data.cleaning import Cleaning
from kilopix.data.engines import Engine
from kilopix.data.kept import Kept, content_hashes, digest_of, go_on
from kilopix.data.manifest import (
    Manifest,
    Row,
    earlier,
    failures_path,
    finished,
    from_table,
    is_manifest,
    read_manifest,
    write_manifest,
)
from kilopix.data.parts import Parts, make_parts
from kilopix.data.quality import Fault, examine
from kilopix.data.sources import EVERYTHING, Selection, Source, list_source, tell_classes
from kilopix.data.world.scenes import Scene, load_scenes
from kilopix.english import counted
from kilopix.jobs import PARTS, open_job
from kilopix.pretrained.captioner import ONLY_SPEED, CaptionerConfig
from kilopix.runtime import is_whole, remove_folder, report_left_out, say, sha256_of_file
from kilopix.types import UserError

REDONE: tuple[Fault, ...] = ("empty", "truncated", "loop", "refusal", "duplicate")
ROWS_PER_PART = 1024
ROWS_PER_PART_OF_MODEL = 256
REDO_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Pictures:
    """What is to be captioned, as rows with the captions that the source has, and what is no picture."""

    root: Path
    rows: list[Row]
    unused: list[Row] = field(default_factory=list)
    source: Source | None = None


@owns("out", file=True)
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
    overwrite: bool = False,
) -> Manifest:
    """Caption the selected pictures of `images`; the same command again goes on, or says that it is done.

    Of images that were captioned before in the same way, only those are captioned that are new or changed.
    """
    pictures = read_pictures(images, selection)
    _check_rule(pictures, captioner, images)
    scenes = _scenes(images, captioner)
    contents = content_hashes(pictures.root, [row.path for row in pictures.rows])
    pictures = replace(pictures, rows=with_what_made_it(pictures.rows, contents, captioner, scenes))
    job = _job(digest_of(pictures.rows), captioner, seed, cleaning, selection)
    before = earlier(out, job, "images", overwrite=overwrite)
    if before and before.job == job:
        if before.failed and not is_whole(failures_path(out)):
            report_left_out([(row.path, row.error) for row in before.failed], failures_path(out))
        say(f"{out}: already complete, {counted(len(before.rows), 'caption')}.")
        return before
    rows, earlier_rows = pictures.rows, before.rows if before else []
    gone = _gone(rows, earlier_rows, images, out, overwrite)
    kept = go_on(_parts_folder(out), job, rows, earlier_rows, out, overwrite)
    make = _maker(replace(pictures, rows=kept.left(rows)), captioner, seed, cleaning, device, scenes)
    new = iter(_make_parts(make, out, workers, engine))
    rows = [
        next(new) if known is None else keep_caption(row, known)
        for row, known in zip(rows, kept.rows, strict=True)
    ]
    write_manifest(out, pictures.root, rows + pictures.unused, job)
    _clean_up(out)
    made = read_manifest(out)
    several = sum(bool(row.more) for row in made.rows)
    more = f"; images with several captions: {several}" if several else ""
    if before or kept.count:
        dropped = f", {gone} dropped, since their images are gone" if gone else ""
        more += f"; {kept.count} kept, {len(made.rows) - kept.count} new{dropped}"
    seen = pictures.source.seen if pictures.source else len(pictures.rows)
    told = f"{counted(len(made.rows), 'image')} with captions by {_name(captioner)}"
    say(f"{out}: {told}, of {seen} images and other files that were seen{more}.")
    return made


def _gone(rows: list[Row], before: list[Row], images: Path, out: Path, overwrite: bool) -> int:
    """Of how many captions the image is gone; where most are gone or changed, it is another folder."""
    kept = Kept.of(rows, before)
    if kept.lost > kept.count and not overwrite:
        raise UserError(
            f"{out}: has {len(before)} captions, and {kept.lost} are of images that are no longer in "
            f"{images}, or others there. Is it the folder that is meant? Choose another place for its "
            "captions, or replace them with --overwrite."
        )
    return kept.gone


def _check_rule(pictures: Pictures, captioner: Rule | CaptionerConfig, images: Path) -> None:
    """Refuse a rule for which the source lacks what it needs of every picture, and say what would help."""
    source = pictures.source
    rows = [row for row in pictures.rows if not row.error]
    if source is None or not rows:
        return
    has = f" Its columns are {', '.join(source.columns)}." if source.columns else ""
    if captioner == "given" and not any(row.caption for row in rows):
        raise UserError(
            f"{images}: has no captions: no column, record or text file beside an image called caption or "
            f"text.{has} Name the column with --caption-column, or let --captioner write captions."
        )
    if captioner == "aio" and not any(row.class_name for row in rows):
        raise UserError(
            f"{images}: does not say the class of any image, which aio captions need.{has} Name the column "
            "of labels with --label-column, or take --captioner given or model."
        )


@owns("out", file=True)
def redo(
    manifest: Path,
    out: Path,
    captioner: Rule | CaptionerConfig,
    seed: int = 0,
    cleaning: Cleaning = "recommended",
    device: str = "auto",
    faults: tuple[Fault, ...] = REDONE,
    overwrite: bool = False,
) -> Manifest:
    """Caption anew what the quality report finds fault with, and what got no caption; keep all else.

    A model is sampled at a temperature, since it would say the same again without. Of two captions the
    one with fewer faults is kept, of equals the first. Of several captions of an image, the first is looked
    at, and the others stay.
    """
    if isinstance(captioner, str):
        raise UserError(f"--redo: {captioner} would write the same captions again; use a model or a server.")
    warm = captioner.model_copy(update={"temperature": captioner.temperature or REDO_TEMPERATURE})
    source = read_manifest(manifest)
    job = _job(sha256_of_file(manifest), warm, seed, cleaning)
    job |= {"redo": list(faults)}
    if done := finished(out, job, overwrite):
        say(f"{out}: already complete, {counted(len(done.rows), 'caption')}.")
        return done
    before = _counted(source.rows, faults)
    todo = [source.rows[i] for i in before]
    todo += _split_failed(source)[0]
    made: dict[str, Row] = {}
    if todo:
        make = _maker(Pictures(source.root, todo), warm, seed, cleaning, device, None)
        open_job(_parts_folder(out), PARTS, job, overwrite, shown=out)
        made = {row.path: row for row in _make_parts(make, out, None)}
    rows = [replace(made.get(row.path, row), more=row.more) for row in source.rows]
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
        f"{out}: {mended} of {counted(len(before), 'caption')} with faults replaced, and "
        f"{len(source.failed) - len(failed)} of {counted(len(source.failed), 'picture')} left out "
        "captioned now."
    )
    return read_manifest(out)


def read_pictures(images: Path, selection: Selection = EVERYTHING) -> Pictures:
    """The pictures of a source or of a manifest."""
    if is_manifest(images):
        if selection:
            raise UserError(f"{images}: a manifest has no columns to select by; give the source it is of.")
        manifest = read_manifest(images)
        again, broken = _split_failed(manifest)
        return Pictures(manifest.root, manifest.rows + again, broken)
    source = list_source(images, selection)
    if source.tally:
        say(f"{images}: {source.tally}.")
    for note in source.notes:
        say(note)
    if classes := tell_classes(item.class_name for item in source.items if not item.error):
        say(f"{images}: {classes}.")
    if source.hidden:
        say(f"{images}: {source.hidden} hidden (names that begin with a dot), passed over.")
    rows = [
        Row(item.path, item.class_name, item.caption, error=item.error, more=item.captions[1:])
        for item in source.items
    ]
    unused = [Row(printable(path), "", error=why) for path, why in source.unused]
    return Pictures(source.root, rows, unused, source)


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
    images: str,
    captioner: Rule | CaptionerConfig,
    seed: int,
    cleaning: Cleaning,
    selection: Selection = EVERYTHING,
) -> dict[str, Any]:
    job: dict[str, Any] = {"stage": "caption", "seed": seed, "images": images}
    if selection:
        job["selection"] = repr(selection)
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
) -> RulePart | ModelPart:
    if isinstance(captioner, str):
        return RulePart(pictures.root, pictures.rows, captioner, scenes, seed, ROWS_PER_PART)
    # The device is picked where the model is loaded, which may be another machine.
    return ModelPart(pictures.root, pictures.rows, captioner, cleaning, seed, device, ROWS_PER_PART_OF_MODEL)


def _make_parts(
    make: RulePart | ModelPart, out: Path, workers: int | None, engine: Engine = "local"
) -> list[Row]:
    """All rows, part by part; a model is loaded once by every worker, which is this process by itself."""
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
