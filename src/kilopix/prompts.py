"""Prompts and lists as a user types them: prompt matrices, `1,3,5`, `2-6`.

In: text. Out: the prompts or numbers that it means.
"""

import itertools
import re
from collections.abc import Sequence

from kilopix.errors import UserError

_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")
MOST_PROMPTS = 10_000


def expand(text: str) -> list[str]:
    """All prompts of a matrix: `a {red|blue} {fox|car}` is four, the last choice changing first.

    A choice may be empty, as in `a {big |}fox`. Braces without a bar are text.
    """
    parts = _CHOICE.split(text)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    count = 1
    for options in choices:
        count *= len(options)
    if count > MOST_PROMPTS:
        raise UserError(f"prompt {text[:60]!r}: a matrix of {count:,} prompts; at most {MOST_PROMPTS:,}.")
    prompts = (" ".join("".join(words).split()) for words in itertools.product(*choices))
    return list(dict.fromkeys(prompts)) if len(parts) > 1 else [text]


def expand_all(texts: Sequence[str]) -> list[str]:
    """The prompts of several matrices, in their order."""
    return [prompt for text in texts for prompt in expand(text)]


def numbers(text: str | None, option: str) -> tuple[float, ...]:
    """`1,3,5.5` as numbers without repeats; none for None."""
    return () if text is None else tuple(dict.fromkeys(_number(part, option) for part in text.split(",")))


def whole_numbers(text: str | None, option: str) -> tuple[int, ...]:
    """`1,3` and `2-6` as whole numbers without repeats; none for None."""
    found: list[int] = []
    for part in () if text is None else text.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", part)
        if ends:
            first, last = int(ends[1]), int(ends[2])
            if not first <= last < first + MOST_PROMPTS:
                raise UserError(f"{option} {part.strip()}: a range goes upwards, as in 2-6.")
            found += range(first, last + 1)
            continue
        number = _number(part, option)
        if number != int(number):
            raise UserError(f"{option} {part.strip()}: not a whole number.")
        found.append(int(number))
    return tuple(dict.fromkeys(found))


def _number(text: str, option: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"{option} {text.strip()!r}: not a number; give one, or several: 1,3,5.") from None
    if not abs(number) <= 1e15:
        raise UserError(f"{option} {text.strip()}: not a number of at most 1e15.")
    return number
