"""Commands in a real pseudo-terminal of some width, and what is seen on it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\].*?\x07")


@dataclass(frozen=True)
class Seen:
    """The exit code of a command, what it wrote, and every line of it, also those drawn over later."""

    code: int
    raw: str

    @property
    def lines(self) -> tuple[str, ...]:
        """Without colours, and without empty lines."""
        return tuple(line for line in re.split(r"[\r\n]+", _ESCAPE.sub("", self.raw)) if line.strip())

    @property
    def text(self) -> str:
        """All the lines as one text."""
        return "\n".join(self.lines)


def kilopix(arguments: Sequence[object]) -> list[str]:
    """The command line, as this Python runs it."""
    return [sys.executable, "-m", "kilopix.cli", *map(str, arguments)]


def in_terminal(arguments: Sequence[object], columns: int, cwd: Path | None = None) -> Seen:
    """Run `kilopix ARGUMENTS` in a terminal of 24 lines and so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "CI")}
    process = subprocess.Popen(
        kilopix(arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env=kept | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            some = os.read(ours, 65536)
        except OSError:  # how Linux says that nobody holds the other end any more
            some = b""
        if not some:
            break
        written += some
    os.close(ours)
    return Seen(process.wait(), written.decode("utf-8"))


def in_pipe(arguments: Sequence[object], cwd: Path | None = None) -> Seen:
    """Run `kilopix ARGUMENTS` with both outputs in one pipe."""
    done = subprocess.run(
        kilopix(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        check=False,
    )
    return Seen(done.returncode, done.stdout.decode("utf-8"))
