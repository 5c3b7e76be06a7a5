"""The log of a run: one JSON line for every stretch of images, and one for every batch left out.

In: what each step gave, in the order of steps. Out: `log.jsonl` and `skipped.jsonl`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kilopix.runtime import atomic_path

LOG, SKIPPED = "log.jsonl", "skipped.jsonl"
_SUMS: tuple[str, ...] = ("loss", "norm", "most", "steps", "taken", "images", "seconds", "left_out")


class LogWindow:
    """Means over the last stretch of images, written as one JSON line when the stretch is full."""

    def __init__(self, path: Path | None, every: int, begun: Mapping[str, float]):
        self.path = path
        self.every = every
        self._sums = {name: begun.get(name, 0.0) for name in _SUMS}
        self.note = ""

    def add(
        self, images_seen: int, loss: float, norm: float, taken: bool, images: int, seconds: float
    ) -> bool:
        """Take in a step after which so many images were seen; whether the stretch is full."""
        sums = self._sums
        sums["seconds"] += seconds
        sums["images"] += images
        if taken:
            sums["loss"] += loss * images
            sums["taken"] += images
            sums["norm"] += norm
            sums["most"] = max(sums["most"], norm)
            sums["steps"] += 1
        else:
            sums["left_out"] += 1
        full = images_seen // self.every > (images_seen - images) // self.every
        if full or not self.note:
            mean, rate = sums["loss"] / max(1, sums["taken"]), sums["images"] / max(sums["seconds"], 1e-9)
            self.note = f"loss {mean:.4f}  {rate:.1f} images/s"
        return full

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps of the stretch that is not full."""
        return dict(self._sums)

    def flush(self, images_seen: int, lr: float, seconds: float) -> None:
        """Write the line of what was taken in since the last."""
        sums = self._sums
        if not sums["images"]:
            return
        line: dict[str, Any] = {
            "images": images_seen,
            "loss": sums["loss"] / max(1, sums["taken"]),
            "grad_norm": sums["norm"] / max(1, sums["steps"]),
            "grad_norm_most": sums["most"],
            "lr": lr,
            "images_per_second": sums["images"] / max(sums["seconds"], 1e-9),
            "seconds": seconds,
        }
        if sums["left_out"]:
            line["left_out"] = int(sums["left_out"])
        if self.path is not None:
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")
        self._sums = dict.fromkeys(_SUMS, 0.0)


def cut_log(path: Path, images_seen: int) -> None:
    """Drop the lines that were written after the checkpoint from which the run goes on."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["images"] <= images_seen]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept))


def note_skipped(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line for a batch left out; one that a run meets again after it was killed is there already."""
    text = json.dumps(line, ensure_ascii=False)
    if path.exists() and text in path.read_text().splitlines():
        return
    with open(path, "a") as file:
        file.write(text + "\n")
