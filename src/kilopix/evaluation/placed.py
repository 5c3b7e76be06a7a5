"""Prompts that say where: two objects in the words in which training captions tell of CutMix pictures.

In: GenEval's prompts. Out: their texts, `A photo of a fox. In the top left corner, a red cup.` in place of
`a photo of a red cup and a fox`. A network that was taught by such captions need not choose a place for
itself. Scores of placed prompts are a protocol of their own, as those of lengthened ones are.
"""

import random

from kilopix.english import with_article
from kilopix.evaluation.geneval import Clause, Prompt
from kilopix.runtime import seed_from

CORNERS = ("top left corner", "top right corner", "bottom left corner", "bottom right corner")
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_WORD_OF = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}


def placed(prompt: Prompt) -> str:
    """The text of a prompt; one of two objects is put into a corner, which fits their relation if it has one.

    Prompts of other than two single objects stay as they are; the same prompt has always the same text.
    """
    if len(prompt.include) != 2 or any(clause.count != 1 for clause in prompt.include):
        return prompt.text
    rng = random.Random(seed_from("placed", prompt.text))
    large, small = rng.sample(prompt.include, 2)
    relation = next((_relation(small, clause) for clause in prompt.include if clause.position), None)
    corners = [c for c in CORNERS if relation is None or _WORD_OF[relation] in c.split()]
    return f"A photo of {_noun(large)}. In the {rng.choice(corners)}, {_noun(small)}."


def _relation(small: Clause, told: Clause) -> str:
    """How the small object lies from the other, by the clause that tells it of one of them."""
    assert told.position is not None
    return told.position[0] if told is small else _OPPOSITE[told.position[0]]


def _noun(clause: Clause) -> str:
    return with_article(f"{clause.color} {clause.name}" if clause.color else clause.name)
