"""What the user sees of long work: a bar on a terminal, and elsewhere a line a minute.

In: what is done of how much. Out: on a terminal one line that fits its width; in a pipe or a file, such as a
cluster's log, a plain line early and then every minute, also while nothing is finished, so that one sees that
it lives. The time left is said once there is a rate to tell it from, and then from the rate of late.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from kilopix.english import plural
from kilopix.runtime import say

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

FIRST_LINE, EVERY = 5.0, 60.0
"""Seconds to the first line where there is no terminal, and between those that follow."""
BEAT = 1.0
"""Seconds after which the clock is looked at again while nothing is finished."""
WINDOW = 60.0
"""Seconds over which the rate is taken, or longer where little is finished in that time."""
_FEWEST = 3
"""Times that something was finished after the first, which is slower than all others, for a rate."""
_SHORTEST, _LONG = 5.0, 60.0
"""Seconds that these take at least, and seconds after which one time is enough."""
_HELD, _APART = 8, 0.25
_BAR, _GAP = 10, "  "
_PER = (("s", 1), ("min", 60), ("h", 3600))


Value = TypeVar("Value")
_shown: "list[Progress]" = []
"""Those that were entered and not left; the last is the one that is shown."""


def now() -> int | float:
    """Seconds of a clock that never goes back."""
    return time.monotonic()


def clock(seconds: int | float) -> str:
    """A time that has passed, as `0:05` or `1:02:03`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def rough(seconds: int | float) -> str:
    """A time that is estimated, no finer than it can be known: `20 s`, `4 min`, `2.5 h`, `3 days`."""
    if seconds < 55:
        return f"{max(10, 10 * round(seconds / 10))} s"
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


