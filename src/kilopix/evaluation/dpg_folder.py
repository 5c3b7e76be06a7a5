"""DPG-Bench's folder of pictures: `<item>.png` with a grid of 2 x 2, or one picture, or a folder a prompt.

In: the folder and the names of the prompts. Out: for every prompt its pictures, as files and crops; whatever
is missing, doubled or out of place is a `UserError` that names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from kilopix.english import counted
from kilopix.types import UserError

Layout = Literal["grid", "single", "folders"]
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_IN_GRID = 4
# Top left, top right, bottom left, bottom right, as the published scorer cuts a grid; in sides of a picture.
_PLACES = ((0, 0), (1, 0), (0, 1), (1, 1))
SIDE_FILES = ("made.json", "hashes.json")


@dataclass(frozen=True)
class Picture:
    """One picture: its prompt, its file below the folder, and its place in a grid, (0, 0) at the top left."""

    item: str
    file: str
    place: tuple[int, int] | None = None


def find_pictures(
    root: Path,
    names: Sequence[str],
    layout: Layout = "grid",
    per_prompt: int | None = None,
    source: str = "the questions",
) -> list[Picture]:
    """The pictures of all prompts, in the order of `names`, which `source` gives.

    `per_prompt` is 4 for a grid, 1 for single pictures, and for folders as many as the most have, unless it
    is given. A grid of which fewer are asked for gives the first ones.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of pictures.")
    entries = [f for f in sorted(root.iterdir()) if not f.name.startswith(".") and f.name not in SIDE_FILES]
    by_name = _by_name(root, entries, folders=layout == "folders")
    _compare(root, names, by_name, source)
    if layout == "folders":
        return _in_folders(root, names, by_name, per_prompt)
    count = per_prompt or (_IN_GRID if layout == "grid" else 1)
    if (layout == "single" and count != 1) or count > _IN_GRID:
        raise UserError(f"{root}: the layout {layout} has no {count} pictures a prompt.")
    places = _PLACES[:count] if layout == "grid" else (None,)
    return [Picture(name, by_name[name].name, place) for name in names for place in places]


def crop_box(place: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box of a place in a grid of `size` (width, height)."""
    width, height = size[0] // 2, size[1] // 2
    left, top = place[0] * width, place[1] * height
    return left, top, left + width, top + height


def _by_name(root: Path, entries: Sequence[Path], folders: bool) -> dict[str, Path]:
    """The entries by the name of their prompt, which is what stands before the first dot."""
    by_name: dict[str, Path] = {}
    for entry in entries:
        if entry.is_dir() != folders or not (folders or entry.suffix.lower() in ENDINGS):
            wanted = "a folder a prompt" if folders else "one picture a prompt"
            raise UserError(f"{entry}: out of place, as {root} is to hold {wanted}; see --layout.")
        name = entry.name if folders else entry.name.split(".")[0]
        if name in by_name:
            raise UserError(f"{entry} and {by_name[name].name} are of the same prompt; keep one.")
        by_name[name] = entry
    return by_name


def _compare(root: Path, names: Sequence[str], by_name: dict[str, Path], source: str) -> None:
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UserError(
            f"{root}: {len(missing)} of {len(names)} prompts of {source} have no picture: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Nothing was scored."
        )
    known = set(names)
    foreign = [entry for name, entry in by_name.items() if name not in known]
    if foreign:
        raise UserError(f"{foreign[0]}: belongs to no prompt of {source}; remove it.")


def _in_folders(
    root: Path, names: Sequence[str], by_name: dict[str, Path], per_prompt: int | None
) -> list[Picture]:
    files = {name: _files(by_name[name]) for name in names}
    count = per_prompt or max(map(len, files.values()))
    for name, found in files.items():
        if len(found) != count:
            raise UserError(f"{root / name}: {counted(len(found), 'picture')}, where {count} are expected.")
    return [Picture(name, str(f.relative_to(root))) for name in names for f in files[name]]


def _files(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if not f.name.startswith("."))
    for file in files:
        if not file.is_file() or file.suffix.lower() not in ENDINGS:
            raise UserError(f"{file}: not a picture; remove it.")
    for before, after in pairwise(files):
        if before.stem == after.stem:
            raise UserError(f"{after} and {before.name} are the same picture of the prompt; keep one.")
    return files
