"""Pictures inside containers: a row of a Parquet file, a member of a tar file, read at random.

In: the path of a container and the place in it. Out: the picture file's bytes. What was read of a container
is kept for the next call, but no open file is, so that threads and forked processes need no care.
"""

import os
import posixpath
import re
import tarfile
import threading
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from kilopix.errors import UserError
from kilopix.faults import OF_ALL_FILES, first_line, named
from kilopix.runtime import not_below

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

PARQUET = ".parquet"
TAR = ".tar"
_REFERENCE = re.compile(r"(?P<container>.+?\.(?:parquet|tar))#(?P<place>.+)", re.DOTALL | re.IGNORECASE)
_IMAGE_NAMES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")
_KEPT_ROW_GROUPS = 4
_REMEMBERED_ROW_GROUPS = 64
_KEPT_INDEXES = 256
TAR_DAMAGE = (tarfile.TarError, ValueError, OverflowError)
"""What tarfile raises for a file that is none, the last two for sizes below 0 or beyond counting."""


NO_FILE = "no such file"


class BrokenImage(Exception):
    """A file that is no readable picture; the message says why."""


def reference(container: str, place: int | str) -> str:
    """How a manifest names a picture in a container: `train-00000.parquet#17`, `shard.tar#0001.jpg`."""
    return f"{container}#{place}"


def split_reference(path: str) -> tuple[str, str] | None:
    """The container and the place in it of a path that `reference` wrote; None for the path of a file."""
    match = _REFERENCE.fullmatch(path)
    return (match["container"], match["place"]) if match else None


def read_bytes(root: Path, path: str) -> bytes:
    """The bytes of a picture file, of a Parquet row or of a tar member below `root`.

    Raises `BrokenImage` if there is none; what the disk or the network refuses is no fault of the picture. A
    link below the root is followed wherever it leads, since whoever owns the folder put it there; the text of
    a path leads nowhere else.
    """
    if why := not_below(path):
        raise BrokenImage(why)
    parts = split_reference(path)
    try:
        if parts is None or (root / path).is_file():
            return (root / path).read_bytes()
        container, place = root / parts[0], parts[1]
        return (
            read_row(container, place)
            if parts[0].lower().endswith(PARQUET)
            else read_member(container, place)
        )
    except FileNotFoundError:
        raise BrokenImage(NO_FILE) from None
    except OSError as error:  # Arrow's I/O errors are of this kind, too
        if error.errno in OF_ALL_FILES:
            raise named(error, root / path) from None
        raise BrokenImage(first_line(error)) from None


def read_row(file: Path, place: str) -> bytes:
    """The picture's bytes in a row of a Parquet file; raises `BrokenImage` if the row holds none.

    A row group is read whole when a second row of it is asked for, as when rows are read in order. The
    first is found by reading up to it, which costs half as much where rows are read at random.
    """
    import pyarrow as pa

    stamp = file_stamp(file)
    try:
        group, row = _find_row(_parquet_metadata(file, stamp), place)
        visits = _visits(file, stamp, group)
        visits.append(row)
        if len(visits) == 1:
            value = _one_row(file, stamp, group, row)
        else:
            with _lock(os.getpid()):  # threads that want the same row group read it once
                value = _row_group(file, stamp, group)[row].as_py()
    except (pa.ArrowException, UserError) as error:
        raise BrokenImage(first_line(error)) from None
    if not value:
        raise BrokenImage("the row holds no bytes of a picture")
    return value


@cache
def _lock(_process: int) -> threading.Lock:
    """One lock a process: a fork may come while another thread of the parent holds the parent's."""
    return threading.Lock()


def file_stamp(file: Path) -> tuple[int, int]:
    """Changes when the file does, so that nothing stale is served."""
    status = file.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=_KEPT_INDEXES)
def _parquet_metadata(file: Path, stamp: tuple[int, int]) -> "pq.FileMetaData":
    import pyarrow.parquet as pq

    return pq.read_metadata(file)


def _find_row(metadata: "pq.FileMetaData", place: str) -> tuple[int, int]:
    """The row group that holds a row, and the row's number in it."""
    row = int(place) if place.isdecimal() else metadata.num_rows
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if row < count:
            return group, row
        row -= count
    raise BrokenImage(f"has no row {place}")


