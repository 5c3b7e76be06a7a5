"""A file that carries its SHA-256: every bit counts, and other programs read it as before."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kilopix.artefacts.digests import Damaged, check_table, check_tensors, seal_table
from kilopix.data.parts import Parts, read_table, write_table
from kilopix.errors import UserError
from kilopix.runtime import read_json, read_lines, read_tensors, write_json, write_lines, write_tensors


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2, 3]}), path)
    seal_table(path)


def whole_table(path: Path) -> None:
    assert check_table(path)
    read_table(path)


def whole_parquet(path: Path) -> None:
    assert check_table(path)
    pq.read_table(path)


def whole_tensors(path: Path) -> None:
    assert check_tensors(path)
    read_tensors(path)


KINDS = {
    "tensors": (lambda path: write_tensors(path, {"w": torch.arange(5.0)}, {"recipe": "{}"}), whole_tensors),
    "arrow": (lambda path: write_table(path, pa.table({"a": [1, 2, 3]})), whole_table),
    "parquet": (write_parquet, whole_parquet),
    "json": (lambda p: write_json(p, {"a": [1, 2.5], "b": "x"}), lambda p: read_json(p, sealed=True)),
    "lines": (lambda p: write_lines(p, [{"a": 1}, {"b": "x"}]), lambda p: read_lines(p, sealed=True)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_counts(kind: str, tmp_path: Path):
    write, read = KINDS[kind]
    path = tmp_path / "file"
    write(path)
    read(path)
    content = path.read_bytes()
    bits = 8 * len(content)
    for bit in range(0, bits, max(1, bits // 400) | 1):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises((UserError, AssertionError, pa.ArrowException, OSError)):
            read(path)
    for length in range(0, len(content) - 1, max(1, len(content) // 50)):
        path.write_bytes(content[:length])
        with pytest.raises((UserError, AssertionError, pa.ArrowException, OSError)):
            read(path)


@pytest.mark.parametrize("kind", ["tensors", "arrow", "parquet"])
def test_what_is_equal_has_equal_bytes(kind: str, tmp_path: Path):
    for name in ("a", "b"):
        KINDS[kind][0](tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_names_of_inner_digests_are_no_digest(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    inner = json.dumps({"sha256": "0" * 64})
    write_tensors(path, {"sha256": torch.ones(2)}, {"started_from": inner, "source_sha256": "0" * 64})
    tensors, metadata = read_tensors(path)
    assert metadata == {"started_from": inner, "source_sha256": "0" * 64}
    assert tensors.keys() == {"sha256"}


def test_what_other_programs_write_has_no_digest_and_is_read(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    assert check_tensors(tmp_path / "w.safetensors") is None
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    assert check_table(tmp_path / "t.parquet") is None
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(Damaged, match="holds no sha256"):
        read_json(tmp_path / "a.json", sealed=True)


def test_an_edited_table_loses_its_digest(tmp_path: Path):
    path = tmp_path / "t.parquet"
    write_parquet(path)
    edited = pq.read_table(path).set_column(0, "a", pa.array([4, 5, 6]))
    pq.write_table(edited, path)
    assert check_table(path) is None


def test_the_layout_of_a_record_may_change_but_not_what_it_says(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": {"d": 0.1, "c": None}})
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(value, indent=4), encoding="utf-8")
    assert read_json(path, sealed=True) == {"b": 1, "a": {"d": 0.1, "c": None}}
    path.write_text(json.dumps({"b": 2, **{k: v for k, v in value.items() if k != "b"}}), encoding="utf-8")
    with pytest.raises(Damaged, match=r"a\.json: damaged, or edited.*take out the key 'sha256'"):
        read_json(path)


def test_a_damaged_part_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parts = Parts(tmp_path, 2)
    for part in range(2):
        write_table(parts.path(part), pa.table({"a": [part] * 100}))
    assert parts.missing() == []
    content = bytearray(parts.path(1).read_bytes())
    content[len(content) // 2] ^= 1
    parts.path(1).write_bytes(content)
    assert parts.missing() == [1]
    assert "part-00001.arrow: damaged, and made anew." in capsys.readouterr().out
