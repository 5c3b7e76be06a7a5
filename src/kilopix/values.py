"""What the values of tables, records and prompt files say: captions, prompts and labels.

In: a value of any type, as CSV, JSON, Parquet or a tar member holds it. Out: texts. Every reader goes through
these two functions, so that a value means the same at every door, and one that is no text is refused instead
of being printed in Python's notation.
"""

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

_MISSING = {"", "nan", "none", "null", "<na>"}
"""How tables that were written without care spell a missing text, in small letters."""
_TRUTH = {"true", "false"}
_WHOLE = re.compile(r"([+-]?\d+)(\.0*)?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_QUOTED = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None|nan)\s*,?""", re.DOTALL)
_LONGEST_SHOWN = 40


class BadValue(ValueError):
    """A value that is no caption, or no label; the message says what it is."""


def texts_of(value: object, what: str = "caption") -> tuple[str, ...]:
    """The texts of a value, each in one line: none, one, or the several of a list, without repeats.

    None, NaN, and words such as `nan` alone are no text. A list, also one that was written into a text in the
    notation of JSON, Python or NumPy, holds several. Raises `BadValue` for numbers, booleans, records and the
    like, and for a caption without a letter.
    """
    return tuple(dict.fromkeys(_texts(value, what, inside=False)))


def _texts(value: object, what: str, inside: bool) -> Iterator[str]:
    value = _decoded(value, what)
    if is_missing(value):
        return
    if isinstance(value, str) and not inside:
        value = _written(value)
    if isinstance(value, str):
        text = " ".join(value.lstrip("\ufeff").split())
        if what == "caption" and (text.lower() in _TRUTH or not any(map(str.isalpha, text))):
            raise BadValue(f"its caption {_shown(text)} has no words")
        yield text
        return
    if inside or not isinstance(value, list | tuple):
        raise BadValue(f"its {what} is {_name(value)}, not text")
    for one in value:
        yield from _texts(one, what, inside=True)


def label_of(value: object) -> str:
    """The label that a value is: words, or a whole number in digits; empty where there is none.

    3, 3.0 and the texts `3`, `003` and `3.0`, as pandas writes numbers of a column with gaps, are all `3`. A
    list of one label, also a written one, is that label. Raises `BadValue` for anything else.
    """
    value = _decoded(value, "label")
    if isinstance(value, str) and not is_missing(value):
        value = _written(value)
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise BadValue(f"its label is {_name(value)}, not a class name or a whole number")
        value = value[0] if value else None
    if is_missing(value):
        return ""
    if isinstance(value, str):
        text = " ".join(value.lstrip("\ufeff").split())
        if text.lower() in _TRUTH:
            value = text.lower() == "true"
        elif _NUMBER.fullmatch(text) and len(text) < 400:
            whole = _WHOLE.fullmatch(text)
            value = int(whole[1]) if whole else float(text)
        else:
            return text
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    raise BadValue(f"its label is {_name(value)}, not a class name or a whole number")


def is_missing(value: object) -> bool:
    """Whether a value is none: null, NaN, an empty list, or a text that says so."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, list | tuple):
        return not value
    return value is None or (isinstance(value, str) and value.strip().strip("\ufeff").lower() in _MISSING)


def first_present(values: Iterable[object]) -> object:
    """The first value that is not missing; None if all are."""
    return next((value for value in values if not is_missing(value)), None)


def _decoded(value: object, what: str) -> object:
    """A value as text, if it is the bytes of one; one that cannot be written as UTF-8 is refused."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadValue(f"its {what} is not text in UTF-8") from None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadValue(f"its {what} holds half a character, a lone surrogate") from None
    return value


def _written(text: str) -> Any:
    """The list, record or bytes that a text is the notation of, as pandas writes them; else the text."""
    stripped = text.strip()
    if stripped[0] + stripped[-1] in ("[]", "{}", "()") or stripped[:2] in ("b'", 'b"'):
        if (listed := _quoted_list(stripped)) is not None:
            return listed
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(stripped)
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                continue
            if isinstance(found, list | tuple | dict | set | bytes):
                return found
    return text


def _quoted_list(text: str) -> list[str | None] | None:
    """A list of quoted texts, with commas between or, as NumPy writes it, without; None if it is none."""
    inside, found, at = text[1:-1], [], 0
    if text[0] != "[":
        return None
    while at < len(inside) and (match := _QUOTED.match(inside, at)):
        found.append(None if match[1] in ("None", "nan") else ast.literal_eval(match[1]))
        at = match.end()
    return found if found and not inside[at:].strip() else None


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "...")


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
