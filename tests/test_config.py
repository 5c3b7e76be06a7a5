from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from kilopix.config import Config, merge, parse, parse_overrides, read_toml
from kilopix.errors import UserError


class Small(Config):
    kind: Literal["small"] = "small"
    width: int = Field(8, ge=1)


class Large(Config):
    kind: Literal["large"] = "large"
    depth: int = 3


class Whole(Config):
    seed: int = 0
    model: Annotated[Small | Large, Field(discriminator="kind")] = Small()


def test_unknown_key_names_the_dotted_key_and_the_nearest():
    with pytest.raises(UserError, match=r"file: unknown key 'model\.widht'; did you mean 'width'\?"):
        parse(Whole, {"model": {"kind": "small", "widht": 3}}, "file")
    with pytest.raises(UserError, match=r"unknown key 'sed'; did you mean 'seed'"):
        parse(Whole, {"sed": 1}, "file")


def test_wrong_type_and_range_name_the_key_and_the_value():
    with pytest.raises(UserError, match=r"model\.width.*integer.*'wide'"):
        parse(Whole, {"model": {"kind": "small", "width": "wide"}}, "file")
    with pytest.raises(UserError, match=r"model\.width.*greater than or equal to 1.*0"):
        parse(Whole, {"model": {"kind": "small", "width": 0}}, "file")


def test_a_table_without_kind_takes_the_default_below():
    values = merge(Whole().model_dump(), {"model": {"width": 16}})
    assert parse(Whole, values, "file").model == Small(width=16)


def test_another_kind_replaces_the_table():
    values = merge({"model": {"kind": "small", "width": 16}}, {"model": {"kind": "large", "depth": 2}})
    assert parse(Whole, values, "file").model == Large(depth=2)


def test_overrides_are_toml_or_strings():
    assert parse_overrides(["a.b=3", "a.c=x/y", "d=[1, 2]", 'e="3"', "f=true"]) == {
        "a": {"b": 3, "c": "x/y"},
        "d": [1, 2],
        "e": "3",
        "f": True,
    }
    with pytest.raises(UserError, match=r"section\.key=value"):
        parse_overrides(["training"])


def test_a_file_has_at_most_one_base(tmp_path: Path):
    (tmp_path / "a.toml").write_text("seed = 1\n[model]\nwidth = 4\n", encoding="utf-8")
    (tmp_path / "b.toml").write_text('base = "a.toml"\n[model]\nheads = 2\n', encoding="utf-8")
    (tmp_path / "c.toml").write_text('base = "b.toml"\n', encoding="utf-8")
    assert read_toml(tmp_path / "b.toml") == {"seed": 1, "model": {"width": 4, "heads": 2}}
    with pytest.raises(UserError, match="one level"):
        read_toml(tmp_path / "c.toml")


def test_broken_and_missing_files_are_named(tmp_path: Path):
    (tmp_path / "x.toml").write_text("seed = ", encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.toml: not valid TOML"):
        read_toml(tmp_path / "x.toml")
    with pytest.raises(UserError, match=r"none\.toml: no such file"):
        read_toml(tmp_path / "none.toml")
