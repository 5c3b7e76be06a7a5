"""Signals that ask a run to stop: it finishes the step, saves, and ends well."""

import _thread
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from kilopix.runtime import leave_terminal, say

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C; what a cluster sends first; a lost terminal; Slurm's warning (`--signal=USR1@120`)."""
PATIENCE = 10.0
"""Seconds after the first signal in which a further Ctrl-C is taken for impatience, and changes nothing."""


@dataclass
class Stop:
    """Whether the user, or the cluster, asked the run to stop, and whether at once, without saving."""

    asked: bool = False
    at_once: bool = False
    since: float | None = None
    quiet: bool = False

    def hear(self, number: int, now: float) -> None:
        """Take in a signal when it arrives, and say what follows from it."""
        self.asked = True
        if number == signal.SIGHUP:
            leave_terminal()
        if self.since is None:
            self.since = now
            name = "" if number == signal.SIGINT else f" ({signal.Signals(number).name})"
            self._say(
                f"Stopping after this step{name}, and saving; the same command goes on from there. Another "
                f"Ctrl-C, {PATIENCE:.0f} seconds from now or later, stops without saving."
            )
        elif number == signal.SIGINT and now - self.since < PATIENCE:
            self._say("Still finishing the step, and saving; nothing is lost.")
        elif number == signal.SIGINT:
            self._say("Stopping without saving; the same command goes on from the last checkpoint.")
            self.at_once = True

    def _say(self, text: str) -> None:
        if not self.quiet:
            say(text)


@contextmanager
def stop_on_signal(quiet: bool = False) -> Iterator[Stop]:
    """Inside, a signal lets the step finish; a further Ctrl-C stops at once, if it does not come too soon.

    A thread takes the signals, so that the answer does not wait until the main one is back from the device;
    `quiet` answers nothing, as in all processes but the first.
    """
    stop = Stop(quiet=quiet)

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        if number == signal.SIGHUP:
            leave_terminal()  # whichever thread is sooner
        if stop.at_once and number == signal.SIGINT:
            stop.at_once = False  # raised once, or the second would break off what the first tidies up
            raise KeyboardInterrupt

    def listen() -> None:
        own = 0
        while numbers := os.read(heard, 1):
            if own and numbers[0] == signal.SIGINT:
                own -= 1  # the one from below, which is told here too
                continue
            stop.hear(numbers[0], time.monotonic())
            if stop.at_once:
                own += 1
                _thread.interrupt_main(signal.SIGINT)

    heard, told = os.pipe()
    os.set_blocking(told, False)
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    # Under nohup, a run is to outlive its terminal.
    heeded = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    wakeup = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(told)  # which ends the thread
        thread.join()
        os.close(heard)
