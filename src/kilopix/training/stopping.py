"""Signals that ask a run to stop: it finishes the step, saves, and ends well."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; what a cluster sends first; Slurm's warning (`--signal=USR1@120`)."""


@dataclass
class Stop:
    """Whether the user, or the cluster, asked the run to stop."""

    asked: bool = False


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Inside, a signal lets the step finish; a second interrupt stops at once."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
