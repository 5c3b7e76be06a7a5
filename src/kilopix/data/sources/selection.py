"""Which pictures of a source are wanted, by what its table says of each: `aesthetic>=6.5`.

In: conditions as a user writes them, and rows of a table, a record or a Parquet file. Out: whether a row is
wanted, its caption, and how many were and were not.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kilopix.data.sources.columns import CAPTION_COLUMNS, CLASS_COLUMNS, find_columns
from kilopix.english import counted
from kilopix.errors import UserError

NO_LABEL = "none"
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
    "==": operator.eq,
}
_WRITTEN = re.compile(r"\s*([^<>=!]+?)\s*(>=|<=|!=|==|>|<|=)\s*([^<>=!].*?)\s*")


@dataclass(frozen=True)
class Condition:
    """A column, an operator and a number, or a word for `=` and `!=`."""

    column: str
    sign: str
    value: float | str

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read `column>=6.5`; anything else is a `UserError` that says how to write it."""
        found = _WRITTEN.fullmatch(text)
        if not found:
            raise UserError(f"--where {text!r}: write it as COLUMN>=NUMBER, with >=, <=, >, <, = or !=.")
        column, sign, value = found.groups()
        number = _number(value)
        if number is None and sign not in ("=", "==", "!="):
            raise UserError(f"--where {text!r}: {value!r} is no number.")
        return cls(column, sign, value if number is None else number)

    def holds(self, found: object) -> bool | None:
        """Whether it holds of a value; None if the row has none that could be compared."""
        value = found if isinstance(self.value, str) else _number(found)
        if value is None or value == "":
            return None
        if not isinstance(self.value, str):
            return _OPERATORS[self.sign](value, self.value)
        if self.value.lower() in ("true", "false"):  # a truth value has other capitals in every notation
            return _OPERATORS[self.sign](str(value).lower(), self.value.lower())
        return _OPERATORS[self.sign](str(value), self.value)


def _number(value: object) -> float | None:
    """The number that a value is, or is written as; a NaN is none."""
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


@dataclass(frozen=True)
class Selection:
    """All conditions, which must hold together, and what else is taken in another way than usual.

    `caption_column` and `label_column` name columns of captions and of labels, `none` being no label;
    `split` is the part of a data set that is meant, and with `caption_lines` every line of a text file beside
    a picture is a caption of its own.
    """

    conditions: tuple[Condition, ...] = ()
    caption_column: str | None = None
    label_column: str | None = None
    split: str | None = None
    caption_lines: bool = False

    @classmethod
    def of(
        cls,
        where: Sequence[str] = (),
        caption_column: str | None = None,
        label_column: str | None = None,
        split: str | None = None,
        caption_lines: bool = False,
    ) -> "Selection":
        """The selection that a user asks for."""
        conditions = tuple(Condition.parse(text) for text in where)
        return cls(conditions, caption_column, label_column, split, caption_lines)

    def __bool__(self) -> bool:
        return self != EVERYTHING

    def columns(self) -> list[str]:
        """The columns that it reads."""
        named = [name for name in (self.caption_column, self._label()) if name]
        return [condition.column for condition in self.conditions] + named

    def _label(self) -> str | None:
        return None if self.label_column == NO_LABEL else self.label_column

    def columns_of(self, names: Sequence[str], place: Path) -> tuple[list[str], list[str]]:
        """The columns of captions and of labels that a source has, of which the first that is filled counts.

        Raises `UserError` if one that was asked for is not there.
        """
        spelled = self.check(names, place)
        captions = (
            [spelled[self.caption_column]] if self.caption_column else find_columns(names, CAPTION_COLUMNS)
        )
        if self.label_column is None:
            return captions, find_columns(names, CLASS_COLUMNS)
        return captions, [spelled[label]] if (label := self._label()) else []

    def check(self, names: Iterable[str], place: Path) -> dict[str, str]:
        """The source's own spelling of every column, whatever its capitals; a lacking one is an error."""
        names = list(names)
        lowered = {name.lower(): name for name in names}
        spelled = {
            column: column if column in names else lowered.get(column.lower()) for column in self.columns()
        }
        for column, name in spelled.items():
            if name is None:
                raise UserError(f"{place}: has no column {column!r}; it has {', '.join(names) or 'none'}.")
        return {column: name for column, name in spelled.items() if name is not None}


EVERYTHING = Selection()


@dataclass
class Tally:
    """How many rows were wanted, were not, and lacked a value that a condition asks for."""

    wanted: int = 0
    unwanted: int = 0
    without: int = 0

    def takes(self, selection: Selection, row: Mapping[str, object], spelled: Mapping[str, str]) -> bool:
        """Whether a row is wanted, which is counted."""
        held = [condition.holds(row.get(spelled[condition.column])) for condition in selection.conditions]
        if None in held:
            self.without += 1
        elif all(held):
            self.wanted += 1
            return True
        else:
            self.unwanted += 1
        return False

    def __str__(self) -> str:
        total = self.wanted + self.unwanted + self.without
        lacking = f", {self.without} of the others have no value" if self.without else ""
        return f"{self.wanted} of {counted(total, 'picture')} are selected{lacking}"
