"""The log of a run: one JSON line for every stretch of images, one for every batch left out, and others.

In: what each step gave, in the order of steps. Out: `log.jsonl` and `skipped.jsonl`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kilopix.runtime import atomic_path
from kilopix.training.progress import Work

LOG, SKIPPED = "log.jsonl", "skipped.jsonl"
_SUMS: tuple[str, ...] = ("loss", "norm", "most", "steps", "taken", "images", "seconds", "left_out")


class LogWindow:
    """Means over the last stretch of images, written as one JSON line when the stretch is full."""

    def __init__(
        self,
        path: Path | None,
        every: int,
        begun: Mapping[str, float],
        work: Work | None = None,
        on_line: Callable[[Mapping[str, int | float]], None] | None = None,
    ):
        self.path = path
        self.every = every
        self._work = work
        self._on_line = on_line
        self._sums = {name: begun.get(name, 0.0) for name in _SUMS}
        self._last: float | None = None
        self.notes: dict[str, Any] = {}
        """What the next line says beside the means, once."""

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
        return images_seen // self.every > (images_seen - images) // self.every

    @property
    def loss(self) -> float | None:
        """The mean so far, or that of the last stretch; None before any step was taken."""
        return self._mean if self._sums["taken"] else self._last

    @property
    def _mean(self) -> float | None:
        return self._sums["loss"] / self._sums["taken"] if self._sums["taken"] else None

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
            "loss": self._mean,  # null where every batch was left out
            "grad_norm": sums["norm"] / sums["steps"] if sums["steps"] else None,
            "grad_norm_most": sums["most"],
            "lr": lr,
            "images_per_second": sums["images"] / max(sums["seconds"], 1e-9),
            "seconds": seconds,
        }
        if sums["left_out"]:
            line["left_out"] = int(sums["left_out"])
        line |= self.notes
        self.notes = {}
        if self._work is not None:
            line["device_hours"] = self._work.device_hours(seconds)
            utilisation = self._work.utilisation(line["images_per_second"])
            if utilisation is not None:
                line["model_flop_utilisation"] = utilisation
        if self.path is not None:
            append_line(self.path, line)
            if self._on_line is not None:
                self._on_line({name: x for name, x in line.items() if isinstance(x, int | float)})
        self._last = self.loss
        self._sums = dict.fromkeys(_SUMS, 0.0)


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add one line of JSON to a file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def cut_log(path: Path, images_seen: int) -> None:
    """Drop the lines that were written after the checkpoint from which the run goes on."""
    if not path.exists():
        return
    text = path.read_text("utf-8", errors="replace")  # a run that was killed may have cut a character
    lines = [line for line in text.split("\n") if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["images"] <= images_seen]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), "utf-8")


def note_skipped(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line for a batch left out; one that a run meets again after it was killed is there already."""
    text = json.dumps(line, ensure_ascii=False)
    if path.exists() and text in path.read_text("utf-8", errors="replace").split("\n"):
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write(text + "\n")
