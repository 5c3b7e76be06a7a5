"""Augmented pictures with the captions of a captioner in place of the composed ones.

In: the manifest of augmented pictures, and one that `kilopix caption` wrote of the same files. Out: the
first with the captions of the second, for `kilopix encode --augmented`. The geometry stays.
"""

from dataclasses import replace
from pathlib import Path

from kilopix.data.manifest import Manifest, Row, finished, read_manifest, write_manifest
from kilopix.runtime import say, sha256_of_file
from kilopix.types import UserError


def run(augmented: Path, captions: Path, out: Path) -> Manifest:
    """Write the manifest; a picture without a caption is named and left out."""
    made, said = read_manifest(augmented), read_manifest(captions)
    job = {"stage": "recaption", "augmented": sha256_of_file(augmented), "captions": sha256_of_file(captions)}
    if done := finished(out, job):
        say(f"{out}: already complete, {len(done.rows)} captions.")
        return done
    caption_of = {str((said.root / row.path).resolve()): row for row in said.rows}
    rows = [_with_caption(row, caption_of.get(str((made.root / row.path).resolve()))) for row in made.rows]
    if all(row.error for row in rows):
        raise UserError(
            f"{captions}: holds none of the pictures of {augmented}; caption those first, as by `kilopix "
            f"caption {made.root / rows[0].kind} ...`."
        )
    failed = write_manifest(out, made.root, rows, job)
    say(f"{out}: {len(rows) - len(failed)} pictures with new captions.")
    return Manifest(made.root, [row for row in rows if not row.error], job)


def _with_caption(row: Row, captioned: Row | None) -> Row:
    if captioned is None:
        return replace(row, error="has no caption in the other manifest")
    short = "" if captioned.short == captioned.caption else captioned.short
    return replace(row, caption=captioned.caption, short=short)
