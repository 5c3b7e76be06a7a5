"""One owner of an output: who writes to a folder or a file says so beside it, and nobody else writes there.

In: a place, and the command that is to write there. Out: a lock file, `FOLDER/.kilopix.lock` or
`.NAME.lock` beside a file, with host, process and time. It is made in one step that works on network file
systems too, and its owner touches it every `BEAT` seconds. A lock whose owner is dead is taken over: on the
machine of the owner the process is looked for, on another one the lock has not been touched for `PATIENCE`
seconds, by the clock of the file system.
"""

import contextlib
import errno
import functools
import glob
import hashlib
import inspect
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from kilopix.errors import UserError

FOLDER_LOCK = ".kilopix.lock"
BEAT = 15.0
PATIENCE = 180.0
"""Longer than any cache of file attributes, as NFS has them, and several beats."""
POLL = 1.0
STALE = 3600.0
"""Seconds after which a temporary file of another machine is nobody's."""
_TEMPORARY = re.compile(r"\..*\.(?P<tag>[0-9a-f]{6})-(?P<process>\d+)\.tmp")
_LONGEST = 120  # bytes of a name that a temporary one repeats
_held: dict[Path, int] = {}  # the thread of this process that holds a lock

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Owner:
    """Who writes to a place; `machine` is one boot of one machine, `start` tells equal numbers apart."""

    command: str
    host: str
    machine: str
    process: int
    start: str
    since: str
    token: str

    @classmethod
    def here(cls, command: str) -> "Owner":
        """This process."""
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        process = os.getpid()
        return cls(command, socket.gethostname(), machine(), process, _start(process), now, uuid.uuid4().hex)

    @classmethod
    def read(cls, text: str) -> "Owner | None":
        """The owner that a lock file names; None if it names none."""
        try:
            values = json.loads(text)
            owner = cls(**values)
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = {field.name: int if field.name == "process" else str for field in fields(cls)}
        return owner if all(type(getattr(owner, name)) is kind for name, kind in kinds.items()) else None

    def is_dead(self) -> bool | None:
        """Whether its process has ended; None where that cannot be seen from here."""
        if self.machine != machine():
            return None
        return _has_ended(self.process) or _start(self.process) != self.start

    def __str__(self) -> str:
        where = "" if self.machine == machine() else f" on {self.host}"
        return f"`kilopix {self.command}` (process {self.process}{where}, since {self.since})"


@functools.cache
def machine() -> str:
    """What tells one boot of one machine, and one container with processes of its own, from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _has_ended(process: int) -> bool:
    """Whether no process of this machine has the number, or one that only waits to be forgotten."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return _start(process) == ""


def _start(process: int) -> str:
    """When a process began, in the system's own count; empty if it has ended, `?` where that is not told."""
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except FileNotFoundError:
        return "" if Path("/proc/self/stat").exists() else "?"
    except OSError:
        return "?"
    return "" if state in "ZX" else rest[18]


def temporary_beside(path: Path) -> Path:
    """The name under which this process writes what becomes `path`: hidden, and no other process's."""
    return path.with_name(f".{_short(path.name)}.{_tag()}-{os.getpid()}.tmp")


@functools.cache
def _tag() -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, machine()).hex[:6]


def _short(name: str) -> str:
    """A name, cut so that more can be put to it; what was cut is told by a hash."""
    content = os.fsencode(name)
    if len(content) <= _LONGEST:
        return name
    return f"{content[:_LONGEST].decode('utf-8', 'ignore')}~{hashlib.sha256(content).hexdigest()[:8]}"


def delete_temporary(folder: Path, below: bool = False) -> None:
    """Delete what killed processes left half-written in a folder, or also `below` it.

    What a process of this machine wrote goes if that has ended; of another one, what is older than `STALE`.
    """
    for entry in folder.rglob(".*.tmp") if below else folder.glob(".*.tmp"):
        _delete_if_left(entry)


def _delete_if_left(entry: Path) -> None:
    match = _TEMPORARY.fullmatch(entry.name)
    if match is None:
        return
    with contextlib.suppress(FileNotFoundError):
        if match["tag"] == _tag():
            left = _has_ended(int(match["process"]))
        else:
            left = _now(entry) - entry.lstat().st_mtime > STALE
        if left and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif left:
            entry.unlink()


