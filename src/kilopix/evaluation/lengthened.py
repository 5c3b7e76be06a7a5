"""Lengthened prompts: a file of plain prompts and what a language model made of each.

In and out: JSON lines, of which the first says which model wrote them and how it was asked. Scores of
lengthened prompts are a protocol of their own, which a card names by model and hash.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kilopix.runtime import sha256_of_text
from kilopix.types import UserError

INSTRUCTION = (
    "Lengthen the prompt below for a model that draws pictures. Write one paragraph of 40 to 80 words that "
    "describes the same picture in more detail: looks, material, light, surroundings. Keep every object, its "
    "number, its colour and where it is exactly as the prompt says. Do not add further objects of the kinds "
    "it names, and do not give colours to what it leaves without one. Answer with the paragraph alone.\n\n"
    "Prompt: {prompt}"
)


@dataclass(frozen=True)
class Lengthened:
    """Longer texts by plain prompt, who wrote them, and the hash of the texts."""

    texts: dict[str, str]
    model: str
    sha256: str

    @property
    def style(self) -> str:
        """What cards say of the prompts."""
        return f"lengthened by {self.model} ({self.sha256[:12]})"

    def of(self, prompts: Sequence[str]) -> list[str]:
        """The longer texts of prompts; raises `UserError` if one is missing."""
        missing = [prompt for prompt in prompts if prompt not in self.texts]
        if missing:
            raise UserError(f"{len(missing)} prompts have no lengthened text, such as {missing[0]!r}.")
        return [self.texts[prompt] for prompt in prompts]


def lengthened_from_lines(lines: Sequence[dict[str, Any]], origin: str) -> Lengthened:
    """Read what `kilopix lengthen` wrote; `origin` is what a `UserError` names as the source."""
    try:
        model = lines[0]["model"]
        texts = {line["prompt"]: line["lengthened"] for line in lines[1:]}
    except (KeyError, IndexError, TypeError):  # the last where a prompt is a list
        raise UserError(
            f"{origin}: not a file of lengthened prompts; `kilopix lengthen` writes one."
        ) from None
    both = [*texts.keys(), *texts.values()]
    if len(texts) != len(lines) - 1 or not all(isinstance(text, str) and text.strip() for text in both):
        raise UserError(f"{origin}: a prompt is in it twice or has no text; make it again.")
    return Lengthened(texts, model, sha256_of_text(json.dumps(sorted(texts.items()))))
