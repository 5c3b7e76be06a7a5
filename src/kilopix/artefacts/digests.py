"""Is a file still what was written? A SHA-256 that it carries in itself, checked when it is opened.

Each format has a place for it that other programs pass over: the header's metadata of safetensors, the gap
before the footer of Arrow and Parquet files, the last key of a JSON object, the last line of JSON lines. The
digest is that of the whole file with its own place taken as zeros (of JSON, of the rest in canonical form, so
that an editor may change its layout). A file without one is another program's, which is held against nothing:
what an editor of tables saves has none.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kilopix.errors import UserError

DIGEST = "sha256"
_LENGTH = 64
NO_DIGEST = "0" * _LENGTH
_ZEROS = NO_DIGEST.encode()
_MARK = b"kilopix:"
"""Before the digest of a table; with it 72 bytes, so that what follows stays aligned."""
_TAILS = {b"ARROW1": 10, b"PAR1": 8}
"""What an Arrow or Parquet file ends with, and how many bytes follow its footer."""
_CHUNK = 1 << 20
_LONGEST_HEADER = 100_000_000  # that of the safetensors library
_checked: dict[Path, tuple[tuple[int, ...], str | None]] = {}


class Damaged(UserError):
    """A file is not what was written."""


def seal_tensors(path: Path) -> None:
    """Put its digest into a safetensors file whose metadata holds zeros for it."""
    _put(path, _place_in_tensors)


def seal_table(path: Path) -> None:
    """Put its digest into an Arrow or Parquet file, before the footer, which is found from the end."""
    with open(path, "rb+") as file:
        start = _footer(file)
        assert start is not None, f"{path}: neither Arrow nor Parquet"
        file.seek(start)
        footer = file.read()
        file.seek(start)
        file.write(_MARK + _ZEROS + footer)
    _put(path, _place_in_table)


def check_tensors(path: Path) -> str | None:
    """The digest of a safetensors file, or None if it has none; raises `Damaged` if it is not that."""
    return _check(path, _place_in_tensors)


def check_table(path: Path, required: bool = False) -> str | None:
    """The digest of an Arrow or Parquet file, or None if it has none; raises `Damaged` if it is not that.

    `required` is where only kilopix writes such a file.
    """
    digest = _check(path, _place_in_table)
    if required and digest is None:
        raise _damaged(path)
    return digest


def check_shipped(path: Path, sha256: str) -> None:
    """Raise `Damaged` if a file that is installed with kilopix has another SHA-256 than here."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise Damaged(
            f"{path}: damaged: its SHA-256 is not that of what ships with kilopix; install it again."
        )


def seal_json(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with its digest as the last key."""
    plain = {key: item for key, item in value.items() if key != DIGEST}
    return {**plain, DIGEST: _of_json(json.loads(json.dumps(plain)))}


def check_json(value: Any, place: Path, required: bool = False) -> Any:
    """What was read from `place` without its digest, if it has one; raises `Damaged` if it is not that.

    `required` is where only kilopix writes such a file.
    """
    if not isinstance(value, dict) or not value or next(reversed(value)) != DIGEST:
        if required:
            raise Damaged(f"{place}: damaged, or written by an earlier version: it holds no {DIGEST}.")
        return value
    rest = {key: item for key, item in value.items() if key != DIGEST}
    if value[DIGEST] != _of_json(rest):
        raise Damaged(
            f"{place}: damaged, or edited: its {DIGEST} is not that of the rest. Bring it back from a copy, "
            f"or make it again; if you edited it, take out the key {DIGEST!r}."
        )
    return rest


def seal_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of JSON, each with its end, and after them the line that holds the digest of all."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
        yield line
    yield json.dumps({DIGEST: digest.hexdigest()}).encode() + b"\n"


_LAST_LINE = re.compile(rb'\{"sha256": "([0-9a-f]{64})"\}\n?')


def check_lines(lines: Iterable[bytes], place: Path, required: bool = False) -> Iterator[bytes]:
    """The lines without that of the digest; raises `Damaged` at the end if it is not theirs.

    `required` is where only kilopix writes such a file.
    """
    digest, said = hashlib.sha256(), None
    for line in lines:
        if said is not None:
            raise _damaged(place)
        if found := _LAST_LINE.fullmatch(line):
            said = found[1].decode()
            continue
        digest.update(line)
        yield line
    if said != digest.hexdigest() and (said or required):
        raise _damaged(place)


def _damaged(path: Path) -> Damaged:
    return Damaged(
        f"{path}: damaged: not what was written, by its SHA-256. Bring it back from a copy, or delete it and "
        "make it again."
    )


def _of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check(path: Path, place: Callable[[Any], int | None]) -> str | None:
    """As `check_tensors`; a file that this process found whole is read again only when it has changed."""
    with open(path, "rb") as file:
        now = os.fstat(file.fileno())
        stamp = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
        key = path.absolute()
        if (known := _checked.get(key)) and known[0] == stamp:
            return known[1]
        at, said = place(file), None
        if at is not None:
            file.seek(at)
            said = file.read(_LENGTH).decode("latin-1")
            if _digest(file, at) != said:
                raise _damaged(path)
        _checked[key] = stamp, said
        return said


def _put(path: Path, place: Callable[[Any], int | None]) -> None:
    with open(path, "rb+") as file:
        at = place(file)
        assert at is not None, f"{path}: no place for its digest"
        digest = _digest(file, at)
        file.seek(at)
        file.write(digest.encode())


def _digest(file: Any, at: int) -> str:
    """SHA-256 of an open file, with the digest at `at` taken as zeros."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(min(_CHUNK, at - file.tell())):
        digest.update(chunk)
    digest.update(_ZEROS)
    file.seek(at + _LENGTH)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _place_in_tensors(file: Any) -> int | None:
    key = f'"{DIGEST}":"'.encode()
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    at = file.read(min(length, _LONGEST_HEADER)).find(key)
    return None if at < 0 else 8 + at + len(key)


def _place_in_table(file: Any) -> int | None:
    start = _footer(file)
    if start is None or start < len(_MARK) + _LENGTH:
        return None
    at = start - _LENGTH
    file.seek(at - len(_MARK))
    return at if file.read(len(_MARK)) == _MARK else None


def _footer(file: Any) -> int | None:
    """Where the footer of an Arrow or Parquet file begins; None if it is neither."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 10, 0))
    end = file.read()
    for magic, tail in _TAILS.items():
        if end.endswith(magic) and size >= tail:
            length = int.from_bytes(end[-tail : -tail + 4], "little", signed=True)
            start = size - tail - length
            return start if length > 0 and start >= 0 else None
    return None
