"""How fast a run is, how well it uses its devices, and how long it will take.

In: steps, and what an image costs. Out: rates over the last stretch, and a bar on a terminal; where the
output is a file, such as a cluster's log, a plain line now and then.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kilopix.runtime import progress_bar, say

STEPS = 50
"""Steps over which the rate on the bar is taken."""
LINE_EVERY = 60.0
"""Seconds between lines where there is no terminal."""


@dataclass(frozen=True)
class Work:
    """What training costs: FLOPs of one image, devices, and the peak of one, if known."""

    flops_per_image: float
    devices: int = 1
    peak_flops: float | None = None

    def utilisation(self, images_per_second: float) -> float | None:
        """Share of the devices' peak that the network's own arithmetic takes (PaLM, appendix B)."""
        if not self.peak_flops:
            return None
        return images_per_second * self.flops_per_image / (self.devices * self.peak_flops)

    def device_hours(self, seconds: float) -> float:
        """Hours of one device."""
        return seconds * self.devices / 3600


@dataclass
class Meter:
    """The rate of the last steps; checkpoints, validation and previews between them do not count."""

    work: Work
    steps: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=STEPS))

    def add(self, images: int, seconds: float) -> None:
        """Take in one step."""
        self.steps.append((images, seconds))

    @property
    def images_per_second(self) -> float:
        """Images over seconds of the last steps; 0 before the first."""
        seconds = sum(s for _, s in self.steps)
        return sum(n for n, _ in self.steps) / seconds if seconds else 0.0

    def note(self, loss: float | None, seconds: float, images_left: int) -> str:
        """The text beside the bar."""
        rate = self.images_per_second
        parts = [] if loss is None else [f"loss {loss:.4f}"]
        parts.append(f"{rate:.1f} images/s")
        if (share := self.work.utilisation(rate)) is not None:
            parts.append(f"MFU {share:.1%}")
        used = self.work.device_hours(seconds)
        left = self.work.device_hours(images_left / rate) if rate else float("nan")
        return "  ".join([*parts, f"{used:.2f} device hours, {left:.2f} left"])


class Display:
    """A bar that moves, or lines that follow one another."""

    def __init__(self, total: int, done: int, every: float = LINE_EVERY):
        self.total = total
        self.done = done
        self._every = every
        self._bar = progress_bar()
        self._plain = not self._bar.console.is_terminal
        self._task = self._bar.add_task("train", total=total, completed=done, note="")
        self._said = self._last = 0.0
        self._note = ""

    def update(self, done: int, note: str) -> None:
        """Show how far the run is."""
        self.done, self._note = done, note
        self._bar.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if self._plain and now - self._said >= self._every:
            self._say(now)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, other work may show a bar of its own."""
        shown = self._bar.live.is_started
        if shown:
            self._bar.stop()
        yield
        if shown:
            self._bar.start()

    def _say(self, now: float) -> None:
        say(f"{self.done:,} of {self.total:,} images ({self.done / self.total:.1%})  {self._note}")
        self._said = now


@contextmanager
def shown_progress(total: int, done: int, quiet: bool = False) -> Iterator[Display]:
    """A display; `quiet` shows nothing, as on all ranks but the first."""
    display = Display(total, done, float("inf") if quiet else LINE_EVERY)
    if quiet or display._plain:
        yield display
        return
    with display._bar:
        yield display
