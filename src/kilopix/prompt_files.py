"""Prompts in files: one a line, JSON lines with one for each image, and GenEval's layout of folders.

In: paths that a user gives. Out: prompts and paths, checked. All readers of prompts go through here, so that
a file means the same at every door; what cannot be read as a prompt is a `UserError` that names the file.
GenEval's layout is `00000/metadata.jsonl`, `00000/samples/0000.png`, `00001/...`.
"""

import json
import posixpath
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from kilopix.english import counted
from kilopix.errors import UserError
from kilopix.runtime import Line, iterate_lines, not_below, text_lines
from kilopix.values import BadValue, texts_of

METADATA, SAMPLES = "metadata.jsonl", "samples"


def prompt_of(value: object, where: str) -> str:
    """The one prompt that a value of a record is, in one line; `where` is what an error names.

    A list is refused even if it holds one prompt: which of several an image was made of is not known.
    """
    try:
        texts = texts_of(value, "prompt")
    except BadValue as error:
        raise UserError(f"{where}: {error}.") from None
    if isinstance(value, list | tuple) or len(texts) > 1:
        raise UserError(f"{where}: its prompt is a list; write one prompt, as a text.")
    if not texts or not texts[0]:
        raise UserError(f"{where}: its prompt is empty.")
    return texts[0]


def prompts_in_lines(lines: Sequence[str], origin: str) -> list[str]:
    """One prompt a line, without empty lines; none at all is an error."""
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{origin}: no prompts in it; write one a line.")
    return prompts


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file with one a line."""
    return prompts_in_lines(text_lines(path), str(path))


def prompts_by_file(path: Path, root: Path, files: Sequence[str]) -> tuple[str, ...]:
    """The prompt of every one of `files`, below `root`, from lines `{"file": ..., "prompt": ...}`.

    The lines must be of these files and no others, each once. Files may be written with `./`, with
    backslashes, or as absolute paths below the root.
    """
    known = set(files)
    found: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for number, line in enumerate(iterate_lines(path), start=1):
        where = f"{path}, entry {number}"
        missing = [key for key in ("file", "prompt") if key not in line]
        if missing:
            raise UserError(
                f"{where}: the key {missing[0]!r} is missing; "
                'write one line {"file": ..., "prompt": ...} for every image.'
            )
        name = file_name(line["file"], where, root, known)
        if name in found:
            raise UserError(f"{where}: {name} has a prompt already, in entry {numbers[name]}; keep one.")
        found[name], numbers[name] = prompt_of(line["prompt"], where), number
    lacking = [name for name in files if name not in found]
    if lacking:
        raise UserError(f"{path}: has no prompt for {lacking[0]} ({len(lacking)} such).")
    extra = sorted(found.keys() - known)
    if extra:
        raise UserError(f"{path}: has a prompt for {extra[0]}, which is not there ({len(extra)} such).")
    return tuple(found[name] for name in files)


def file_name(value: object, where: str, root: Path, known: Collection[str] = ()) -> str:
    """The path below `root` that a value of a record names; one of `known` is taken as it is."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: 'file' must be the name of a file, not {value!r}.")
    if value in known:
        return value
    name = value.strip().replace("\\", "/")
    for start in (root, root.resolve()):
        if PurePosixPath(name).is_relative_to(start.as_posix()) and start.is_absolute():
            name = PurePosixPath(name).relative_to(start.as_posix()).as_posix()
    name = posixpath.normpath(name)
    if not_below(name):
        raise UserError(f"{where}: {value!r} is not below {root}.")
    return name


@dataclass(frozen=True)
class GenevalPrompt:
    """One numbered folder of GenEval's layout: what its metadata say, and its images below the root."""

    folder: Path
    values: Line
    files: tuple[str, ...]

    @property
    def where(self) -> str:
        """What an error about the metadata names."""
        return f"{self.folder / METADATA}, line 1"

    @property
    def prompt(self) -> str:
        """The prompt of the images."""
        return prompt_of(self.values["prompt"], self.where)


def is_geneval_layout(root: Path) -> bool:
    """Whether any folder in `root` holds metadata as GenEval's do."""
    return any((folder / METADATA).exists() for folder in root.iterdir() if folder.is_dir())


def read_geneval_layout(
    root: Path, endings: Collection[str] = (".png",), per_prompt: int | None = None
) -> list[GenevalPrompt]:
    """The numbered folders below `root`, in order; every prompt must have as many images.

    With `per_prompt` that many, else as many as the most have.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of pictures.")
    inside = [f for f in root.iterdir() if f.is_dir()]
    odd = sorted(f for f in inside if not f.name.isdecimal() and (f / METADATA).exists())
    if odd:
        raise UserError(f"{odd[0]}: holds {METADATA}, but its name is no number such as 00000; rename it.")
    folders = sorted((f for f in inside if f.name.isdecimal()), key=_number)
    if not folders:
        raise UserError(f"{root}: holds no folders 00000, 00001, ... as GenEval's pictures do.")
    _no_two_of_a_number(folders)
    read = [GenevalPrompt(f, _read_metadata(f / METADATA), _images(root, f, endings)) for f in folders]
    wanted = per_prompt or max(len(one.files) for one in read)
    for one in read:
        if len(one.files) != wanted:
            found = f"{counted(len(one.files), 'picture')}, where {wanted} are expected"
            raise UserError(f"{one.folder / SAMPLES}: {found}; every prompt must have as many.")
    return read


def _number(path: Path) -> int:
    return int(path.stem)


def _no_two_of_a_number(paths: Sequence[Path]) -> None:
    for before, after in pairwise(paths):
        if _number(before) == _number(after):
            raise UserError(f"{after} and {before.name} have the same number; keep one.")


def _read_metadata(path: Path) -> Line:
    """The one JSON object of a file, on one line or, as the official script also reads it, on several."""
    if not path.exists():
        raise UserError(f"{path}: missing; it holds the prompt of the pictures beside it.")
    text = "\n".join(text_lines(path))
    try:
        values: Any = json.loads(text) if text.strip() else None
    except json.JSONDecodeError as error:
        try:
            several = len(list(iterate_lines(path)))
        except UserError:
            raise UserError(f"{path}: not valid JSON: {error}.") from None
        raise UserError(f"{path}: holds {several} prompts, where one is expected.") from None
    if values is None:
        raise UserError(f"{path}: is empty; it holds the prompt of the pictures beside it.")
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected an object with the keys tag, include and prompt.")
    for key in ("tag", "prompt"):
        if key not in values:
            raise UserError(f"{path}, line 1: the key {key!r} is missing; GenEval's metadata hold it.")
    prompt_of(values["prompt"], f"{path}, line 1")
    return values


def _images(root: Path, folder: Path, endings: Collection[str]) -> tuple[str, ...]:
    samples = folder / SAMPLES
    if not samples.is_dir():
        raise UserError(f"{samples}: missing; the pictures of {folder.name} belong there.")
    files = [f for f in samples.iterdir() if not f.name.startswith(".")]
    for file in sorted(files):
        if not (file.is_file() and file.suffix.lower() in endings and file.stem.isdecimal()):
            raise UserError(f"{file}: not a picture named 0000.png, 0001.png, ...; rename or remove it.")
    files.sort(key=_number)
    _no_two_of_a_number(files)
    return tuple(f.relative_to(root).as_posix() for f in files)
