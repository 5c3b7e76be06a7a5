"""The log of a run: one JSON line for every stretch of images, one for every batch left out, and others.

In: what each step gave, in the order of steps. Out: `log.jsonl` and `skipped.jsonl`.
"""

import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kilopix.english import counted
from kilopix.runtime import atomic_path, say
from kilopix.training.progress import Work

LOG, SKIPPED = "log.jsonl", "skipped.jsonl"
CHECK = "crc32"
"""The last key of a line: a checksum of the rest, by which a damaged line is known."""
_CHECKED = re.compile(rb'"crc32": "[0-9a-f]{8}"}\s*$')
_MOST = 10**15
"""A number that is larger is damage."""
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
    """Add one line of JSON to a log."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(_checked_line(values))


def _checked_line(values: Mapping[str, Any]) -> str:
    return json.dumps({**values, CHECK: _checksum(values)}) + "\n"


def _checksum(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(dict(values)).encode()):08x}"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, none where there is no file; those that a log cannot hold are skipped, and counted.

    A log is never a reason not to train, nor to show what it holds: a killed run or a bad disk may have left
    anything in it.
    """
    if not path.is_file():
        return []
    lines, skipped, unfinished = lines_of_log(path)
    if skipped or unfinished:
        say(skipped_lines(path, skipped + unfinished))
    elif not lines:
        say(f"{path}: holds no line.")
    return lines


def skipped_lines(path: Path, count: int) -> str:
    """How to say that lines of a log are skipped."""
    return f"{path}: {counted(count, 'line')} skipped that cannot be read."


def lines_of_log(path: Path) -> tuple[list[dict[str, Any]], int, bool]:
    """The lines of a log, how many others there are, and whether the last one is unfinished."""
    *texts, last = path.read_bytes().split(b"\n")
    checked = any(_CHECKED.search(text) for text in texts)  # a line without is then damaged
    found = [_line_of_log(text, path.name, checked) for text in texts if text.strip()]
    lines = [line for line in found if line is not None]
    whole = _line_of_log(last, path.name, checked)
    return [*lines, *([whole] if whole else [])], len(found) - len(lines), bool(last and not whole)


def _line_of_log(text: bytes, name: str, checked: bool) -> dict[str, Any] | None:
    """A line with all that is read of the log of this name, each in its place."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):  # the first also where bytes are no UTF-8
        return None
    if not isinstance(line, dict):
        return None
    said = line.pop(CHECK, None)  # which those of earlier versions, and other programs', lack
    if (checked or said is not None) and said != _checksum(line):
        return None
    images = line.get("images")
    if not isinstance(images, int) or isinstance(images, bool) or not 0 <= images <= _MOST:
        return None
    return line if _SOUND.get(name, _is_training)(line) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST


def _is_training(line: dict[str, Any]) -> bool:
    loss = line.get("loss", "")
    return (loss is None or _is_number(loss)) and all(map(_is_number, map(line.get, _SHOWN)))


def _is_validation(line: dict[str, Any]) -> bool:
    t, losses = line.get("t"), line.get("losses")
    if not (isinstance(t, list) and isinstance(losses, list) and 0 < len(t) == len(losses)):
        return False
    texts = isinstance(line.get("set"), str) and isinstance(line.get("weights"), str)
    return texts and all(map(_is_number, [*t, *losses]))


def _are_scores(line: dict[str, Any]) -> bool:
    return all(map(_is_number, line.values()))


_SHOWN = ("images_per_second", "seconds")
_SOUND: dict[str, Callable[[dict[str, Any]], bool]] = {
    "validation.jsonl": _is_validation,
    "scores.jsonl": _are_scores,
}


def cut_log(path: Path, images_seen: int) -> None:
    """Drop the lines that were written after the checkpoint from which the run goes on."""
    if not path.exists():
        return
    kept = [line for line in read_log(path) if line["images"] <= images_seen]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(map(_checked_line, kept)), "utf-8")


def note_skipped(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line for a batch left out; one that a run meets again after it was killed is there already."""
    text = _checked_line(line)
    if path.exists() and text.rstrip("\n") in path.read_text("utf-8", errors="replace").split("\n"):
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
