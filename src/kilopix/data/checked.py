"""Pictures that are to be scored, checked before any work begins.

In: a list of picture files. Out: the SHA-256 of each and the size of all; a file that is missing, unreadable,
of another size than the others, or the same as another is a `UserError` that names it.
"""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kilopix.data.sources import BrokenImage, open_image
from kilopix.runtime import progress_bar, sha256_of_file
from kilopix.types import UserError

Size = tuple[int, int]
_SHOWN = 5


@dataclass(frozen=True)
class Checked:
    """What was found: the width and height of all pictures, and each one's SHA-256."""

    size: Size
    sha256: tuple[str, ...]


def check_pictures(
    root: Path, files: Sequence[str], size: Size | None = None, allow_doubled: bool = False
) -> Checked:
    """Read every picture once; `size` is (width, height), or None for that of most."""
    assert files, "a folder without pictures is refused before"
    found: list[tuple[Size, str] | str] = []
    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 2)) as pool, progress_bar() as bar:
        task = bar.add_task("check pictures", total=len(files), note="")
        for one in pool.map(lambda file: _look(root / file), files):
            found.append(one)
            bar.advance(task)
    broken = [(file, one) for file, one in zip(files, found, strict=True) if isinstance(one, str)]
    _refuse(root, [f"{file} ({why})" for file, why in broken], "cannot be read")
    looked = [one for one in found if not isinstance(one, str)]
    size = size or Counter(one for one, _ in looked).most_common(1)[0][0]
    odd = [f"{file} ({one[0]}x{one[1]})" for file, (one, _) in zip(files, looked, strict=True) if one != size]
    _refuse(root, odd, f"are not of {size[0]}x{size[1]} pixels")
    hashes = [sha256 for _, sha256 in looked]
    if not allow_doubled:
        _refuse_doubled(root, files, hashes)
    return Checked(size, tuple(hashes))


def _look(path: Path) -> tuple[Size, str] | str:
    """Size and SHA-256, or why the picture cannot be read."""
    try:
        return open_image(path).size, sha256_of_file(path)
    except BrokenImage as error:
        return str(error)


def _refuse_doubled(root: Path, files: Sequence[str], hashes: Sequence[str]) -> None:
    first: dict[str, str] = {}
    doubled = []
    for file, sha256 in zip(files, hashes, strict=True):
        if sha256 in first:
            doubled.append(f"{file} (as {first[sha256]})")
        first.setdefault(sha256, file)
    _refuse(root, doubled, "are the same as others; --allow-doubled scores them all the same")


def _refuse(root: Path, names: Sequence[str], what: str) -> None:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise UserError(
            f"{root}: {len(names)} of the pictures {what}: {', '.join(names[:_SHOWN])}{more}. "
            "Nothing was scored."
        )
