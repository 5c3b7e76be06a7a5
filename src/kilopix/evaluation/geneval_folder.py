"""GenEval's folder of pictures: `00000/metadata.jsonl`, `00000/samples/0000.png`, `00001/...`.

In: a folder in this layout, made by kilopix or by anything else. Out: its pictures with their prompts, in
order; whatever is missing, doubled or out of place is a `UserError` that names it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kilopix.evaluation.geneval import Prompt, prompt_from_values, prompts_to_text
from kilopix.evaluation.geneval_prompts import official_prompts
from kilopix.prompt_files import METADATA, SAMPLES, read_geneval_layout
from kilopix.types import UserError


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
    read = read_geneval_layout(root, per_prompt=per_prompt)
    return [Asked(prompt_from_values(one.values, one.where), one.files) for one in read]


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
