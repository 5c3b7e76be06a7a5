"""Captions to augmented pictures: CutMix or Crop, with geometry and captions that say what is where.

In: a manifest. Out: a folder of pictures and their manifest. A picture is a pure function of
(seed, its id), whatever the number of workers and however often the command was interrupted.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kilopix.data.captions import cropped, with_inset
from kilopix.data.cutmix import Paste, SettingChoice, choose_crop, choose_paste, crop, paste
from kilopix.data.manifest import Manifest, Row, finished, from_table, read_manifest, to_table, write_manifest
from kilopix.data.parts import Parts, make_parts, open_job
from kilopix.data.sources import BrokenImage, open_image, square
from kilopix.runtime import remove_folder, say, seed_from, sha256_of_file
from kilopix.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

Kind = Literal["cutmix", "crop"]
ROWS_PER_PART = 512
MANIFEST = "manifest.parquet"


def run(
    manifest: Path,
    out: Path,
    kind: Kind = "cutmix",
    setting: SettingChoice = "all",
    size: int = 256,
    seed: int = 0,
    workers: int | None = None,
) -> Manifest:
    """Make one augmented picture of every picture; the same command again goes on, or says it is done."""
    source = read_manifest(manifest)
    if kind == "cutmix" and len({row.class_name for row in source.rows}) < 2:
        raise UserError(f"{manifest}: CutMix pastes a picture of another class, and there is only one class.")
    if kind == "cutmix":
        choose_paste(setting, size, random.Random(0))
    job = {
        "stage": "augment",
        "kind": kind,
        "setting": setting if kind == "cutmix" else "",
        "size": size,
        "seed": seed,
        "manifest": sha256_of_file(manifest),
    }
    if done := finished(out / MANIFEST, job):
        say(f"{out}: already complete, {len(done.rows)} pictures.")
        return done
    open_job(out, job)
    parts = Parts(out / "parts", -(-len(source.rows) // ROWS_PER_PART))
    make = AugmentPart(source, out, kind, setting, size, seed)
    make_parts(parts, make, f"augment ({kind})", len(source.rows), workers)
    rows = [row for table in parts.tables() for row in from_table(table)]
    failed = write_manifest(out / MANIFEST, out, rows, job)
    remove_folder(out / "parts")
    say(f"{out}: {len(rows) - len(failed)} pictures by {kind}.")
    return Manifest(out.resolve(), [row for row in rows if not row.error], job)


@dataclass(frozen=True)
class AugmentPart:
    """Makes the pictures and rows of one part; a value, so that it can be sent to another process."""

    source: Manifest
    out: Path
    kind: Kind
    setting: SettingChoice
    size: int
    seed: int

    def __call__(self, part: int) -> "pa.Table":
        """Write the pictures of part number `part` and return their rows."""
        start = part * ROWS_PER_PART
        return to_table(self._make(row) for row in self.source.rows[start : start + ROWS_PER_PART])

    @cached_property
    def _classes(self) -> list[list[Row]]:
        by_class: dict[str, list[Row]] = {}
        for row in self.source.rows:
            by_class.setdefault(row.class_name, []).append(row)
        return [by_class[name] for name in sorted(by_class)]

    def _make(self, row: Row) -> Row:
        rng = random.Random(seed_from(self.kind, self.setting, self.seed, row.path))
        target = (
            f"{self.kind}/{row.path}.jpg"  # its own ending stays, since a.png and a.jpg may both be there
        )
        try:
            picture, made = (self._cutmix if self.kind == "cutmix" else self._crop)(row, target, rng)
        except BrokenImage as error:
            return Row(row.path, row.class_name, error=str(error))
        file = self.out / target
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, "JPEG", quality=95, subsampling=0)
        return made

    def _partner(self, row: Row, rng: random.Random) -> Row:
        """A picture of another class, every picture equally likely."""
        others = [rows for rows in self._classes if rows[0].class_name != row.class_name]
        chosen = rng.choices(others, weights=[len(rows) for rows in others])[0]
        return rng.choice(chosen)

    def _cutmix(self, row: Row, target: str, rng: random.Random) -> "tuple[Image.Image, Row]":
        where: Paste = choose_paste(self.setting, self.size, rng)
        partner = self._partner(row, rng)
        base_picture = square(open_image(self.source.file(row), self.size), self.size)
        partner_picture = square(
            open_image(self.source.file(partner), where.partner_side), where.partner_side
        )
        x0, y0, x1, y1 = (v / self.size for v in where.box)
        box = (x0, y0, x1, y1)
        made = Row(
            path=target,
            class_name=row.class_name,
            caption=with_inset(row.caption, partner.caption, box),
            width=self.size,
            height=self.size,
            kind="cutmix",
            base=row.path,
            setting=where.setting,
            partner=partner.path,
            box=box,
        )
        return paste(base_picture, partner_picture, where), made

    def _crop(self, row: Row, target: str, rng: random.Random) -> "tuple[Image.Image, Row]":
        box = choose_crop(rng)
        picture = crop(open_image(self.source.file(row)), box, self.size)
        made = Row(
            path=target,
            class_name=row.class_name,
            caption=cropped(row.caption, box),
            width=self.size,
            height=self.size,
            kind="crop",
            base=row.path,
            box=box,
        )
        return picture, made
