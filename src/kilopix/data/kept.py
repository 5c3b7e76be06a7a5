"""Rows that hold still: what an earlier manifest, or a run that was cut off, has of the images of now.

In: rows with hashes of what they are made from, and rows that were captioned before. Out: which of them are
kept, which are still to be made, and how many belong to images that are gone.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kilopix.data.manifest import Row, from_table, to_table
from kilopix.data.parts import read_table, write_table
from kilopix.data.sources import BrokenImage, read_picture
from kilopix.jobs import JOB, PARTS, check_same_job, open_job
from kilopix.progress import Progress
from kilopix.runtime import read_json, write_json

_KEPT = "part-kept.arrow"


def content_hashes(root: Path, paths: Sequence[str]) -> list[str]:
    """SHA-256 of the bytes of every image; nothing of one that cannot be read."""

    def look(path: str) -> str:
        try:
            return hashlib.sha256(read_picture(root, path)).hexdigest()
        except (BrokenImage, UnicodeEncodeError):
            return ""

    found = []
    with (
        ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 2)) as pool,
        Progress("look for changes", len(paths)) as shown,
    ):
        for one in pool.map(look, paths):
            found.append(one)
            shown.advance(1)
    return found


def digest_of(rows: Iterable[Row]) -> str:
    """SHA-256 of rows in their order, as hex; it changes when an image or what is known of it does."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@dataclass(frozen=True)
class Kept:
    """For each row the one that was captioned before, or None.

    Of those of before, `gone` have no image any more, and `lost` have none or one that has changed.
    """

    rows: list[Row | None]
    gone: int
    lost: int

    @classmethod
    def of(cls, rows: Sequence[Row], before: Sequence[Row]) -> "Kept":
        """Match by what a row is made from: of the same path first, else of another, as after a renaming."""
        usable = [row for row in before if row.made_from and not row.error]
        by_place = {(row.path, row.made_from): row for row in usable}
        by_content = {row.made_from: row for row in usable}
        found = [
            by_place.get((row.path, row.made_from)) or by_content.get(row.made_from)
            if not row.error
            else None
            for row in rows
        ]
        there = {row.path for row in rows} | {row.path for row in found if row is not None}
        used = {id(row) for row in found if row is not None}
        gone = sum(row.path not in there for row in before)
        return cls(found, gone, sum(id(row) not in used for row in before))

    @property
    def count(self) -> int:
        """How many rows are kept."""
        return sum(row is not None for row in self.rows)

    def left(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows that are still to be made."""
        return [row for row, known in zip(rows, self.rows, strict=True) if known is None]


def go_on(
    folder: Path,
    job: dict[str, Any],
    rows: Sequence[Row],
    before: Sequence[Row],
    shown: Path,
    overwrite: bool = False,
) -> Kept:
    """Open a folder of parts for the rows that neither `before` nor an interrupted run has made.

    A run that is interrupted and goes on with the same images finds its parts as they are. If images have
    changed meanwhile, what its parts hold is put aside, and only what is new is left. `shown` is the file
    that the user named, for messages.
    """
    record = folder / JOB
    aside = from_table(read_table(folder / _KEPT)) if (folder / _KEPT).exists() else []
    kept = Kept.of(rows, [*before, *aside])
    todo = job | {"todo": digest_of(kept.left(rows))}
    if record.exists() and (was := read_json(record)) != todo and not PARTS.unfinished(folder):
        same = {key: was.get(key) for key in ("images", "todo")}
        if check_same_job(was, job | same, shown, overwrite, begun=True):
            for part in sorted(folder.glob("part-[0-9]*.arrow")):
                aside += from_table(read_table(part))
            write_table(folder / _KEPT, to_table(aside).combine_chunks())
            for part in folder.glob("part-[0-9]*.arrow"):
                part.unlink()
        else:
            aside = []
        kept = Kept.of(rows, [*before, *aside])
        todo["todo"] = digest_of(kept.left(rows))
        if aside:
            write_json(record, todo)
    open_job(folder, PARTS, todo, overwrite, shown=shown)
    return kept
