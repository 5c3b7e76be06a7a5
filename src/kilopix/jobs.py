"""Whose a folder or a file is: the one rule by which no command removes or replaces what is not its own.

In: the job of a call (its settings, and hashes of what it reads) and the place that it writes to. A place
that is free is taken, and with that of the same job the call goes on. That of another job is a `UserError`
that says what differs, key by key, unless `overwrite` says that it is to be replaced. What was not made by
the same command is never touched. A folder in which nothing is finished yet is nobody's.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from kilopix.artefacts.locks import FOLDER_LOCK
from kilopix.errors import UserError
from kilopix.runtime import atomic_path, read_json, write_json

Job = dict[str, Any]
State = Literal["free", "same", "other"]
JOB = "job.json"
OUT = "Choose another OUT, or replace it with --overwrite."
"""What to do about the results of another job, where the place is an argument."""
OPTION = "Choose another place with --out, or replace it with --overwrite."
"""The same, where the place is an option."""
SHOWN, LONGEST = 4, 40
_LITTER = re.compile(r"(.*/)?(\..*\.tmp(/.*)?|\.[^/]*\.lock|\.DS_Store|Thumbs\.db)")
"""What a killed command, or the system that shows folders, leaves behind, and what says who writes."""


@dataclass(frozen=True)
class Folder:
    """What a command leaves in its folder, as patterns of paths in which `*` stands for slashes too.

    `record` says what job it is; a folder without any of `results` took no work. `extras` go with them.
    """

    results: tuple[str, ...]
    extras: tuple[str, ...] = ()
    record: str = JOB
    instead: str = OUT

    def unfinished(self, folder: Path) -> bool:
        """Whether the folder holds no result."""
        return not any(_matches(name, self.results) for name in _files(folder))

    def foreign(self, folder: Path) -> list[str]:
        """The files in the folder that the command did not make."""
        own = (*self.results, *self.extras, self.record)
        return [name for name in _files(folder) if not _matches(name, own)]


PARTS = Folder(("part-*",), ("*",))
"""The folder in which the parts of one file are made."""


def state_of(
    folder: Path,
    kind: Folder,
    job: Job,
    overwrite: bool = False,
    read: Callable[[Path], Job] = read_json,
    shown: Path | None = None,
) -> State:
    """Whether a folder is free, of the same job, or of another whose place may be taken.

    `read` gives the job of a record; `shown` is what the user named, where the folder is a hidden one.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file is there; choose another folder.")
    record = folder / kind.record
    if not record.exists():
        _refuse_foreign(folder, list(_files(folder)))
        return "free"
    before = read(record)
    if not differences(before, job):
        return "same"
    if kind.unfinished(folder) and not kind.foreign(folder):
        return "other"
    if before.get("stage") != job.get("stage"):
        raise UserError(f"{folder}: made by `kilopix {before.get('stage')}`; choose another folder.")
    check_same_job(before, job, shown or folder, overwrite, kind.instead, shown is not None)
    _refuse_foreign(folder, kind.foreign(folder))
    return "other"


def clear(folder: Path, kind: Folder) -> None:
    """Empty a folder whose place is taken, but for its record, which the new one replaces, and its lock."""
    import shutil

    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in (kind.record, FOLDER_LOCK):
            entry.unlink()


def open_job(
    folder: Path, kind: Folder, job: Job, overwrite: bool = False, shown: Path | None = None
) -> None:
    """Take a folder for a job and record it there, or go on with it; see `state_of`."""
    state = state_of(folder, kind, job, overwrite, shown=shown)
    if state == "other":
        clear(folder, kind)
    if state != "same":
        write_json(folder / kind.record, job)


def check_same_job(
    before: Job, now: Job, place: Path, overwrite: bool = False, instead: str = OUT, begun: bool = False
) -> bool:
    """Whether `place` is of the job `now`; that of another is a `UserError`, or false with `overwrite`."""
    different = differences(before, now)
    if different and not overwrite:
        more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        done = "begun" if begun else "made"
        raise UserError(
            f"{place} was {done} by another job ({'; '.join(different[:SHOWN])}{more}). {instead}"
        )
    return not different


