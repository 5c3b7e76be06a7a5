"""The command line as its users see it: in a terminal of some width, or in a pipe."""

import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

KILOPIX = [sys.executable, "-m", "kilopix.cli"]
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")


@dataclass(frozen=True)
class Seen:
    """What a command wrote, and its exit code."""

    code: int
    raw: str

    @property
    def lines(self) -> list[str]:
        """Every line that was ever shown, also those that were drawn over, without colours."""
        return [line.rstrip() for line in re.split(r"[\r\n]+", _ESCAPES.sub("", self.raw)) if line.strip()]

    @property
    def text(self) -> str:
        """All of it, without colours, as one text."""
        return "\n".join(self.lines)


def environment(**more: str) -> dict[str, str]:
    """The environment of a user's shell: nothing that tells rich or pytest how wide the terminal is."""
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    return {**kept, "TERM": "xterm-256color", **more}


def in_terminal(command: list[str], folder: Path, columns: int = 80, **more: str) -> Seen:
    """Run a command in a pseudo-terminal of so many columns, and return all that came out of it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**more),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    parts: list[bytes] = []
    try:
        while chunk := _read(ours):
            parts.append(chunk)
    finally:
        os.close(ours)
    return Seen(process.wait(), b"".join(parts).decode("utf-8", "replace"))


def in_pipe(command: list[str], folder: Path, **more: str) -> Seen:
    """Run a command with both outputs in one pipe, as `kilopix ... 2>&1 | tee log` does."""
    done = subprocess.run(
        command, cwd=folder, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return Seen(done.returncode, done.stdout.decode("utf-8", "replace"))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError as error:
        if error.errno == errno.EIO:  # how Linux says that nobody holds the other end any more
            return b""
        raise
