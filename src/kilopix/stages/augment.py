"""Captions to augmented pictures: CutMix or Crop, with geometry and captions that say what is where.

In: a manifest. Out: a folder of pictures and their manifest. A picture is a pure function of
(seed, its id), whatever the number of workers and however often the command was interrupted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilopix.artefacts.locks import delete_temporary, owns
from kilopix.data.augmented import BASE_HASH, Augmenter, Kind
from kilopix.data.cutmix import SettingChoice, check_size, one_class
from kilopix.data.engines import Engine
from kilopix.data.manifest import (
    Manifest,
    Row,
    earlier,
    from_table,
    read_manifest,
    to_table,
    write_manifest,
)
from kilopix.data.parts import Parts, make_parts
from kilopix.data.pixels import save_jpeg
from kilopix.data.rows import Rows, write_rows
from kilopix.data.sources.containers import NO_FILE, BrokenImage, split_reference
from kilopix.english import counted
from kilopix.jobs import JOB, Folder, check_same_job, open_job
from kilopix.runtime import atomic_path, is_whole, name_some, remove_folder, say, sha256_of_file, write_json
from kilopix.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_PART = 512
MANIFEST = "manifest.parquet"
FOLDER = Folder(("parts/part-*", MANIFEST), ("parts/*", "cutmix/*", "crop/*", "manifest.failures.jsonl"))
_QUALITY = 95


@owns("out")
def run(
    manifest: Path,
    out: Path,
    kind: Kind = "cutmix",
    setting: SettingChoice = "all",
    size: int = 256,
    seed: int = 0,
    workers: int | None = None,
    engine: Engine = "local",
    rows_per_part: int = ROWS_PER_PART,
    overwrite: bool = False,
) -> Manifest:
    """Make one augmented picture of every picture; the same command again goes on, or says it is done."""
    source = read_manifest(manifest)
    if kind == "cutmix":
        check_size(size)
        check_classes(source, manifest)
    job = {
        "stage": "augment",
        "kind": kind,
        "setting": setting if kind == "cutmix" else "",
        "size": size,
        "seed": seed,
        "manifest": sha256_of_file(manifest),
        "rows_per_part": rows_per_part,
    }
    done = earlier(out / MANIFEST, job, "manifest", overwrite=overwrite)
    work = out / "parts"
    augmenter = Augmenter(Rows(source.root, work / "rows.arrow"), kind, setting, size, seed)
    if done and done.job == job:
        lost = [row.path for row in done.rows if not is_whole(done.file(row))]
        back = [row.path for row in done.failed if row.error.startswith(NO_FILE) and _is_there(source, row)]
        if not lost and back:
            say(f"{out}: images that were missing are there again: {name_some(back)}.")
        elif not lost:
            say(f"{out}: already complete, {counted(len(done.rows), 'picture')}.")
            return done
        else:
            say(f"{out}: was complete, but these are missing or cut short, and made anew: {name_some(lost)}.")
    elif done:
        _check_mostly_there(source, done, job, out, overwrite)
        write_rows(source, augmenter.rows.file)
        kept = _drop_changed(done, augmenter, source.rows)
        say(f"{out}: images or captions have changed; {kept} of {counted(len(done.rows), 'picture')} stay.")
        write_json(out / JOB, job)
    if done:
        (out / MANIFEST).unlink()
    open_job(out, FOLDER, job, overwrite)
    delete_temporary(out, below=True)
    write_rows(source, augmenter.rows.file)
    parts = Parts(work, -(-len(source.rows) // rows_per_part))
    make = AugmentPart(augmenter, out, rows_per_part)
    make_parts(parts, make, f"augment ({kind})", len(source.rows), workers, engine)
    rows = [row for table in parts.tables() for row in from_table(table)]
    if all(row.error for row in rows):
        remove_folder(work)  # so that all is tried again, when the images are there
    failed = write_manifest(out / MANIFEST, out, rows, job)
    remove_folder(work)
    say(f"{out}: {counted(len(rows) - len(failed), 'picture')} by {kind}.")
    return Manifest(out.resolve(), [row for row in rows if not row.error], job)


def _is_there(source: Manifest, row: Row) -> bool:
    return (source.root / (split_reference(row.path) or (row.path,))[0]).is_file()


def _check_mostly_there(
    source: Manifest, done: Manifest, job: dict[str, Any], out: Path, overwrite: bool
) -> None:
    """Refuse a manifest that lacks most of the images of before: it is of another data set."""
    there = {row.made_from[:BASE_HASH] for row in source.rows}
    if sum(row.made_from[:BASE_HASH] in there for row in done.rows) < len(done.rows) / 2:
        check_same_job(done.job, job, out, overwrite)


def _drop_changed(done: Manifest, augmenter: Augmenter, sources: list[Row]) -> int:
    """Delete the pictures that are made of other images now, or in another way; returns how many stay."""
    planned = {row.path: row for row in map(augmenter.plan, sources)}
    kept = 0
    for row in done.rows:
        new = planned.get(row.path)
        if new is not None and new.made_from and _pixels_of(new) == _pixels_of(row):
            kept += 1
        else:
            done.file(row).unlink(missing_ok=True)
    return kept


def _pixels_of(row: Row) -> tuple[object, ...]:
    return row.made_from, row.setting, row.box, row.partner


def check_classes(source: Manifest, path: Path) -> None:
    """Refuse a manifest of one class, in which CutMix finds no partner."""
    if len({row.class_name for row in source.rows}) < 2:
        raise UserError(f"{path}: {one_class(row.class_name for row in source.rows)}")


@dataclass(frozen=True)
class AugmentPart:
    """Makes the pictures and rows of one part; a value, so that it can be sent to another process."""

    augmenter: Augmenter
    out: Path
    rows_per_part: int

    def __call__(self, part: int) -> "pa.Table":
        """Write the pictures of part number `part` and return their rows."""
        start = part * self.rows_per_part
        rows = self.augmenter.rows.span(start, start + self.rows_per_part)
        return to_table(self._make(row) for row in rows)

    def _make(self, row: Row) -> Row:
        planned = self.augmenter.plan(row)
        if is_whole(self.out / planned.path):  # of this job, which was interrupted
            return planned
        try:
            pixels = self.augmenter.pixels(planned)
        except BrokenImage as error:
            which = f", or its partner {planned.partner}" if planned.partner else ""
            return Row(row.path, row.class_name, error=f"{error} (itself{which})")
        file = self.out / planned.path
        with atomic_path(file, flush=False) as temporary:
            save_jpeg(pixels, temporary, _QUALITY)
        return planned
