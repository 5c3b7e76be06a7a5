"""How many requests a server is sent at once: more while it copes, half when it does not.

In: what became of each request. Out: leave to send the next one. Additive increase and multiplicative
decrease, as TCP has it (Chiu and Jain, 1989).
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_START = 4
_BACKOFF = 0.5  # seconds before the second try; doubled for each further one
_LONGEST_WAIT = 60.0
_LONGEST_PAUSE = 600.0  # that a server may ask for


@dataclass
class Lease:
    """One request that may be sent; `overloaded` is set if the server could not cope with it."""

    begun: float
    overloaded: bool = False


class AdaptiveLimit:
    """A limit that threads share; `pause` holds all of them back."""

    def __init__(self, most: int):
        self.limit = float(min(_START, most))
        self._most = most
        self._running = 0
        self._changed = threading.Condition()
        self._pause_until = 0.0
        self._last_decrease = 0.0

    @contextmanager
    def one(self) -> Iterator[Lease]:
        """Wait for leave to send a request, and learn from what became of it."""
        with self._changed:
            while True:
                wait = self._pause_until - time.monotonic()
                if wait <= 0 and self._running < int(self.limit):
                    break
                self._changed.wait(wait if wait > 0 else None)
            self._running += 1
        lease = Lease(time.monotonic())
        try:
            yield lease
        finally:
            with self._changed:
                self._running -= 1
                self._learn(lease)
                self._changed.notify_all()

    def _learn(self, lease: Lease) -> None:
        if not lease.overloaded:
            self.limit = min(self._most, self.limit + 1 / self.limit)
        elif lease.begun > self._last_decrease:
            # Requests that were under way at the last decrease tell nothing of the limit since.
            self.limit = max(1.0, self.limit / 2)
            self._last_decrease = time.monotonic()

    def pause(self, seconds: float) -> None:
        """Send nothing for a while, as the server asked."""
        with self._changed:
            self._pause_until = max(self._pause_until, time.monotonic() + min(seconds, _LONGEST_PAUSE))


def backoff(failed: int) -> float:
    """Seconds to wait after the given number of failed tries: doubling, and anywhere below, so that many
    threads do not come back at once."""
    return random.uniform(0, min(_LONGEST_WAIT, _BACKOFF * 2**failed))
