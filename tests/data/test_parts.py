from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from kilopix.data.manifest import Row, finished, read_manifest, write_manifest
from kilopix.data.parts import Parts, make_parts, read_table
from kilopix.errors import UserError


@dataclass(frozen=True)
class Make:
    """Makes a part that holds its number, and leaves a mark for every part made."""

    marks: Path
    fail_at: int = -1

    def __call__(self, part: int) -> pa.Table:
        if part == self.fail_at:
            raise RuntimeError("killed")
        (self.marks / f"{part}-{len(list(self.marks.glob(f'{part}-*')))}").touch()
        return pa.table({"number": [part]})


@pytest.mark.parametrize("workers", [1, 2])
def test_finished_parts_are_not_made_again(tmp_path: Path, workers: int):
    marks = tmp_path / "marks"
    marks.mkdir()
    parts = Parts(tmp_path / "parts", 4)
    with pytest.raises(RuntimeError, match="killed"):
        make_parts(parts, Make(marks, fail_at=2), "test", 4, workers=1)
    assert parts.missing() == [2, 3]
    make_parts(parts, Make(marks), "test", 4, workers)
    assert parts.missing() == []
    assert sorted(f.name for f in marks.iterdir()) == ["0-0", "1-0", "2-0", "3-0"]
    assert [table["number"][0].as_py() for table in parts.tables()] == [0, 1, 2, 3]


def test_a_damaged_part_is_named(tmp_path: Path):
    (tmp_path / "part-00000.arrow").write_bytes(b"ARROW1 not really")
    with pytest.raises(UserError, match=r"part-00000\.arrow: not a whole Arrow file"):
        read_table(tmp_path / "part-00000.arrow")


def test_manifests_round_trip_and_list_their_failures(tmp_path: Path):
    rows = [
        Row("fox/1.jpg", "fox", "A fox.", "Fox.", 4, 3),
        Row("fox/2.jpg", "fox", error="not an image"),
        Row(
            "cutmix/fox/1.jpg",
            "fox",
            "Two.",
            "",
            8,
            8,
            "cutmix",
            "fox/1.jpg",
            "1/4",
            "cup/1.jpg",
            (0.0, 0.0, 0.5, 0.5),
        ),
    ]
    path = tmp_path / "made" / "m.parquet"
    failed = write_manifest(path, tmp_path / "images", rows, {"seed": 1})
    assert failed == [rows[1]]
    manifest = read_manifest(path)
    assert manifest.rows == [rows[0], rows[2]]
    assert manifest.file(rows[0]) == (tmp_path / "images" / "fox/1.jpg").resolve()
    assert "not an image" in (tmp_path / "made" / "m.failures.jsonl").read_text(encoding="utf-8")
    assert finished(path, {"seed": 1}) is not None
    assert finished(tmp_path / "none.parquet", {}) is None
    with pytest.raises(UserError, match="seed: 1, here 2"):
        finished(path, {"seed": 2})


def test_a_manifest_moves_with_its_images(tmp_path: Path):
    write_manifest(tmp_path / "a" / "m.parquet", tmp_path / "a" / "images", [Row("x.png", "x")], {})
    (tmp_path / "a").rename(tmp_path / "b")
    manifest = read_manifest(tmp_path / "b" / "m.parquet")
    assert manifest.root == (tmp_path / "b" / "images").resolve()


def test_nothing_usable_is_an_error_that_points_to_the_reasons(tmp_path: Path):
    with pytest.raises(UserError, match=r"m\.failures\.jsonl says why"):
        write_manifest(tmp_path / "m.parquet", tmp_path, [Row("a", "a", error="broken")], {})
    assert not (tmp_path / "m.parquet").exists()


def test_other_files_are_no_manifests(tmp_path: Path):
    import pyarrow.parquet as pq

    (tmp_path / "a.parquet").write_text("hello", encoding="utf-8")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "b.parquet")
    for name, what in (("a", "not a Parquet file"), ("b", "not a manifest"), ("c", "no such manifest")):
        with pytest.raises(UserError, match=what):
            read_manifest(tmp_path / f"{name}.parquet")
