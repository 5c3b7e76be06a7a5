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
from kilopix.data.sources.selection import EVERYTHING, Selection, Tally
from kilopix.data.sources.tars import tar_pictures
from kilopix.errors import UserError

_DEPTHS = ("*", "*/*", "*/*/*")  # the hub keeps Parquet files up to two folders deep


def list_source(place: Path, selection: Selection = EVERYTHING) -> Source:
    """The pictures of a folder: of class folders, a captions file, Parquet or tar files, or images alone.

    A single captions, Parquet or tar file can be given, too. Raises `UserError` for anything else, and if a
    selection leaves none.
    """
    if place.is_file():
        return _checked(_single_file(place, selection), place)
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
        return _checked(captioned_pictures(tables[0], selection), place)
    if parquets:
        return _checked(_parquets(place, parquets, selection), place)
    if tars:
        return _checked(_tars(place, tars, selection), place)
    if selection:
        raise UserError(f"{place}: --where and --caption-column need a table, Parquet or tar files.")
    loose = loose_images(place)
    if loose and not any(f.is_dir() and not f.name.startswith(".") for f in place.iterdir()):
        return Source(place, "loose images", [SourceItem(name, class_of_file(name)) for name in loose])
    items = class_folders(place)
    return Source(place, "class folders", items, [(name, "not in a class folder") for name in loose])


def _parquets(root: Path, files: list[Path], selection: Selection) -> Source:
    tally = Tally()
    items = parquet_pictures(root, files, selection, tally)
    return Source(root, "Parquet files", items, [], tally if selection.conditions else None)


def _tars(root: Path, files: list[Path], selection: Selection) -> Source:
    tally = Tally()
    items, unused = tar_pictures(root, files, selection, tally)
    return Source(root, "tar shards", items, unused, tally if selection.conditions else None)


def _single_file(file: Path, selection: Selection) -> Source:
    if file.suffix == TAR:
        return _tars(file.parent, [file], selection)
    if file.suffix == PARQUET and holds_pictures(file):
        return _parquets(file.parent, [file], selection)
    if file.suffix in ENDINGS:
        return captioned_pictures(file, selection)
    raise UserError(f"{file}: neither a folder of images nor a captions, Parquet or tar file.")


def _checked(source: Source, place: Path) -> Source:
    if not source.items:
        why = f"{source.tally}" if source.tally else "holds no picture"
        raise UserError(f"{place}: {why}.")
    return source


def _below(folder: Path, ending: str) -> list[Path]:
    found = [file for depth in _DEPTHS for file in folder.glob(depth + ending)]
    return sorted(f for f in found if not any(p.startswith(".") for p in f.relative_to(folder).parts))
