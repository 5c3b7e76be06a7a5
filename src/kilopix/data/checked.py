"""Pictures that are to be scored, checked before any work begins.

In: a list of picture files, or of places in Parquet, tar and array files. Out: the SHA-256 of each and the
size of all; one that is missing, unreadable, of another size than the others, or the same as another is a
`UserError` that names it.
"""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from kilopix.data.image_arrays import array_image
from kilopix.data.sources import BrokenImage, decode, read_bytes
from kilopix.progress import Progress
from kilopix.runtime import read_json, say, sha256_of_file, write_json
from kilopix.types import UserError

Size = tuple[int, int]
Cuts = Callable[[Size], Sequence[tuple[int, int, int, int]]]
HASHES = "hashes.json"
"""Beside images that kilopix made: their SHA-256."""
_SHOWN = 5
_ORIENTATION = 0x0112  # the Exif tag


@dataclass(frozen=True)
class Checked:
    """What was found: the width and height of all pictures, or of most, and each one's SHA-256.

    `sizes` are those that there are.
    """

    size: Size
    sha256: tuple[str, ...]
    sizes: frozenset[Size] = frozenset()

    @property
    def doubled(self) -> bool:
        """Whether a file is there twice."""
        return len(set(self.sha256)) < len(self.sha256)


def check_pictures(
    root: Path,
    files: Sequence[str],
    size: Size | Literal["any"] | None = None,
    allow_doubled: bool = False,
    cuts: Cuts | None = None,
    heads_only: bool = False,
    other_size: str = "",
) -> Checked:
    """Read every picture once; `size` is (width, height), or None for that of most.

    Where a file holds several pictures, `cuts` gives their boxes, and none may be the same as another.
    With `heads_only`, no pixels are decoded, for pictures that soon will be. `other_size` is added
    to the error about pictures of another size.
    """
    assert files, "a folder without pictures is refused before"
    found: list[_Seen | str] = []
    with (
        ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 2)) as pool,
        Progress("check pictures", len(files)) as shown,
    ):
        for one in pool.map(lambda file: _look(root, file, cuts, heads_only), files):
            found.append(one)
            shown.advance()
    broken = [(file, one) for file, one in zip(files, found, strict=True) if isinstance(one, str)]
    _refuse(root, [f"{file} ({why})" for file, why in broken], "cannot be read")
    looked = [one for one in found if not isinstance(one, str)]
    most = Counter(one.size for one in looked).most_common(1)[0][0]
    wanted = most if size is None or size == "any" else size
    if size != "any":
        odd = [
            f"{file} ({one.size[0]}x{one.size[1]})"
            for file, one in zip(files, looked, strict=True)
            if one.size != wanted
        ]
        _refuse(root, odd, f"are not of {wanted[0]}x{wanted[1]} pixels{other_size}")
    made = _hashes(root)
    check_record(root)
    now = zip(files, (one.sha256 for one in looked), strict=True)
    refuse_changed(root, [file for file, digest in now if made.get(file, digest) != digest])
    if not allow_doubled:
        _refuse_doubled(root, files, looked)
    sizes = frozenset(one.size for one in looked)
    return Checked(wanted, tuple(one.sha256 for one in looked), sizes)


def write_hashes(root: Path, files: Sequence[str]) -> None:
    """Keep the SHA-256 of images that were made, so that one which is replaced is not scored unsaid.

    The record of how they were made is to be among the files: it goes with these images only.
    """
    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 2)) as pool:
        hashes = list(pool.map(sha256_of_file, [root / file for file in files]))
    write_json(root / HASHES, {"files": dict(zip(files, hashes, strict=True))})


def changed_images(root: Path) -> list[str]:
    """The images below a folder that are others than those whose hashes lie beside them."""
    made = {name: digest for name, digest in _hashes(root).items() if not name.endswith(".json")}
    return [n for n, digest in made.items() if (root / n).is_file() and sha256_of_file(root / n) != digest]


def check_record(root: Path) -> None:
    """Refuse a record of how images were made that was not written with these images."""
    for name, digest in _hashes(root).items():
        if name.endswith(".json") and (root / name).is_file() and sha256_of_file(root / name) != digest:
            raise UserError(
                f"{root / name}: is not what was written with these images, so it may say of others how they "
                f"were made. Run the command that made them again, or delete {root / HASHES} if you mean it."
            )


def delete_changed(root: Path) -> None:
    """Delete images that are others than those whose hashes lie beside them, so that they are made anew."""
    for name in changed_images(root):
        say(f"{root / name}: is not the image that was made, so it is damaged or another, and made anew.")
        (root / name).unlink()


def _hashes(root: Path) -> dict[str, str]:
    if not (root / HASHES).is_file():
        return {}
    values = read_json(root / HASHES)
    made = values.get("files") if isinstance(values, dict) else None
    if not isinstance(made, dict):
        raise UserError(f"{root / HASHES}: not hashes of images; delete it, or make the images again.")
    return made


def refuse_changed(root: Path, changed: Sequence[str]) -> None:
    """Refuse images that are others than those that were made."""
    _refuse(root, changed, f"are not the images that were made (delete {HASHES} if that is meant)", "used")


@dataclass(frozen=True)
class _Seen:
    """Size and SHA-256 of a file, and the SHA-256 of the pixels of each picture cut from it."""

    size: Size
    sha256: str
    parts: tuple[str, ...]


def _look(root: Path, file: str, cuts: Cuts | None, heads_only: bool) -> _Seen | str:
    """What is seen of a file, or why it cannot be read."""
    try:
        pixels = array_image(root, file)
        if pixels is not None:
            image = Image.fromarray(pixels)
            return _seen(image, hashlib.sha256(pixels.tobytes()).hexdigest(), cuts)
        content = read_bytes(root, file)
        sha256 = hashlib.sha256(content).hexdigest()
        if heads_only:
            return _Seen(_size_in_head(content), sha256, ())
        return _seen(decode(content), sha256, cuts)
    except BrokenImage as error:
        return str(error)


def _seen(image: Image.Image, sha256: str, cuts: Cuts | None) -> _Seen:
    boxes = cuts(image.size) if cuts else ()
    parts = (hashlib.sha256(image.crop(box).tobytes()).hexdigest() for box in boxes)
    return _Seen(image.size, sha256, tuple(parts))


def _size_in_head(content: bytes) -> Size:
    """Width and height of a picture, turned upright."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION) in (5, 6, 7, 8) else (width, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BrokenImage(str(error) or type(error).__name__) from None


def _refuse_doubled(root: Path, files: Sequence[str], looked: Sequence[_Seen]) -> None:
    first: dict[str, str] = {}
    doubled = []
    for file, one in zip(files, looked, strict=True):
        names = [f"{file} part {i}" for i in range(len(one.parts))] or [file]
        for name, sha256 in zip(names, one.parts or (one.sha256,), strict=True):
            if sha256 in first:
                doubled.append(f"{name} (as {first[sha256]})")
            first.setdefault(sha256, name)
    _refuse(
        root, doubled, "are the same as others; --allow-doubled, or allow_doubled=true, scores them even so"
    )


def _refuse(root: Path, names: Sequence[str], what: str, done: str = "scored") -> None:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise UserError(
            f"{root}: {len(names)} of the pictures {what}: {', '.join(names[:_SHOWN])}{more}. "
            f"Nothing was {done}."
        )
