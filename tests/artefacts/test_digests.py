"""A file that carries its SHA-256: every bit counts, and other programs read it as before."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kilopix.artefacts.digests import Damaged, check_shipped, check_table, check_tensors, seal_table
from kilopix.data.checked import check_pictures, write_hashes
from kilopix.data.lines import finished_lines
from kilopix.data.parts import Parts, read_table, write_table
from kilopix.errors import UserError
from kilopix.evaluation.protocol import CARD, JUDGED, Card, lines_beside, write_card
from kilopix.features import StoredFeatures, stored_moments
from kilopix.model_files import find_weights
from kilopix.runtime import read_json, read_lines, read_tensors, write_json, write_lines, write_tensors
from tiny_networks import draw_pictures


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
    assert "part-00001.arrow: damaged, or of another job, and made anew." in capsys.readouterr().out


def test_damaged_lines_of_a_finished_file_are_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, job = tmp_path / "detections.jsonl", {"stage": "geneval"}
    write_lines(path, [{"job": job}, {"file": "a.png", "score": 0.5}])
    found = finished_lines(path, job, 1)
    assert found is not None
    assert found[1] == [{"file": "a.png", "score": 0.5}]
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.4"))
    assert finished_lines(path, job, 1) is None
    assert "detections.jsonl: was complete, but is cut short or damaged" in capsys.readouterr().out


def test_images_that_were_replaced_are_not_scored(tmp_path: Path):
    draw_pictures(tmp_path, 3, seed=0)
    names = [f"{i:05d}.png" for i in range(3)]
    write_hashes(tmp_path, names)
    check_pictures(tmp_path, names)
    (tmp_path / "other").mkdir()
    draw_pictures(tmp_path / "other", 1, seed=9)
    (tmp_path / "other" / names[0]).rename(tmp_path / names[1])
    with pytest.raises(UserError, match=r"are not the images that were made .*: 00001\.png"):
        check_pictures(tmp_path, names)


def test_what_a_card_sums_up_is_held_against_it(tmp_path: Path):
    facts = {"checkpoint": "m", "resolution": 8, "images_per_prompt": 1, "images": 1, "evaluator": "judge"}
    facts |= {"evaluator_sha256": "0" * 64, "kilopix_version": "0", "prompt_style": "plain"}
    write_lines(tmp_path / JUDGED, [{"correct": True}], seal=False)
    write_card(tmp_path / CARD, Card.model_validate(facts))
    assert lines_beside(tmp_path / CARD, JUDGED) == [{"correct": True}]
    write_lines(tmp_path / JUDGED, [{"correct": False}], seal=False)
    with pytest.raises(UserError, match=r"judged\.jsonl: damaged, or not what card\.json was made from"):
        lines_beside(tmp_path / CARD, JUDGED)


def test_moments_that_are_damaged_are_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parts = Parts(tmp_path, 1)
    column = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 5.0, 4.0, 4.0], pa.float32()), 2)
    write_table(parts.path(0), pa.table({"features": column}))
    features = StoredFeatures(parts, (3,), 2, "cpu")
    before = stored_moments(features)
    path = tmp_path / "moments.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    after = stored_moments(features)
    assert torch.equal(before.mean, after.mean)
    assert "moments.safetensors: damaged" in capsys.readouterr().out


def test_what_is_installed_is_held_against_its_hash(tmp_path: Path):
    path = tmp_path / "mini.safetensors"
    path.write_bytes(b"weights")
    with pytest.raises(Damaged, match="install it again"):
        check_shipped(path, "0" * 64)
    assert find_weights("mini").is_file()