class Progress:
    """How far one piece of work is; enter it, and tell it what is finished.

    Without a `total` there is no bar, and without a `unit` no count. `quiet` shows nothing at all.
    """

    def __init__(
        self,
        title: str,
        total: int | float | None,
        done: int | float = 0.0,
        unit: str = "image",
        quiet: bool = False,
    ):
        self.title, self.total, self.done = title, total, done
        self.notes: Sequence[str] = ()
        self._unit, self._quiet = unit, quiet
        self._begun_with = done
        self._started = now()
        self._next = self._started + FIRST_LINE
        self._ended: int | float | None = None
        self._points: deque[tuple[int | float, int | float]] = deque()
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._held = False
        self._live = None if quiet else _live(self)

    def __enter__(self) -> "Progress":
        if self._quiet:
            return self
        if _shown:
            _shown[-1]._show(False)
        _shown.append(self)
        self._show(True)
        if self._live is None:
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._ended = now()
            self._stop.set()
        if self._quiet:
            return
        self._show(False)
        _shown.remove(self)
        if _shown:
            _shown[-1]._show(True)

    def _show(self, shown: bool) -> None:
        """Be the one that is shown, or let another be."""
        self._held = not shown
        if self._live is not None:
            (self._live.start if shown else self._live.stop)()

    def advance(self, count: int | float = 1) -> None:
        """So much more is finished."""
        self.update(self.done + count)

    def update(self, done: int | float, notes: Sequence[str] | None = None) -> None:
        """So much is finished in all; `notes` are shown where there is room, the first before the last."""
        with self._lock:
            if notes is not None:
                self.notes = notes
            if done != self.done:
                self.done = done
                self._remember(now(), done)
            self._tick()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside is other work, whose time does not count."""
        began = now()
        yield
        with self._lock:
            aside = now() - began
            self._started += aside
            self._points = deque((at + aside, done) for at, done in self._points)

    @property
    def rate(self) -> int | float | None:
        """How much is finished in a second, of late; None before that can be told."""
        return self._pace()[0]

    @property
    def seconds_left(self) -> int | float | None:
        """The time that the rest takes at the present rate; None before that can be told."""
        rate, gap = self._pace()
        if not rate or self.total is None:
            return None
        waited = min(now() - self._points[-1][0], gap)
        return max(0.0, (self.total - self.done) / rate - waited)

    def plain(self) -> str:
        """The line for a pipe or a file."""
        shown = "".join(f", {part}" for part in (*self._facts(), *self.notes))
        if not self._unit:
            return f"{self.title}: {shown.removeprefix(', ')}"
        if self.total is None:
            return f"{self.title}: {self._count()}{shown}"
        share = f"{self.done / max(self.total, 1):.1%}"
        return f"{self.title}: {_whole(self.done)} of {self._counted(self.total)} ({share}){shown}"

    def bar(self, width: int, ascii_only: bool = False) -> "Text":
        """The line for a terminal: bar, count and time in any case, and what else has room in `width`."""
        from rich.text import Text

        passed, rate, left = [*self._facts(short=True), "", ""][:3]
        share = "" if self.total is None else f"{self.done / max(self.total, 1):4.0%}"
        always = [self._count(), passed]
        room = width - sum(len(part) + len(_GAP) for part in always if part)
        title = _cut(self.title, room - (0 if self.total is None else 1 + _BAR))
        length = 0 if self.total is None else max(4, min(room - len(title) - 1, max(_BAR, width // 5)))
        room -= len(title) + bool(length) + length
        kept = []
        for part in (left, share, *self.notes[:1], rate, *self.notes[1:]):  # the most important first
            if part and len(part) + len(_GAP) <= room:
                kept.append(part)
                room -= len(part) + len(_GAP)
        line = Text(title, style="bold", no_wrap=True, overflow="crop", end="")
        if length:
            full = int(length * min(1.0, self.done / max(self.total or 1, 1)))
            mark, rest = ("-", " ") if ascii_only else ("━", "━")
            line.append(" ").append(mark * full, "bar.finished" if full == length else "bar.complete")
            line.append(rest * (length - full), "bar.back")
        colors = {passed: "progress.elapsed", left: "progress.remaining"}
        for part in (always[0], share, passed, left, rate, *self.notes):
            if part and (part in always or part in kept):
                line.append(_GAP).append(part, f"not bold {colors.get(part, '')}".strip())
        line.truncate(width)
        return line

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        with self._lock:
            yield self.bar(options.max_width, options.ascii_only)

    def _facts(self, short: bool = False) -> list[str]:
        """The time that has passed, the rate and the time left, as far as they are known."""
        passed = (self._ended or now()) - self._started
        facts = [clock(passed) if short else f"{clock(passed)} so far"]
        rate, left = self.rate, self.seconds_left
        if self._ended:  # of the whole
            rate, left = (self.done - self._begun_with) / passed if passed >= 1 else None, None
        if rate and self._unit:
            facts.append(self._speed(rate))
            if left is not None:
                facts.append(f"{rough(left)} left" if short else f"about {rough(left)} left")
        return facts

    def _speed(self, rate: int | float) -> str:
        per, seconds = next((unit for unit in _PER if rate * unit[1] >= 1), _PER[-1])
        value = rate * seconds
        number = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        return f"{number} {plural(self._unit)}/{per}"

    def _count(self) -> str:
        if not self._unit:
            return ""
        if self.total is None:
            return self._counted(self.done)
        total = _whole(self.total)
        return f"{_whole(self.done):>{len(total)}}/{total}"

    def _counted(self, count: int | float) -> str:
        return f"{_whole(count)} {self._unit if _whole(count) == '1' else plural(self._unit)}"

    def _pace(self) -> tuple[int | float | None, int | float]:
        """The rate of late, and the usual seconds from one time that something is finished to the next."""
        points, at = self._points, now()
        if not points:
            return None, 0.0
        (began, before), (ended, done) = points[0], points[-1]
        times = len(points) - 1
        if times < _FEWEST or ended - began < _SHORTEST:
            if ended - self._started < _LONG:
                return None, 0.0
            began, before, times = self._started, self._begun_with, len(points)
        gap = (ended - began) / times
        stalled = max(0.0, at - ended - 2 * gap)
        return (done - before) / (ended - began + stalled), gap

    def _remember(self, at: int | float, done: int | float) -> None:
        points = self._points
        if len(points) > 2 and at - points[-2][0] < _APART:
            points.pop()
        points.append((at, done))
        while len(points) > _HELD and points[1][0] < at - WINDOW:
            points.popleft()

    def _tick(self) -> None:
        """Say the line, if it is time to, and nobody else shows theirs."""
        if self._quiet or self._live is not None or self._held or self._stop.is_set():
            return
        if now() >= self._next:
            self._next = now() + EVERY
            say(self.plain())

    def _beat(self) -> None:
        """Look at the clock while nothing is finished."""
        while not self._stop.wait(BEAT):
            with self._lock:
                self._tick()


def _live(shown: Progress):
    """What keeps a line up to date on a terminal; None where there is none."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not sys.stdout.isatty() or not console.is_terminal or console.is_dumb_terminal:
        return None
    return Live(shown, console=console, refresh_per_second=5, transient=not shown._unit)


def _whole(count: int | float) -> str:
    return f"{int(count + 1e-6):,}"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(0, room - 1)].rstrip() + "…"


@contextmanager
def working(title: str, quiet: bool = False) -> Iterator[None]:
    """Inside, or in a function decorated with it, is work of which there is no count: its name is shown, and
    the time that it takes."""
    with Progress(title, None, unit="", quiet=quiet):
        yield


def track(values: Sequence[Value], title: str, unit: str = "image") -> Iterator[Value]:
    """The values one by one, each counted when the next is asked for."""
    with Progress(title, len(values), unit=unit) as shown:
        for value in values:
            yield value
            shown.advance()
