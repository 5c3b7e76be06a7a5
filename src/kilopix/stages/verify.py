"""Shards to a verdict: whole, or what is wrong with which file.

In: a folder of shards. Out: lines on the screen, and an error if anything is wrong.
"""

from pathlib import Path

from kilopix.data.shards import read_index
from kilopix.data.verify import verify
from kilopix.runtime import progress_bar, say
from kilopix.types import UserError

SHOWN = 20


def run(shards: Path) -> None:
    """Check hashes, counts, sizes and finiteness of all files; a fault is a `UserError`."""
    index = read_index(shards)
    with progress_bar() as bar:
        task = bar.add_task("verify", total=len(index.files), note="files")
        findings = verify(shards, lambda: bar.advance(task))
    for fault in findings.faults[:SHOWN]:
        say(f"  {fault}")
    if findings.faults:
        raise UserError(
            f"{shards}: {len(findings.faults)} faults. A part that is missing or cut short is made again, "
            "alone, if you run `kilopix encode` again as before; delete a damaged one before."
        )
    say(
        f"{shards}: whole. {len(index.files)} files, {index.plain} plain and {index.augmented} augmented "
        f"pictures, text in {index.text_storage} cut at {index.text_encoder.get('max_tokens')} tokens."
    )
