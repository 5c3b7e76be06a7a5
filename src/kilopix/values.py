"""What the values of tables, records and prompt files say: captions, prompts and labels.

In: a value of any type, as CSV, JSON, Parquet or a tar member holds it. Out: texts. Every reader goes through
these two functions, so that a value means the same at every door, and one that is no text is refused instead
of being printed in Python's notation.
"""

import ast
import json
import math
import re
from collections.abc import Iterator
from typing import Any

_MISSING = {"", "nan", "none", "null", "<na>"}
"""How tables that were written without care spell a missing text, in small letters."""
_WHOLE = re.compile(r"(-?\d+)\.0*")


class BadValue(ValueError):
    """A value that is no caption, or no label; the message says what it is."""


def texts_of(value: object, what: str = "caption") -> tuple[str, ...]:
    """The texts of a value, each in one line: none, one, or the several of a list, without repeats.

    None, NaN, and words such as `nan` alone are no text. A list, also one that was written into a text in
    JSON's or Python's notation, holds several. Raises `BadValue` for numbers, booleans, records and the like.
    """
    return tuple(dict.fromkeys(_texts(value, what, inside=False)))


def _texts(value: object, what: str, inside: bool) -> Iterator[str]:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadValue(f"its {what} is not text in UTF-8") from None
    if _is_missing(value):
        return
    if isinstance(value, str):
        listed = None if inside else _written_list(value)
        if listed is None:
            yield " ".join(value.lstrip("\ufeff").split())
            return
        value = listed
    if inside or not isinstance(value, list | tuple):
        raise BadValue(f"its {what} is {_name(value)}, not text")
    for one in value:
        yield from _texts(one, what, inside=True)


def label_of(value: object) -> str:
    """The label that a value is: words, or a whole number in digits; empty where there is none.

    3, 3.0 and the texts `3` and `3.0`, as pandas writes numbers of a column with gaps, are all `3`. A list of
    one label is that label. Raises `BadValue` for anything else.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadValue("its label is not text in UTF-8") from None
    if _is_missing(value) or value in ([], ()):
        return ""
    if isinstance(value, str):
        text = " ".join(value.lstrip("\ufeff").split())
        whole = _WHOLE.fullmatch(text)
        return whole[1] if whole else text
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    raise BadValue(f"its label is {_name(value)}, not a class name or a whole number")


def _is_missing(value: object) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip().strip("\ufeff").lower() in _MISSING)


def _written_list(text: str) -> list[Any] | None:
    """The list that a text is the notation of, as pandas writes a column of lists; None if it is none."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list) and found and all(isinstance(one, str) for one in found):
            return found
    return None


def _name(value: object) -> str:
    """What a value is, in words that a message can hold."""
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, dict):
        keys = ", ".join(map(str, list(value)[:3]))
        return f"a record ({keys})" if value else "an empty record"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"a value of type {type(value).__name__}"
