"""Which kind of source a place is, from what lies in it.

In: a folder, or a single file. Out: its `Source`. What could be two kinds at once is refused, so that no
picture is overlooked.
"""

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

from kilopix.data.manifest import is_manifest
from kilopix.data.sources.captioned import captioned_pictures, captions_files
from kilopix.data.sources.containers import PARQUET, TAR
from kilopix.data.sources.folders import SIDE_FILES, Walk, class_folders, flat_folder, walk
from kilopix.data.sources.items import Source
from kilopix.data.sources.parquet import holds_pictures, parquet_pictures, parquet_schema
from kilopix.data.sources.selection import EVERYTHING, NO_LABEL, Selection, Tally
from kilopix.data.sources.splits import folder_of_split, take_split
from kilopix.data.sources.tables import ENDINGS
from kilopix.data.sources.tars import tar_pictures
from kilopix.errors import UserError
from kilopix.progress import working

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")
SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` of the hub's library writes."""
_GENERIC = {"images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "data", "dataset", "all"}


@working("list images")
def list_source(place: Path, selection: Selection = EVERYTHING) -> Source:
    """The pictures of a folder: of class folders, a captions file, Parquet or tar files, or images alone.

    A single captions, Parquet or tar file can be given, too. Raises `UserError` for anything else, and if a
    selection leaves none.
    """
    if place.is_file():
        return _checked(_single_file(place, selection), place)
    if not place.is_dir():
        raise UserError(f"{place}: no such {'file' if place.suffix else 'folder of images'}.")
    try:
        names = {entry.name for entry in place.iterdir()}
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}).") from None
    if names & {*SAVED}:
        raise UserError(
            f"{place}: a data set that `save_to_disk` wrote; `kilopix fetch {place} OUT` makes Parquet files "
            "of it, which can be given here."
        )
    below = walk(place, place)
    tables = [table for table in captions_files(place) if not is_manifest(table)]
    parquets, doubles = _containers(place, below.files, PARQUET)
    parquets = [file for file in parquets if file not in tables and not is_manifest(file)]
    tars, more = _containers(place, below.files, TAR)
    without: list[tuple[str, str]] = []
    if tars and not any(map(holds_pictures, parquets)):
        why = "holds no images, and lies beside tar files, which are read"
        without = [(file.relative_to(place).as_posix(), why) for file in parquets]
        parquets = []
    if tables and holds_pictures(tables[0]) and not parquets and not tars:
        tables, parquets = [], tables
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
    if parquets or tars:
        files, notes = take_split(place, parquets or tars, selection.split)
        source = (_parquets if parquets else _tars)(place, files, selection)
        read = {item.path for item in source.items}
        unused = source.unused + below.passed + doubles + more + without
        unused += [
            (path, "lies beside Parquet or tar files, which are read")
            for path in below.files
            if path not in read and _is_beside(path)
        ]
        hidden = source.hidden + below.hidden
        return _checked(replace(source, unused=unused, notes=tuple(notes), hidden=hidden), place)
    return _folder(place, selection, below)


def _is_beside(path: str) -> bool:
    """Whether a file beside containers could be meant to be read: no container, table or text about them."""
    suffix = PurePosixPath(path).suffix.lower()
    return suffix not in (PARQUET, TAR) and (suffix not in SIDE_FILES or suffix in (".csv", ".tsv"))


def _containers(root: Path, files: list[str], ending: str) -> tuple[list[Path], list[tuple[str, str]]]:
    """The containers of an ending, in any capitals, and those that are links to another one of them."""
    found: dict[str, Path] = {}
    doubles: list[tuple[str, str]] = []
    wanted = [root / path for path in files if path.lower().endswith(ending)]
    for file in sorted(wanted, key=lambda file: file.is_symlink()):
        first = found.setdefault(os.path.realpath(file), file)
        if first != file:
            doubles.append((file.relative_to(root).as_posix(), f"the same file as {first.relative_to(root)}"))
    return sorted(found.values()), doubles


def _folder(place: Path, selection: Selection, below: Walk) -> Source:
    """Class folders, or images alone; refused where what is meant lies a level further down."""
    if selection.conditions or selection.caption_column or selection.label_column not in (None, NO_LABEL):
        raise UserError(
            f"{place}: --where, --caption-column and --label-column need a table, Parquet or tar files."
        )
    folders = sorted({path.partition("/")[0] for path in below.files if "/" in path})
    packed = [path for path in below.files if path.lower().endswith(_PACKED)]
    if packed and len(packed) == len([p for p in below.files if PurePosixPath(p).suffix not in SIDE_FILES]):
        raise UserError(
            f"{place / packed[0]}: is packed; unpack it first (tar files without compression are read)."
        )
    split = folder_of_split(place, folders, below.files, selection.split)
    if split is not None:
        return list_source(split, replace(selection, split=None))
    for folder in folders:
        if tables := captions_files(place / folder):
            raise UserError(
                f"{place}: its captions file is in {folder}, {tables[0].name}; give {place / folder}."
            )
    if not folders and any(PurePosixPath(path).suffix.lower() not in SIDE_FILES for path in below.files):
        return _checked(flat_folder(place, selection, below), place)
    if len(folders) == 1 and folders[0].lower() in _GENERIC:
        raise UserError(
            f"{place}: holds one folder, {folders[0]}, whose name is no class; give {place / folders[0]}, or "
            "a file captions.csv with the columns file_name, caption and label."
        )
    return class_folders(place, selection, below)


def _parquets(root: Path, files: list[Path], selection: Selection) -> Source:
    tally = Tally()
    items = parquet_pictures(root, files, selection, tally)
    columns = tuple(parquet_schema(files[0]).names)
    counted = tally if selection.conditions else None
    return Source(root, "Parquet files", items, [], counted, columns=columns)


def _tars(root: Path, files: list[Path], selection: Selection) -> Source:
    tally = Tally()
    items, unused, hidden = tar_pictures(root, files, selection, tally)
    return Source(root, "tar shards", items, unused, tally if selection.conditions else None, hidden)


def _single_file(file: Path, selection: Selection) -> Source:
    ending = file.suffix.lower()
    if selection.split is not None and ending in (TAR, PARQUET):
        raise UserError(f"--split: {file} is one file, which has no splits.")
    if ending == TAR:
        return _tars(file.parent, [file], selection)
    if ending == PARQUET and holds_pictures(file):
        return _parquets(file.parent, [file], selection)
    if ending in ENDINGS:
        return captioned_pictures(file, selection)
    if file.name.lower().endswith(_PACKED):
        raise UserError(f"{file}: is packed; unpack it first (tar files without compression are read).")
    raise UserError(f"{file}: neither a folder of images nor a captions, Parquet or tar file.")


def _checked(source: Source, place: Path) -> Source:
    if not source.items:
        if source.tally:
            raise UserError(f"{place}: {source.tally}.")
        first = f" ({source.unused[0][0]}: {source.unused[0][1]})" if source.unused else ""
        raise UserError(f"{place}: holds no picture{first}.")
    return source
