from pathlib import Path

import pytest
import torch

from kilopix.errors import UserError
from kilopix.runtime import atomic_path, pick_device, read_json, seed_from, torch_generator, write_json


def test_a_file_is_whole_or_absent(tmp_path: Path):
    target = tmp_path / "folder" / "file.txt"

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_half()
    assert list(target.parent.iterdir()) == []
    with atomic_path(target) as temporary:
        temporary.write_text("whole", encoding="utf-8")
    assert target.read_text(encoding="utf-8") == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_json_errors_name_the_file(tmp_path: Path):
    write_json(tmp_path / "a.json", {"é": [1.5]})
    assert read_json(tmp_path / "a.json") == {"é": [1.5]}
    (tmp_path / "b.json").write_text("{", encoding="utf-8")
    for name, what in (("b.json", "not valid JSON"), ("c.json", "no such file")):
        with pytest.raises(UserError, match=f"{name}: {what}"):
            read_json(tmp_path / name)


def test_seeds_separate_their_parts():
    assert seed_from(1, 23) != seed_from(12, 3)
    assert 0 <= seed_from("a") < 2**63
    draws = [torch.rand(3, generator=torch_generator("x", i)) for i in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_an_unknown_device_is_a_clear_error():
    assert pick_device("cpu") == "cpu"
    with pytest.raises(UserError, match="device 'abacus' cannot be used here"):
        pick_device("abacus")
