"""Splits of a data set: which part of it a file or folder is, by its name.

In: the paths of files below a root, and the split that is wanted, if one is named. Out: the files of one
split, so that nobody trains on what he scores without knowing; a `UserError` where it is not clear which one
is meant.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from kilopix.errors import UserError

TRAIN = "train"
_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
}


def split_of(path: str) -> str | None:
    """The split that a path names in one of its words, as `data/train-00000-of-00008.parquet` does."""
    words = re.split(r"[^a-z]+", path.lower().rpartition(".")[0] or path.lower())
    found = {_NAMES[word] for word in words if word in _NAMES}
    return found.pop() if len(found) == 1 else None


def split_of_folder(name: str) -> str | None:
    """The split that a folder is named by, and by nothing else."""
    return _NAMES.get(name.lower())


def same_split(asked: str) -> str:
    """A split as a user may write it, by the name that it has here."""
    return _NAMES.get(asked.lower(), asked.lower())


def take_split(root: Path, files: Sequence[Path], asked: str | None) -> tuple[list[Path], list[str]]:
    """The files of the split that is asked for, or else of `train` where there are several; and notes.

    Where the names tell of one split or none, all files are taken.
    """
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(file.relative_to(root).as_posix()), []).append(file)
    named = sorted(name for name in by_split if name)
    there = ", ".join(f"{name} ({_files(len(by_split[name]))})" for name in named) or "none"
    if asked is not None:
        taken = by_split.get(same_split(asked))
        if not taken:
            raise UserError(f"{root}: has no split {asked!r} by the names of its files; it has {there}.")
        return taken, []
    if len(named) < 2:
        return list(files), []
    if TRAIN not in by_split:
        raise UserError(f"{root}: holds several splits, {there}; say with --split which is meant.")
    unnamed = len(by_split.get(None, []))
    more = f", and {_files(unnamed)} of none" if unnamed else ""
    return by_split[TRAIN], [f"{root}: holds the splits {there}{more}; takes train (--split names another)."]


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


def folder_of_split(root: Path, folders: Sequence[str], asked: str | None) -> Path | None:
    """The folder below `root` that holds the split asked for; None where folders are no splits.

    Folders that are splits are no classes: without a choice they are a `UserError` that names what to give.
    """
    splits = {folder: split for folder in folders if (split := split_of_folder(folder))}
    if asked is not None:
        found = [folder for folder in folders if folder == asked or splits.get(folder) == same_split(asked)]
        if len(found) != 1:
            there = ", ".join(splits) or "no folder of a split"
            raise UserError(f"{root}: has no split {asked!r}; it has {there}.")
        return root / found[0]
    if splits and (len(splits) == len(folders) or len(set(splits.values())) > 1):
        first = next((folder for folder, split in splits.items() if split == TRAIN), next(iter(splits)))
        raise UserError(
            f"{root}: holds {', '.join(splits)}, which are splits and no classes; give {root / first}, or "
            f"say --split {first}."
        )
    return None