@lru_cache(maxsize=_REMEMBERED_ROW_GROUPS)
def _visits(file: Path, stamp: tuple[int, int], group: int) -> list[int]:
    """The rows that were asked for of a row group since it was last forgotten."""
    return []


def _one_row(file: Path, stamp: tuple[int, int], group: int, row: int) -> bytes | None:
    """One row of a row group, whose pages are read up to it and no further."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(
        file, metadata=_parquet_metadata(file, stamp), memory_map=True, page_checksum_verification=True
    ) as opened:
        column = image_column(opened.schema_arrow, file)
        for batch in opened.iter_batches(4, row_groups=[group], columns=[column], use_threads=False):
            if row < len(batch):
                return pa.Table.from_batches([batch]).flatten().column(column)[row].as_py()
            row -= len(batch)
    return None


@lru_cache(maxsize=_KEPT_ROW_GROUPS)
def _row_group(file: Path, stamp: tuple[int, int], group: int) -> "pa.ChunkedArray":
    """The bytes of all pictures of a row group; the other columns are not read."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(
        file, metadata=_parquet_metadata(file, stamp), page_checksum_verification=True
    ) as opened:
        column = image_column(opened.schema_arrow, file)
        return opened.read_row_group(group, columns=[column], use_threads=False).flatten().column(column)


def image_column(schema: "pa.Schema", file: Path) -> str:
    """The column that holds the bytes of pictures, `image.bytes` if they are in a struct.

    Raises `UserError` if there is none.
    """
    import pyarrow as pa

    found = []
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            found.append((field.name, f"{field.name}.bytes"))
        elif pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            found.append((field.name, field.name))
    for name in _IMAGE_NAMES:
        for field_name, column in found:
            if field_name.lower() == name:
                return column
    if len(found) == 1:
        return found[0][1]
    what = f"several of bytes ({', '.join(name for name, _ in found)})" if found else "none"
    raise UserError(
        f"{file}: needs a column of pictures called `image`, as bytes or as a struct with `bytes`; "
        f"it has {what}."
    )


def read_member(file: Path, name: str) -> bytes:
    """The bytes of a member of a tar file; raises `BrokenImage` if it is not there or cut off."""
    try:
        place = tar_index(file, file_stamp(file)).get(name)
    except TAR_DAMAGE as error:
        raise BrokenImage(f"{file.name} is no tar file ({error})") from None
    if place is None:
        raise BrokenImage(f"{file.name} has no member {name}")
    offset, size = place
    with file.open("rb") as opened:
        opened.seek(offset)
        content = opened.read(size)
    if len(content) < size:
        raise BrokenImage(f"{file.name} is cut off inside this member")
    return content


@lru_cache(maxsize=_KEPT_INDEXES)
def tar_index(file: Path, stamp: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Where the data of every regular member begins, and its size; of members of one name, the last.

    A link, hard or symbolic, to another member is that member; one that leads out of the file is left out.
    """
    places: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    with tarfile.open(file, "r:") as opened:
        for member in opened:
            links.pop(member.name, None)
            if member.isreg() and not member.issparse():
                places[member.name] = (member.offset_data, member.size)
            elif member.islnk() or member.issym():
                places.pop(member.name, None)
                folder = posixpath.dirname(member.name) if member.issym() else ""
                links[member.name] = _plain_name(posixpath.join(folder, member.linkname))
    plain = {_plain_name(name): place for name, place in places.items()}
    named = {_plain_name(name): target for name, target in links.items()}
    for name in links:
        target, steps = links[name], 0
        while target in named and steps <= len(named):  # links may go in a ring
            target, steps = named[target], steps + 1
        if target in plain:
            places[name] = plain[target]
    return places


def _plain_name(name: str) -> str:
    return posixpath.normpath(name)


def unread_end(file: Path, end: int) -> str:
    """What is wrong behind the last member of a tar file, which ends at byte `end`; nothing if it is whole.

    A tar file ends with zeros; where there is something else, or nothing, members that follow are lost.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(end)
        first = opened.read(512)
        if len(first) < 512 or any(first):
            return f"is damaged or cut off: it is read up to byte {end:,} of {size:,}, and no further"
        while chunk := opened.read(1 << 20):
            if any(chunk):
                return f"goes on behind its end mark at byte {end:,} of {size:,}, which is not read"
    return ""
