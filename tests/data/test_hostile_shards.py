"""Shards whose files say what cannot be: one line that names the file, and nothing read outside its data."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from kilopix.data.manifest import Row
from kilopix.data.part_facts import EMPTY_TEXT, save_text
from kilopix.data.parts import open_table, write_table
from kilopix.data.shards import INDEX, Shards, to_shard
from kilopix.data.verify import verify
from kilopix.runtime import sha256_of_file, write_json, write_tensors
from kilopix.types import LatentMoments, TextStates, UserError

ROWS, WIDTH = 3, 8


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rows = [Row(f"{i}.png", "fox", f"fox {i}") for i in range(ROWS)]
    moments = LatentMoments(torch.randn(ROWS, 4, 2, 2), torch.ones(ROWS, 4, 2, 2))
    texts = [torch.randn(5, WIDTH) for _ in rows]
    write_table(folder / "plain-00000.arrow", to_shard(rows, moments, texts, texts))
    save_text(folder / EMPTY_TEXT, TextStates(torch.randn(1, 2, WIDTH), torch.ones(1, 2, dtype=torch.bool)))
    index = {
        "format": "kilopix shards 2", "image_size": 16, "latent_shape": [4, 2, 2], "text_width": WIDTH,
        "text_encoder_name": "t", "text_encoder": {}, "text_fingerprint": "t", "autoencoder_name": "a",
        "autoencoder": {}, "autoencoder_fingerprint": "a", "augmentation": {}, "plain": ROWS, "augmented": 0,
        "latent_statistics": {"mean": [0.0] * 4, "std": [1.0] * 4}, "left_out": 0, "psnr_db": None,
        "files": {name: sha256_of_file(folder / name) for name in ("plain-00000.arrow", EMPTY_TEXT)},
    }  # fmt: skip
    write_json(folder / INDEX, index)
    assert len(Shards(folder)) == ROWS
    return folder


@pytest.fixture
def shards(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "shards"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("latent_shape", [4, 10**9, 10**9]),
        ("latent_shape", [4, -2, 2]),
        ("latent_shape", [4, 2]),
        ("latent_shape", None),
        ("image_size", 10**18),
        ("text_width", 0),
        ("plain", 10**18),
        ("plain", 10**30),
        ("plain", -1),
        ("text_storage", "pickle"),
        ("files", {"../plain-00000.arrow": "x"}),
        ("files", {"/etc/passwd": "x"}),
        ("files", ["plain-00000.arrow"]),
        ("files", {"a\0b": "x"}),
        ("latent_statistics", [1]),
        ("psnr_db", "x"),
        ("unknown", 5),
    ],
)
def test_an_index_that_cannot_be_is_one_line(key: str, value: Any, shards: Path):
    index = json.loads((shards / INDEX).read_text("utf-8"))
    write_json(shards / INDEX, index | {key: value})
    with pytest.raises(UserError, match=r"index\.json"):
        Shards(shards)


@pytest.mark.parametrize(
    "tensors",
    [
        {"states": torch.zeros(1, 2, WIDTH)},
        {"states": torch.zeros(1, 2, WIDTH + 1), "mask": torch.ones(1, 2, dtype=torch.bool)},
        {"states": torch.zeros(2, 2, WIDTH), "mask": torch.ones(2, 2, dtype=torch.bool)},
        {"states": torch.zeros(1, 2, WIDTH), "mask": torch.ones(1, 3, dtype=torch.bool)},
        {"states": torch.zeros(1, 2, WIDTH), "mask": torch.ones(1, 2)},
        {"states": torch.zeros(1, 2, WIDTH, dtype=torch.int8), "mask": torch.ones(1, 2, dtype=torch.bool)},
        {"states": torch.zeros(1, 0, WIDTH), "mask": torch.ones(1, 0, dtype=torch.bool)},
    ],
)
def test_an_empty_text_of_another_shape_is_one_line(tensors: dict[str, torch.Tensor], shards: Path):
    write_tensors(shards / EMPTY_TEXT, tensors)
    with pytest.raises(UserError, match=EMPTY_TEXT):
        Shards(shards)


@pytest.mark.parametrize("length", [0, 7, 40, 150])
def test_an_empty_text_that_is_cut_short_is_one_line(length: int, shards: Path):
    (shards / EMPTY_TEXT).write_bytes((shards / EMPTY_TEXT).read_bytes()[:length])
    with pytest.raises(UserError, match=EMPTY_TEXT):
        Shards(shards)


def _replaced(shards: Path, name: str, column: pa.Array | None) -> Path:
    file = shards / "plain-00000.arrow"
    table = pa.Table.from_batches([open_table(file)])
    place = table.schema.get_field_index(name)
    table = table.remove_column(place)
    if column is not None:
        table = table.add_column(place, name, column)
    table = table.combine_chunks()
    file.unlink()
    write_table(file, table)
    index = json.loads((shards / INDEX).read_text("utf-8"))
    index["files"][file.name] = sha256_of_file(file)
    write_json(shards / INDEX, index)
    return shards


def _beyond(kind: pa.DataType, large: bool) -> pa.Array:
    """Three entries of which the first two are said to go far beyond the data."""
    offsets = pa.array([0, 10**9, 2, 3], pa.int64() if large else pa.int32()).buffers()[1]
    return pa.Array.from_buffers(kind, 3, [None, offsets, pa.py_buffer(b"abc")])


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("mean", None),
        ("caption", None),
        ("mean", pa.array(["x"] * 3)),
        ("window", pa.array([1.0] * 3)),
        ("path", pa.array([None, "a", "b"])),
        ("mean", _beyond(pa.large_binary(), large=True)),
        ("text", _beyond(pa.large_binary(), large=True)),
        ("caption", _beyond(pa.string(), large=False)),
        ("path", _beyond(pa.string(), large=False)),
    ],
)
def test_a_column_that_cannot_be_is_named(name: str, column: pa.Array | None, shards: Path):
    _replaced(shards, name, column)
    with pytest.raises(UserError, match=rf"plain-00000\.arrow: .*'{name}'"):
        Shards(shards)
    assert any(name in fault for fault in verify(shards).faults)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("mean", pa.array([b"ab"] * 3, pa.large_binary())),
        ("mean", pa.array([b""] * 3, pa.large_binary())),
        ("std", pa.array([b"abc"] * 3, pa.large_binary())),
        ("text", pa.array([b"abc"] * 3, pa.large_binary())),
        ("short_text", pa.array([b"abc"] * 3, pa.large_binary())),
    ],
)
def test_bytes_of_another_size_are_named_when_they_are_used(name: str, column: pa.Array, shards: Path):
    opened = Shards(_replaced(shards, name, column))
    with pytest.raises(UserError, match=rf"plain-00000\.arrow: {name} of row 0"):
        opened.plain(0, short=True)
