"""Manifests whose text says what cannot be: one line with file and row, and nothing outside the root."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kilopix.data.manifest import Row, is_manifest, read_manifest, to_table, write_manifest
from kilopix.data.sources import BrokenImage, read_picture
from kilopix.types import UserError

GOOD = Row("a.png", "fox", "a fox", width=64, height=64)


def _write(path: Path, rows: list[Row], change: dict[str, Any] | None = None, **said: Any) -> Path:
    write_manifest(path, path.parent, [GOOD], {"stage": "caption"})
    table = to_table(rows)
    for name, column in (change or {}).items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    metadata = pq.read_schema(path).metadata | {k.encode(): v for k, v in said.items()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", "../a.png"),
        ("path", "a/../../b.png"),
        ("path", "/etc/passwd"),
        ("path", "/tmp/x.tar#a.jpg"),
        ("path", "a\0b.png"),
        ("path", "x" * 5000),
        ("base", "../a.png"),
        ("partner", "/etc/passwd"),
        ("box", (float("nan"), 0.0, 1.0, 1.0)),
        ("box", (0.0, 0.0, float("inf"), 1.0)),
        ("box", (-1.0, 0.0, 1.0, 1.0)),
        ("box", (0.5, 0.5, 0.5, 0.5)),
        ("box", (0.9, 0.0, 0.1, 1.0)),
        ("box", (0.0, 0.0, 1e9, 1e9)),
        ("box", (0.0, 0.0, 1e-300, 1e-300)),
        ("kind", "<script>"),
        ("width", -1),
    ],
)
def test_a_row_that_cannot_be_is_named(field: str, value: Any, tmp_path: Path):
    path = _write(tmp_path / "m.parquet", [GOOD, replace(GOOD, **({"path": "b.png"} | {field: value}))])
    with pytest.raises(UserError, match=r"m\.parquet: row 1") as told:
        read_manifest(path)
    assert len(str(told.value)) < 500


def test_a_cutmix_of_no_known_setting_is_named(tmp_path: Path):
    path = _write(tmp_path / "m.parquet", [replace(GOOD, kind="cutmix", setting="2/3")])
    with pytest.raises(UserError, match="its setting is '2/3'"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("path", pa.array([None], pa.string())),
        ("path", pa.array([5])),
        ("caption", pa.array([b"\xff"], pa.binary())),
        ("box", pa.array(["x"])),
        ("box", pa.array([[None, 0.0, 1.0, 1.0]])),
        ("more", pa.array([[None, "x"]])),
        ("width", pa.array([2**40])),
        ("width", pa.array([float("nan")])),
        ("more", pa.array([[1]])),
        ("kind", pa.array([{"a": 1}])),
    ],
)
def test_a_column_of_another_type_is_named(column: str, values: pa.Array, tmp_path: Path):
    with pytest.raises(UserError, match=rf"m\.parquet: .*{column}"):
        read_manifest(_write(tmp_path / "m.parquet", [GOOD], {column: values}))


def test_text_that_is_not_utf8_is_one_line(tmp_path: Path):
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    with pytest.raises(UserError, match=r"m\.parquet"):
        read_manifest(_write(tmp_path / "m.parquet", [GOOD], {"caption": broken}))


@pytest.mark.parametrize(
    "said",
    [
        {"job": b"{"},
        {"job": b"[]"},
        {"job": b"[" * 10**5},
        {"job": b"\xff"},
        {"failed": b"5"},
        {"failed": b'[["a"]]'},
        {"failed": b"[[1, 2, 3]]"},
        {"root": b"a\0b"},
        {"format": b"\xff"},
        {"format": b"kilopix manifest 99"},
    ],
)
def test_what_is_said_beside_the_columns_is_checked(said: dict[str, bytes], tmp_path: Path):
    with pytest.raises(UserError, match=r"m\.parquet"):
        read_manifest(_write(tmp_path / "m.parquet", [GOOD], **said))


@pytest.mark.parametrize("root", [pa.array([5]), pa.array(["a\0b"]), pa.array([["x"]])])
def test_a_root_that_is_no_folder_is_named(root: pa.Array, tmp_path: Path):
    path = _write(tmp_path / "m.parquet", [GOOD])
    table = pq.read_table(path).append_column("root", root)
    pq.write_table(table, path)
    with pytest.raises(UserError, match="'root'"):
        read_manifest(path)


def test_more_rows_than_its_bytes_can_hold_are_not_read(tmp_path: Path):
    path = tmp_path / "m.parquet"
    many = pa.table({"path": pa.nulls(10**7, pa.string())})
    pq.write_table(many, path)
    with pytest.raises(UserError, match="10,000,000 rows"):
        read_manifest(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"PAR1" + b"\xff" * 64 + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1"],
)
def test_a_file_that_is_no_parquet_is_one_line(content: bytes, tmp_path: Path):
    path = tmp_path / "m.parquet"
    path.write_bytes(content)
    assert not is_manifest(path)
    with pytest.raises(UserError, match="not a Parquet file"):
        read_manifest(path)


@pytest.mark.parametrize(
    "path", ["../a.png", "/etc/passwd", "a/../../b", "a\0b", "x" * 5000, "x.tar#/../../../etc/passwd"]
)
def test_no_picture_is_read_outside_its_root(path: str, tmp_path: Path):
    with pytest.raises(BrokenImage):
        read_picture(tmp_path, path)


def test_a_link_that_the_owner_put_into_the_folder_is_followed(tmp_path: Path):
    (tmp_path / "elsewhere.png").write_bytes(b"image")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    assert read_picture(tmp_path / "root", "a.png") == b"image"


def test_a_manifest_of_kilopix_reads_as_it_was_written(tmp_path: Path):
    crop = replace(
        GOOD, path="b.png", kind="crop", base="a.png", box=(0.5, 0.5, 1.0000000001, 1.0), more=("x",)
    )
    write_manifest(tmp_path / "m.parquet", tmp_path, [GOOD, crop], {"stage": "augment"})
    found = read_manifest(tmp_path / "m.parquet")
    assert found.rows == [GOOD, crop]
    assert found.job == json.loads('{"stage": "augment"}')