def owns(name: str, file: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A stage owns the folder, or the file, that is its argument `name`, while it runs."""

    def decorate(run: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(run)
        command = run.__module__.rpartition(".")[2].replace("_", "-")

        @functools.wraps(run)
        def owning(*args: P.args, **kwargs: P.kwargs) -> R:
            place = signature.bind(*args, **kwargs).arguments[name]
            with own_file(place, command) if file else own_folder(place, command):
                return run(*args, **kwargs)

        return owning

    return decorate


@contextlib.contextmanager
def own_folder(folder: Path, command: str, wait: bool = False) -> Iterator[None]:
    """Inside, this process alone writes to the folder, which is made if it is not there.

    Raises `UserError` that names the owner if there is one; with `wait` it is waited for instead. A folder
    that was made and is still empty at the end is removed again.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file is there; choose another folder.")
    with _made(folder), _own(folder, folder / FOLDER_LOCK, command, wait) as after_dead:
        delete_temporary(folder, after_dead)
        yield


@contextlib.contextmanager
def own_file(file: Path, command: str, wait: bool = False) -> Iterator[None]:
    """Inside, this process alone writes the file, or the folder that is replaced whole; see `own_folder`."""
    lock = file.with_name(f".{_short(file.name)}.lock")
    with _made(file.parent), _own(file, lock, command, wait):
        for litter in file.parent.glob(f".{glob.escape(_short(file.name))}.*.tmp"):
            _delete_if_left(litter)
        yield


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; of these, what is empty at the end is removed again."""
    missing = []
    for one in (folder, *folder.parents):
        if one.exists():
            break
        missing.append(one)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another place.") from None
    try:
        yield
    finally:
        for empty in missing:
            with contextlib.suppress(OSError):  # not empty, or gone
                empty.rmdir()


@contextlib.contextmanager
def _own(place: Path, lock: Path, command: str, wait: bool) -> Iterator[bool]:
    """Hold a lock; yields whether it was that of a process that has died."""
    lock = lock.parent.resolve() / lock.name
    if _held.get(lock) == threading.get_ident():  # a command within a command, as those of the demo
        yield False
        return
    owner = Owner.here(command)
    after_dead = _take(place, lock, owner, wait)
    if after_dead is None:  # nothing can be written there, which what follows will say
        yield False
        return
    _held[lock] = threading.get_ident()
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(place, lock, owner, ended), name="lock", daemon=True)
    beats.start()
    try:
        yield after_dead
    finally:
        ended.set()
        del _held[lock]
        if os.getpid() == owner.process and _read(lock) == owner:
            lock.unlink(missing_ok=True)


def _take(place: Path, lock: Path, owner: Owner, wait: bool) -> bool | None:
    """Make the lock file; whether in place of a dead process's. None where it cannot be written."""
    seen = told = None
    after_dead = False
    while True:
        try:
            if _make(lock, owner):
                return after_dead
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return None
            raise UserError(f"{place}: cannot be written to ({error.strerror}).") from None
        holder, touched = _read(lock), _touched(lock)
        if touched is None:
            continue  # it ended just now
        dead = holder.is_dead() if holder else None
        seen = touched if seen is None else seen
        silent = _now(lock) - touched
        if dead or (dead is None and silent > PATIENCE):
            _remove(lock, holder)
            after_dead = True
            continue
        # Of an owner on another machine it is not known whether it lives, until it touches its lock.
        unknown = dead is None and touched == seen
        who = holder or "another process"
        if not (wait or unknown):
            raise UserError(f"{place}: in use by {who}. Wait until it has ended, or choose another place.")
        if told != (told := (holder, unknown)):
            doubt = f" to see whether it is alive ({PATIENCE:.0f} s at most)" if unknown else ""
            print(f"{place}: in use by {who}; waiting{doubt} ...", file=sys.stderr, flush=True)
        time.sleep(POLL)


def _make(lock: Path, owner: Owner) -> bool:
    """Make the lock file, whole from its first moment; whether there was none."""
    content = json.dumps(asdict(owner)).encode()
    temporary = lock.with_name(f".{lock.name}.{owner.token}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, lock)
            return True
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with open(lock, "xb") as file:
                    file.write(content)
                return True
            except FileExistsError:
                return False
    finally:
        temporary.unlink(missing_ok=True)


def _read(lock: Path) -> Owner | None:
    try:
        return Owner.read(lock.read_text("utf-8", "replace"))
    except OSError:
        return None


def _touched(lock: Path) -> float | None:
    """When a lock was touched last; None if it is gone."""
    with contextlib.suppress(OSError), open(lock, "rb"):  # so that a network file system asks its server
        pass
    try:
        return lock.stat().st_mtime  # also of one that may not be read
    except FileNotFoundError:
        return None


def _now(lock: Path) -> float:
    """The time by the clock of the file system that a lock is on."""
    probe = lock.with_name(f".{lock.name}.{uuid.uuid4().hex}.tmp")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _remove(lock: Path, dead: Owner | None) -> None:
    """Remove a dead owner's lock, and no other: of several that see it, one takes it away."""
    aside = lock.with_name(f".{lock.name}.{uuid.uuid4().hex}.tmp")
    try:
        os.rename(lock, aside)
    except FileNotFoundError:
        return
    if _read(aside) != dead:  # taken over by another in between: it goes back
        with contextlib.suppress(OSError):
            os.link(aside, lock)
    aside.unlink(missing_ok=True)


def _beat(place: Path, lock: Path, owner: Owner, ended: threading.Event) -> None:
    """Touch the lock until the end; a process that stood still so long that it lost it goes no further."""
    while not ended.wait(BEAT):
        found = _read(lock)
        if found == owner:
            with contextlib.suppress(OSError):
                os.utime(lock)
        elif found is not None and not ended.is_set():
            print(
                f"Error: {place}: was taken over by {found} while this process stood still, which ends here, "
                "so that it overwrites nothing.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(2)
        elif lock.parent.is_dir():  # deleted by hand
            with contextlib.suppress(OSError):
                _make(lock, owner)
