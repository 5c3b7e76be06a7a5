"""Captions to a report of their faults: one JSON file, and a table for the eye.

In: any manifest. Out: how long the captions are, how many have which fault, and which ones they are, so that
`kilopix caption --redo` can make them anew.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from kilopix.data.manifest import Manifest, read_manifest
from kilopix.data.quality import FAULTS, MEANING, Quality, examine
from kilopix.english import counted
from kilopix.jobs import write_report
from kilopix.plain_text import visible
from kilopix.runtime import say


def run(manifest: Path, out: Path | None = None) -> Quality:
    """Examine all captions of a manifest, also further ones of an image, and write and print the report."""
    source = read_manifest(manifest)
    told = [replace(row, caption=text) for row in source.rows for text in (row.caption, *row.more)]
    source = replace(source, rows=told)
    quality = examine([row.caption for row in told], [row.class_name for row in told])
    path = out or manifest.with_name(manifest.stem + ".quality.json")
    write_report(path, report(source, quality), "captions")
    _print(source, quality)
    say(f"{path}: the faults of {len(quality.faults)} of {counted(quality.count, 'caption')}.")
    return quality


def report(source: Manifest, quality: Quality) -> dict[str, Any]:
    """The report as JSON; `faulty` names every caption that has a fault."""
    return {
        "captions": quality.count,
        "words": quality.lengths,
        "histogram_of_words": quality.histogram,
        "faults": quality.counts(),
        "class_named": quality.class_named,
        "without_caption": len(source.failed),
        "faulty": [
            {"path": source.rows[i].path, "faults": faults, "caption": source.rows[i].caption}
            for i, faults in sorted(quality.faults.items())
        ],
    }


def _print(source: Manifest, quality: Quality) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("fault", "captions", "share", "what it is", "an example")
    for fault in FAULTS:
        positions = [i for i, faults in sorted(quality.faults.items()) if fault in faults]
        share = f"{len(positions) / quality.count:.2%}" if quality.count else ""
        example = visible(_short(source.rows[positions[0]].caption)) if positions else ""
        table.add_row(fault, str(len(positions)), share, MEANING[fault], example)
    lengths = Table(*quality.lengths, title="words in a caption")
    lengths.add_row(*(str(length) for length in quality.lengths.values()))
    console = Console(markup=False, highlight=False)
    console.print(lengths)
    console.print(table)
    named = quality.class_named
    if total := sum(named.values()):
        say(
            f"Of {counted(total, 'picture')} with a class, {named['name']} captions name it, "
            f"{named['part']} in part."
        )


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