def check_only(folder: Path, kind: Folder) -> None:
    """Refuse a folder that holds what the command did not make."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file is there; choose another folder.")
    _refuse_foreign(folder, kind.foreign(folder))


def write_report(path: Path, report: str | Job, command: str) -> None:
    """Write a text, or JSON, that its inputs give again, in place of an earlier one; any other file is kept.

    It ends with the command's name, by which it is known.
    """
    check_report(path, command)
    if isinstance(report, str):
        text = f"{report.rstrip()}\n<!-- made_by: kilopix {command} -->\n"
    else:
        text = json.dumps({**report, "made_by": f"kilopix {command}"}, indent=1, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_report(path: Path, command: str) -> None:
    """Refuse a place where something else is than an earlier report of the command."""
    if path.is_dir():
        raise UserError(f"{path}: a folder is there; name a file.")
    if path.exists():
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 200))
            end = file.read()
        if not re.search(rf'made_by"?: "?kilopix {command}\b'.encode(), end):
            raise UserError(f"{path}: is there, and not made by `kilopix {command}`; name another file.")


def check_weights(path: Path, made: Job, command: str, overwrite: bool = False, instead: str = OUT) -> None:
    """Refuse a place where something else is than safetensors whose header says what `made` says."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError):
        header = {}
    if not made.keys() <= header.keys():
        raise UserError(f"{path}: is there, and not made by `kilopix {command}`; name another file.")
    texts = {key: header[key] for key in made}
    try:
        before = {key: text if _is_hash(text) else json.loads(text) for key, text in texts.items()}
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is there, and its header cannot be read; name another file.") from None
    check_same_job(before, made, path, overwrite, instead)


def differences(before: Job, now: Job) -> list[str]:
    """What differs between two jobs, as `section.key: the old value, here the new one`."""
    return list(_differences("", before, json.loads(json.dumps(now))))


def _differences(key: str, before: Any, now: Any) -> Iterator[str]:
    if before == now or (_is_nothing(before) and _is_nothing(now)):
        return
    if isinstance(before, dict) and isinstance(now, dict):
        # Things of two kinds have other keys, which say nothing more.
        only = ("kind",) if before.get("kind") != now.get("kind") else dict.fromkeys((*now, *before))
        for name in only:
            yield from _differences(f"{key}.{name}" if key else name, before.get(name), now.get(name))
    elif _is_hash(before) and _is_hash(now):
        yield f"{key} changed since"
    elif isinstance(before, list) and isinstance(now, list) and max(len(before), len(now)) > 1:
        if len(before) != len(now):
            yield f"{key}: {len(before)} of them, here {len(now)}"
        else:
            pairs = zip(before, now, strict=True)
            i = next(i for i, (a, b) in enumerate(pairs) if a != b)
            yield from _differences(f"{key}[{i}]", before[i], now[i])
    else:
        yield f"{key}: {_short(before, now)}, here {_short(now, before)}"


def _short(value: Any, other: Any) -> str:
    """A value in few words, from where it begins to differ from the other one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("kind") or value.get("name") or value
    if _is_nothing(value):
        return "none"
    if _is_hash(value):
        return str(value)[:8]
    text, others = str(value), str(other)
    if len(text) <= LONGEST:
        return text
    alike = next((i for i, (a, b) in enumerate(zip(text, others, strict=False)) if a != b), len(others))
    start = max(0, alike - LONGEST // 2)
    cut = text[start : start + LONGEST]
    return f"{'...' if start else ''}{cut}{'...' if start + LONGEST < len(text) else ''}"


def _is_nothing(value: Any) -> bool:
    """Whether a setting is off, or unknown to the version of kilopix that wrote it."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _refuse_foreign(folder: Path, foreign: list[str]) -> None:
    if foreign:
        some = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise UserError(
            f"{folder}: not empty, and not made by this command (it holds {some}); choose another folder."
        )


def _files(folder: Path) -> Iterator[str]:
    """The files below a folder, as paths with slashes, without litter."""
    for place, folders, names in os.walk(folder):
        below = Path(place).relative_to(folder)
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found = ((below / name).as_posix() for name in sorted([*names, *links]))
        yield from (name for name in found if not _LITTER.fullmatch(name))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
