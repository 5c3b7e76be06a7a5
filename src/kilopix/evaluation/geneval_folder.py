"""GenEval's folder of pictures: `00000/metadata.jsonl`, `00000/samples/0000.png`, `00001/...`.

In: a folder in this layout, made by kilopix or by anything else. Out: its pictures with their prompts, in
order; whatever is missing, doubled or out of place is a `UserError` that names it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kilopix.evaluation.geneval import Prompt, prompts_from_text, prompts_to_text
from kilopix.evaluation.geneval_prompts import official_prompts
from kilopix.types import UserError

METADATA, SAMPLES = "metadata.jsonl", "samples"


@dataclass(frozen=True)
class Asked:
    """One prompt of a folder and its pictures, as paths below the folder."""

    prompt: Prompt
    files: tuple[str, ...]


def metadata_path(root: Path, number: int) -> Path:
    """Where the prompt of this number is described."""
    return root / f"{number:05d}" / METADATA


def sample_path(root: Path, number: int, picture: int) -> Path:
    """Where a picture of a prompt lies."""
    return root / f"{number:05d}" / SAMPLES / f"{picture:04d}.png"


def read_folder(root: Path, per_prompt: int | None = None) -> list[Asked]:
    """The prompts and pictures below `root`, by number; every prompt must have as many pictures.

    With `per_prompt` that many, else as many as the most have.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of pictures.")
    folders = sorted((f for f in root.iterdir() if f.is_dir() and f.name.isdecimal()), key=_number)
    if not folders:
        raise UserError(f"{root}: holds no folders 00000, 00001, ... as GenEval's pictures do.")
    _no_two_of_a_number(folders)
    asked = [Asked(_read_prompt(f), tuple(str(p.relative_to(root)) for p in _pictures(f))) for f in folders]
    wanted = per_prompt or max(len(one.files) for one in asked)
    for folder, one in zip(folders, asked, strict=True):
        if len(one.files) != wanted:
            found = f"{len(one.files)} pictures, where {wanted} are expected"
            raise UserError(f"{folder / SAMPLES}: {found}; every prompt must have as many.")
    return asked


def _number(path: Path) -> int:
    return int(path.stem)


def _no_two_of_a_number(paths: Sequence[Path]) -> None:
    for before, after in pairwise(paths):
        if _number(before) == _number(after):
            raise UserError(f"{after} and {before.name} have the same number; keep one.")


def _read_prompt(folder: Path) -> Prompt:
    path = folder / METADATA
    if not path.is_file():
        raise UserError(f"{path}: missing; it holds the prompt of the pictures beside it.")
    try:
        prompts = prompts_from_text(path.read_text(), str(path))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file.") from None
    if len(prompts) != 1:
        raise UserError(f"{path}: holds {len(prompts)} prompts, where one is expected.")
    return prompts[0]


def _pictures(folder: Path) -> list[Path]:
    samples = folder / SAMPLES
    if not samples.is_dir():
        raise UserError(f"{samples}: missing; the pictures of {folder.name} belong there.")
    files = [f for f in samples.iterdir() if not f.name.startswith(".")]
    for file in sorted(files):
        if not (file.is_file() and file.suffix == ".png" and file.stem.isdecimal()):
            raise UserError(f"{file}: not a picture named 0000.png, 0001.png, ...; rename or remove it.")
    files.sort(key=_number)
    _no_two_of_a_number(files)
    return files


def check_official(root: Path, prompts: Sequence[Prompt]) -> bool:
    """Whether these are the official 553 prompts, lengthened (True) or as they are (False).

    A lengthened prompt asks for the same objects in other words. Raises `UserError` if prompts are missing,
    doubled or foreign, or if only some are lengthened.
    """
    official = official_prompts()
    kinds = [_request(prompt) for prompt in official]
    asked = Counter(map(_request, prompts))
    for number, (kind, prompt) in enumerate(zip(kinds, official, strict=True)):
        if asked[kind] != 1:
            how = "missing" if not asked[kind] else "there more than once"
            raise UserError(
                f"{root}: prompt {number} ({prompt.text!r}) is {how}; give all 553 prompts once, or "
                "--any-prompts to score a set of another kind."
            )
    if len(prompts) != len(official):
        foreign = next(prompt for prompt in prompts if _request(prompt) not in kinds)
        raise UserError(f"{root}: {foreign.text!r} is not one of the 553 prompts; see --any-prompts.")
    plain = {prompt.text for prompt in official}
    lengthened = [prompt for prompt in prompts if prompt.text not in plain]
    if lengthened and len(lengthened) < len(prompts):
        raise UserError(
            f"{root}: {len(lengthened)} of {len(prompts)} prompts are lengthened, such as "
            f"{lengthened[0].text[:60]!r}; plain and lengthened prompts are two protocols, never one score."
        )
    return bool(lengthened)


def _request(prompt: Prompt) -> tuple[object, ...]:
    return prompt.tag, prompt.include, prompt.exclude


def metadata_text(prompt: Prompt) -> str:
    """The text of a prompt's file, byte for byte as the official generation script writes it."""
    return prompts_to_text([prompt]).rstrip("\n")
