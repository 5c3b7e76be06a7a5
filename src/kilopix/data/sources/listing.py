"""Which kind of source a place is, from what lies in it.

In: a folder, or a single file. Out: its `Source`. What could be two kinds at once is refused, so that no
picture is overlooked.
"""

from pathlib import Path

from kilopix.data.manifest import is_manifest
from kilopix.data.sources.captioned import ENDINGS, captioned_pictures, captions_files
from kilopix.data.sources.classes import class_of_file
from kilopix.data.sources.containers import PARQUET, TAR
from kilopix.data.sources.folders import class_folders, loose_images
from kilopix.data.sources.items import Source, SourceItem
from kilopix.data.sources.parquet import holds_pictures, parquet_pictures
from kilopix.data.sources.tars import tar_pictures
from kilopix.errors import UserError

_DEPTHS = ("*", "*/*", "*/*/*")  # the hub keeps Parquet files up to two folders deep


def list_source(place: Path) -> Source:
    """The pictures of a folder: of class folders, a captions file, Parquet or tar files, or images alone.

    A single captions, Parquet or tar file can be given, too. Raises `UserError` for anything else.
    """
    if place.is_file():
        return _single_file(place)
    if not place.is_dir():
        raise UserError(f"{place}: no such folder of images.")
    tables = [table for table in captions_files(place) if not is_manifest(table)]
    parquets = [file for file in _below(place, PARQUET) if file not in tables and not is_manifest(file)]
    tars = _below(place, TAR)
    found = [
        name
        for name, files in (("a captions file", tables), ("Parquet files", parquets), ("tar files", tars))
        if files
    ]
    if len(found) > 1 or len(tables) > 1:
        what = " and ".join(found) if len(found) > 1 else " and ".join(table.name for table in tables)
        raise UserError(f"{place}: holds {what}; give the one that is meant, or move the other away.")
    if tables:
        return captioned_pictures(tables[0])
    if parquets:
        return Source(place, "Parquet files", _some(parquet_pictures(place, parquets), place))
    if tars:
        items, unused = tar_pictures(place, tars)
        return Source(place, "tar shards", _some(items, place), unused)
    loose = loose_images(place)
    if loose and not any(f.is_dir() and not f.name.startswith(".") for f in place.iterdir()):
        return Source(place, "loose images", [SourceItem(name, class_of_file(name)) for name in loose])
    items = class_folders(place)
    return Source(place, "class folders", items, [(name, "not in a class folder") for name in loose])


def _single_file(file: Path) -> Source:
    if file.suffix == TAR:
        items, unused = tar_pictures(file.parent, [file])
        return Source(file.parent, "tar shards", _some(items, file), unused)
    if file.suffix == PARQUET and holds_pictures(file):
        return Source(file.parent, "Parquet files", _some(parquet_pictures(file.parent, [file]), file))
    if file.suffix in ENDINGS:
        return captioned_pictures(file)
    raise UserError(f"{file}: neither a folder of images nor a captions, Parquet or tar file.")


def _some(items: list[SourceItem], place: Path) -> list[SourceItem]:
    if not items:
        raise UserError(f"{place}: holds no picture.")
    return items


def _below(folder: Path, ending: str) -> list[Path]:
    found = [file for depth in _DEPTHS for file in folder.glob(depth + ending)]
    return sorted(f for f in found if not any(p.startswith(".") for p in f.relative_to(folder).parts))
