"""Splits of a data set: which part of it a file or folder is, by its name.

In: the paths of files below a root, and the split that is wanted, if one is named. Out: the files of one
split, so that nobody trains on what he scores without knowing; a `UserError` where it is not clear which one
is meant.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from kilopix.english import counted
from kilopix.errors import UserError

TRAIN = "train"
_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "trainval": "trainval",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "holdout": "holdout",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
}
_FILLING = {"", "set", "data", "dataset", "split", "images", "image", "imgs", "img"}


def split_of(path: str) -> str | None:
    """The split that a path names in one of its words, as `data/train-00000-of-00008.parquet` does.

    The file's own name counts before its folder's, and that before the one above.
    """
    for part in reversed(path.lower().split("/")):
        found = {_NAMES[word] for word in re.split(r"[^a-z]+", part) if word in _NAMES}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def split_of_folder(name: str) -> str | None:
    """The split that a folder is named by, and by nothing else: `train`, `train2017`, `Training_set`."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word not in _FILLING]
    return _NAMES.get(words[0]) if len(words) == 1 else None


def same_split(asked: str) -> str:
    """A split as a user may write it, by the name that it has here."""
    return _NAMES.get(asked.lower(), asked.lower())


def take_split(root: Path, files: Sequence[Path], asked: str | None) -> tuple[list[Path], list[str]]:
    """The files of the split that is asked for, or else of `train` where there are others; and notes.

    Where no name tells of a split, or all tell of one, all files are taken.
    """
    names = [file.relative_to(root).as_posix() for file in files]
    chosen, notes = _take(root, names, [split_of(name) for name in names], asked)
    _refuse_configurations(root, chosen)
    return [root / name for name in chosen], notes


def take_split_of_paths(root: Path, paths: Sequence[str], asked: str | None) -> tuple[list[str], list[str]]:
    """The same of images that a table names, by the folders that they lie in.

    One split among other folders is taken for a class, as it is where folders are classes.
    """
    splits = [split_of_folder(path.partition("/")[0]) for path in paths]
    if asked is None and len({split for split in splits if split}) < 2:
        return list(paths), []
    return _take(root, paths, splits, asked)


def _take(
    root: Path, paths: Sequence[str], splits: Sequence[str | None], asked: str | None
) -> tuple[list[str], list[str]]:
    by_split: dict[str | None, list[str]] = {}
    for path, split in zip(paths, splits, strict=True):
        by_split.setdefault(split, []).append(path)
    named = sorted(name for name in by_split if name)
    unnamed = len(by_split.get(None, []))
    there = ", ".join(f"{name} ({counted(len(by_split[name]), 'file')})" for name in named) or "none"
    if unnamed and named:
        there += f", and {counted(unnamed, 'file')} of none"
    if asked is not None:
        word = re.compile(rf"(?<![a-z0-9]){re.escape(asked.lower())}(?![a-z0-9])")
        literal = [path for path in paths if word.search(path.lower())] if asked.lower() not in _NAMES else []
        taken = literal or by_split.get(same_split(asked))
        if not taken:
            raise UserError(f"{root}: has no split {asked!r} by the names of its files; it has {there}.")
        return taken, []
    if not named or (len(named) == 1 and not unnamed):
        return list(paths), []
    if TRAIN not in by_split:
        raise UserError(f"{root}: holds several splits, {there}; say with --split which is meant.")
    return by_split[TRAIN], [f"{root}: holds the splits {there}; takes train (--split names another)."]


def _refuse_configurations(root: Path, paths: Sequence[str]) -> None:
    """Refuse files of several configurations of a data set, as `default/train/0000.parquet` names them."""
    parts = [path.split("/") for path in paths]
    found = sorted({"/".join(some[:-2]) for some in parts if len(some) > 2 and split_of_folder(some[-2])})
    if len(found) > 1:
        raise UserError(f"{root}: holds several configurations, {', '.join(found)}; give {root / found[0]}.")


def folder_of_split(
    root: Path, folders: Sequence[str], files: Sequence[str], asked: str | None
) -> Path | None:
    """The folder below `root` that holds the split asked for; None where folders are no splits.

    Folders that are splits are no classes: without a choice they are a `UserError` that names what to give.
    One split among classes is a class (a train is a thing), unless it holds nothing but folders.
    """
    splits = {folder: split for folder in folders if (split := split_of_folder(folder))}
    if asked is not None:
        found = [folder for folder in folders if folder == asked or splits.get(folder) == same_split(asked)]
        if len(found) != 1:
            there = ", ".join(splits) or "no folder of a split"
            raise UserError(f"{root}: has no split {asked!r}; it has {there}.")
        return root / found[0]
    direct = {path.split("/")[0] for path in files if path.count("/") == 1}
    hollow = [folder for folder in splits if folder not in direct]
    if splits and (len(splits) == len(folders) or len(set(splits.values())) > 1 or hollow):
        first = next((folder for folder, split in splits.items() if split == TRAIN), next(iter(splits)))
        what = "which are splits and no classes" if len(splits) > 1 else "which is a split and no class"
        raise UserError(
            f"{root}: holds {', '.join(splits)}, {what}; give {root / first}, or say --split {first}."
        )
    return None
