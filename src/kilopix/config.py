"""How every config is written and read: defaults, one TOML file, `section.key=value`; nothing else.

In: TOML files and override strings. Out: frozen pydantic models, or one `UserError` that names the
dotted key at fault and, for an unknown key, the nearest known one.
"""

import difflib
import reprlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from kilopix.errors import UserError

MOST = 2**63
"""What no number reaches, so that a seed fits into 64 bits and a count into the columns of a table."""
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


class Config(BaseModel):
    """Base of all configs: immutable; an unknown key is an error, and so is a number that is not finite, or
    that no setting or count can be."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _within_reach(cls, value: Any) -> Any:
        if isinstance(value, int | float) and abs(value) >= MOST:
            raise ValueError("is larger than any number that is meant here")
        return value


ConfigT = TypeVar("ConfigT", bound=Config)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file on top of the file that its key `base` names, which may not name another."""
    values = _read_one(path)
    base = values.pop("base", None)
    if base is None:
        return values
    base_values = _read_one(path.parent / str(base))
    if "base" in base_values:
        raise UserError(f"{path}: its base {base} has a base of its own; only one level is allowed.")
    return merge(base_values, values)


def _read_one(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except RecursionError:
        raise UserError(f"{path}: {_TOO_DEEP}.") from None
    except ValueError as error:  # of TOML, of UTF-8, of a number with thousands of digits, of a path with NUL
        raise UserError(f"{path}: not valid TOML: {error}.") from None


_DEEPEST = 16
_TOO_DEEP = "nested deeper than any setting is"


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge nested tables; where both have a value, `above` wins.

    A table that names another `kind` than the one below replaces it whole, since their keys differ.
    """
    if "kind" in above and above["kind"] != below.get("kind", above["kind"]):
        return above
    out = dict(below)
    for key, value in above.items():
        both_tables = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both_tables else value
    return out


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Turn `section.key=value` strings into nested tables; values are TOML, or else plain strings."""
    out: dict[str, Any] = {}
    for item in overrides:
        dotted, equals, text = item.partition("=")
        if not equals or not dotted.strip():
            raise UserError(f"override {_shown(item)}: write it as section.key=value.")
        if dotted.count(".") > _DEEPEST:
            raise UserError(f"override {_shown(item)}: {_TOO_DEEP}.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except RecursionError:
            raise UserError(f"override {_shown(item)}: {_TOO_DEEP}.") from None
        except ValueError:
            value = text
        *sections, key = dotted.strip().split(".")
        table: dict[str, Any] = {key: value}
        for section in reversed(sections):
            table = {section: table}
        out = merge(out, table)
    return out


def parse(cls: type[ConfigT], values: object, origin: str) -> ConfigT:
    """Check `values` against a config class; `origin` is what the error message names as the source."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_explain(cls, origin, item) for item in error.errors())) from None


def _explain(cls: type[Config], origin: str, item: Any) -> str:
    dotted, owner = _resolve(cls, item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{origin}: unknown key {dotted!r}; {_hint(cls, owner, str(item['loc'][-1]))}"
    message = item["msg"].removeprefix("Value error, ")
    got = "" if item["type"] in ("missing", "value_error") else f" (got {_shown(item['input'])})"
    return f"{origin}: {dotted or 'the recipe'}: {message}{got}"


def _shown(value: object) -> str:
    """A value as a message can hold it, however long, deep or large it is."""
    try:
        return _REPR.repr(value)
    except ValueError:  # what Python raises for a number with thousands of digits
        return "a number of thousands of digits"


def _hint(cls: type[Config], owner: type[Config] | None, key: str) -> str:
    """What may have been meant: the same key of another section, or one that is spelled nearly so."""
    known = sorted(owner.model_fields) if owner else []
    elsewhere = _keys(cls)
    near = elsewhere.get(key) or difflib.get_close_matches(key, known, n=1)
    if not near and (alike := difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.8)):
        near = elsewhere[alike[0]]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"known keys are {', '.join(known)}."


def _keys(cls: type[Config], before: str = "") -> dict[str, list[str]]:
    """Every key of a config and of its sections, with its dotted names."""
    found: dict[str, list[str]] = {}
    for name, field in cls.model_fields.items():
        dotted = [f"{before}{name}"]
        below = [_keys(member, f"{before}{name}.") for member in _members(field.annotation)]
        for some in ({name: dotted}, *below):
            for key, names in some.items():
                found[key] = list(dict.fromkeys([*found.get(key, []), *names]))
    return found


def _members(annotation: Any) -> list[type[Config]]:
    """The configs that a section can be."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [member for part in get_args(annotation) for member in _members(part)]


def _resolve(cls: type[Config], location: tuple[int | str, ...]) -> tuple[str, type[Config] | None]:
    """The dotted key of a pydantic error location, without union tags, and the model that owns it."""
    parts: list[str] = []
    here: Any = cls
    owner: type[Config] | None = cls
    for element in location:
        members = get_args(here) if get_origin(here) in (Union, UnionType) else ()
        # Only a choice of several sections has tags; `patch` is a kind of codec, and a key of it.
        sections = [m for m in members if _kinds(m)]
        tagged = [m for m in sections if element in _kinds(m)] if len(sections) > 1 else []
        if tagged:
            here = owner = tagged[0]
            continue
        parts.append(str(element))
        if isinstance(here, type) and issubclass(here, Config):
            owner = here
            field = here.model_fields.get(str(element))
            here = field.annotation if field else None
        else:
            here = None
    return ".".join(parts), owner


def _kinds(member: Any) -> tuple[Any, ...]:
    if not (isinstance(member, type) and issubclass(member, Config)) or "kind" not in member.model_fields:
        return ()
    annotation = member.model_fields["kind"].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()
