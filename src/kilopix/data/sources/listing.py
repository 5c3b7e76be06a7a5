"""Which kind of source a place is, from what lies in it.

In: a folder, or a single file. Out: its `Source`. What could be two kinds at once is refused, so that no
picture is overlooked.
"""

from dataclasses import replace
from pathlib import Path

from kilopix.data.manifest import is_manifest
from kilopix.data.sources.captioned import captioned_pictures, captions_files
from kilopix.data.sources.containers import PARQUET, TAR
from kilopix.data.sources.folders import class_folders, flat_folder, is_flat
from kilopix.data.sources.items import IMAGE_ENDINGS, Source
from kilopix.data.sources.parquet import holds_pictures, parquet_pictures, parquet_schema
from kilopix.data.sources.selection import EVERYTHING, Selection, Tally
from kilopix.data.sources.splits import folder_of_split, take_split
from kilopix.data.sources.tables import ENDINGS
from kilopix.data.sources.tars import tar_pictures
from kilopix.errors import UserError

_DEEPEST = 3  # the hub keeps Parquet files up to two folders deep
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` of the hub's library writes


def list_source(place: Path, selection: Selection = EVERYTHING) -> Source:
    """The pictures of a folder: of class folders, a captions file, Parquet or tar files, or images alone.

    A single captions, Parquet or tar file can be given, too. Raises `UserError` for anything else, and if a
    selection leaves none.
    """
    if place.is_file():
        return _checked(_single_file(place, selection), place)
    if not place.is_dir():
        raise UserError(f"{place}: no such folder of images.")
    if any((place / name).is_file() for name in SAVED):
        raise UserError(
            f"{place}: a data set that `save_to_disk` wrote; `kilopix fetch {place} OUT` makes Parquet files "
            "of it, which can be given here."
        )
    tables = [table for table in captions_files(place) if not is_manifest(table)]
    parquets = [file for file in _below(place, (PARQUET,)) if file not in tables and not is_manifest(file)]
    tars = _below(place, (TAR,))
    found = [
        name
        for name, files in (("a captions file", tables), ("Parquet files", parquets), ("tar files", tars))
        if files
    ]
    if len(found) > 1 or len(tables) > 1:
        what = " and ".join(found) if len(found) > 1 else " and ".join(table.name for table in tables)
        raise UserError(f"{place}: holds {what}; give the one that is meant, or move the other away.")
    if tables:
        _no_split(selection, place)
        return _checked(captioned_pictures(tables[0], selection), place)
    if parquets or tars:
        files, notes = take_split(place, parquets or tars, selection.split)
        source = (_parquets if parquets else _tars)(place, files, selection)
        unused = source.unused + _beside(place)
        return _checked(replace(source, unused=unused, notes=tuple(notes)), place)
    return _folder(place, selection)


def _folder(place: Path, selection: Selection) -> Source:
    """Class folders, or images alone; refused where what is meant lies a level further down."""
    if selection.conditions or selection.caption_column or selection.label_column:
        raise UserError(
            f"{place}: --where, --caption-column and --label-column need a table, Parquet or tar files."
        )
    packed = _below(place, _PACKED)
    folders = sorted(f.name for f in place.iterdir() if f.is_dir() and not f.name.startswith("."))
    if packed and not folders and not is_flat_of_images(place):
        raise UserError(f"{packed[0]}: is packed; unpack it first (tar files without compression are read).")
    split = folder_of_split(place, folders, selection.split)
    if split is not None:
        return list_source(split, replace(selection, split=None))
    for folder in folders:
        if tables := captions_files(place / folder):
            raise UserError(
                f"{place}: its captions file is in {folder}, {tables[0].name}; give {place / folder}."
            )
    if is_flat(place):
        return _checked(flat_folder(place, selection), place)
    return class_folders(place, selection)


def is_flat_of_images(place: Path) -> bool:
    """Whether images lie in a folder, by their endings."""
    return any(file.suffix.lower() in IMAGE_ENDINGS for file in place.iterdir())


def _parquets(root: Path, files: list[Path], selection: Selection) -> Source:
    tally = Tally()
    items = parquet_pictures(root, files, selection, tally)
    columns = tuple(parquet_schema(files[0]).names)
    return Source(root, "Parquet files", items, [], tally if selection.conditions else None, columns=columns)


def _tars(root: Path, files: list[Path], selection: Selection) -> Source:
    tally = Tally()
    items, unused = tar_pictures(root, files, selection, tally)
    return Source(root, "tar shards", items, unused, tally if selection.conditions else None)


def _single_file(file: Path, selection: Selection) -> Source:
    _no_split(selection, file)
    ending = file.suffix.lower()
    if ending == TAR:
        return _tars(file.parent, [file], selection)
    if ending == PARQUET and holds_pictures(file):
        return _parquets(file.parent, [file], selection)
    if ending in ENDINGS:
        return captioned_pictures(file, selection)
    if file.name.lower().endswith(_PACKED):
        raise UserError(f"{file}: is packed; unpack it first (tar files without compression are read).")
    raise UserError(f"{file}: neither a folder of images nor a captions, Parquet or tar file.")


def _no_split(selection: Selection, place: Path) -> None:
    if selection.split is not None:
        raise UserError(f"--split: {place} is one table or file, which has no splits.")


def _checked(source: Source, place: Path) -> Source:
    if not source.items:
        why = f"{source.tally}" if source.tally else "holds no picture"
        first = f" ({source.unused[0][0]}: {source.unused[0][1]})" if source.unused else ""
        raise UserError(f"{place}: {why}{first}.")
    return source


def _beside(place: Path) -> list[tuple[str, str]]:
    """Packed files and loose images that lie beside the containers that are read."""
    packed = [(file, "is packed; unpack it to be read") for file in _below(place, _PACKED)]
    loose = [
        (file, "lies beside Parquet or tar files, which are read")
        for file in _below(place, tuple(IMAGE_ENDINGS))
    ]
    return [(file.relative_to(place).as_posix(), why) for file, why in packed + loose]


def _below(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files with one of these endings, whatever their capitals, up to two folders deep; none hidden."""
    found: list[Path] = []
    level = [folder]
    for _ in range(_DEEPEST):
        entries = [entry for one in level for entry in one.iterdir() if not entry.name.startswith(".")]
        found += [entry for entry in entries if entry.name.lower().endswith(endings) and entry.is_file()]
        level = [entry for entry in entries if entry.is_dir()]
    return sorted(found)
