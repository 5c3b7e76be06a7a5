"""Records of a run as JSON lines, each with the number of images seen.

In: values. Out: `log.jsonl`, `validation.jsonl` and their like, which are cut where a run goes on from an
earlier checkpoint, so that no moment is recorded twice.
"""

import json
from pathlib import Path
from typing import Any

from kilopix.runtime import atomic_path


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add one line to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(values) + "\n")


def cut_lines(path: Path, images_seen: int) -> None:
    """Drop the lines that were written after this moment, and one that was not written to its end."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["images"] <= images_seen]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept))
