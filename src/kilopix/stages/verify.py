"""Shards to a verdict: whole, or what is wrong with which file.

In: a folder of shards. Out: lines on the screen, and an error if anything is wrong.
"""

from pathlib import Path

from kilopix.data.shards import read_index
from kilopix.data.verify import verify
from kilopix.english import counted
from kilopix.progress import Progress
from kilopix.runtime import say
from kilopix.types import UserError

SHOWN = 20


def run(shards: Path) -> None:
    """Check hashes, counts, sizes and finiteness of all files; a fault is a `UserError`."""
    index = read_index(shards)
    with Progress("verify", len(index.files), unit="file") as shown:
        findings = verify(shards, shown.advance)
    for fault in findings.faults[:SHOWN]:
        say(f"  {fault}")
    if findings.faults:
        raise UserError(
            f"{shards}: {counted(len(findings.faults), 'fault')}. A part that is missing or cut short is "
            "made again, alone, if you run `kilopix encode` again as before; delete a damaged one before."
        )
    say(
        f"{shards}: whole. {counted(len(index.files), 'file')}, {index.plain} plain and "
        f"{index.augmented} augmented pictures, text in {index.text_storage} "
        f"cut at {index.text_encoder.get('max_tokens')} tokens."
    )
