"""Several captions of one image: kept in the manifest and in shards, one of them drawn in every epoch."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from batches import load_batch
from containers import numbered
from kilopix.data.loader import SampleOrder
from kilopix.data.manifest import read_manifest
from kilopix.data.shards import Shards, write_index
from kilopix.data.text_storage import StoredText, stack
from kilopix.data.verify import verify
from kilopix.runtime import sha256_of_file
from tiny import Cli

SMALL = ["data.image_size=32", "autoencoder.channels=4"]
CAPTIONS = [["A red boat.", "A boat at sea.", "It floats."], ["A car."], ["A cup.", "A blue cup."]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    (folder / "images").mkdir()
    lines = [json.dumps({"file_name": f"{i}.png", "text": texts}) for i, texts in enumerate(CAPTIONS)]
    (folder / "images" / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    rng = np.random.default_rng(0)
    for i in range(len(CAPTIONS)):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "images" / f"{i}.png")
    return folder


@pytest.fixture
def shards(folder: Path, cli: Cli) -> Shards:
    out = folder / "shards"
    if not out.exists():
        done = cli("caption", folder / "images", folder / "captions.parquet", "--captioner", "given")
        assert done.code == 0, done.err
        assert "3 images with captions by given, of 3 images" in done.out
        assert "images with several captions: 2" in done.out
        done = cli("encode", folder / "captions.parquet", out, *SMALL, "--device", "cpu")
        assert done.code == 0, done.err
    return Shards(out)


def states(shards: Shards, text: StoredText) -> list[list[float]]:
    return stack([text], shards.index.text_storage).states[0].tolist()


def test_all_captions_are_in_the_manifest_and_in_the_shards(folder: Path, shards: Shards):
    rows = read_manifest(folder / "captions.parquet").rows
    assert [[row.caption, *row.more] for row in rows] == CAPTIONS
    assert [shards.captions(i) for i in range(3)] == CAPTIONS
    distinct = [{str(states(shards, shards.plain(i, draw=k).text)) for k in range(12)} for i in range(3)]
    assert [len(some) for some in distinct] == [3, 1, 2]
    assert states(shards, shards.plain(0).text) == states(shards, shards.plain(0, draw=3).text)
    assert verify(shards.folder).faults == []


def test_one_is_drawn_by_seed_image_and_epoch_in_every_number_of_processes(shards: Shards):
    order = SampleOrder(3, seed=5)
    asked = [order.at(image) for image in range(600)]
    drawn = [order.caption(i, epoch) % 3 for i, epoch in asked if i == 0]
    assert all(50 <= count <= 85 for count in Counter(drawn).values())
    assert [SampleOrder(3, seed=5).caption(i, e) for i, e in asked] == [order.caption(i, e) for i, e in asked]
    assert [SampleOrder(3, seed=6).caption(i, e) for i, e in asked] != [order.caption(i, e) for i, e in asked]
    no = [False] * 12
    whole = load_batch(shards, SampleOrder(3, 5), 30, no, no)
    shares = [load_batch(shards, SampleOrder(3, 5), 30, no, no, rank, 2) for rank in range(2)]
    for i, (sample, epoch) in enumerate(SampleOrder(3, 5).at(30 + k) for k in range(12)):
        expected = states(shards, shards.plain(sample, draw=order.caption(sample, epoch)).text)
        share = shares[i // 6]
        for batch, j in ((whole, i), (share, i % 6)):
            assert batch.text.states[j][batch.text.mask[j]].tolist() == expected
    assert len({str(whole.text.states[i].tolist()) for i, p in enumerate(whole.paths) if p == "0.png"}) > 1


def test_damaged_states_of_a_further_caption_are_found(shards: Shards, tmp_path: Path):
    import shutil

    import pyarrow as pa

    from kilopix.data.parts import read_table, write_table

    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    name = "plain-00000.arrow"
    table = read_table(copy / name)
    more = table["more_text"].to_pylist()
    more[2] = [b"\xff" * len(more[2][0])]
    column = table.schema.get_field_index("more_text")
    damaged = table.set_column(column, "more_text", pa.array(more, table.schema.field(column).type))
    metadata = table.schema.metadata
    write_table(copy / name, damaged.combine_chunks().replace_schema_metadata(metadata))
    digest = sha256_of_file(copy / name)
    write_index(copy, shards.index.model_copy(update={"files": shards.index.files | {name: digest}}))
    (fault,) = verify(copy).faults
    assert "more_text of 1 row " in fault
    assert "2.png" in fault


def test_shards_and_manifests_from_before_are_read(folder: Path, shards: Shards, tmp_path: Path):
    from kilopix.data.parts import open_table, read_table, write_table
    from kilopix.data.shards import ShardFile

    old = read_table(shards.folder / "plain-00000.arrow").drop_columns(["more_captions", "more_text"])
    write_table(tmp_path / "old.arrow", old)
    file = ShardFile(open_table(tmp_path / "old.arrow"), shards.index)
    assert states(shards, file.sample(0, False, 7).text) == states(shards, shards.plain(0).text)
    table = pq.read_table(folder / "captions.parquet")
    pq.write_table(table.drop_columns(["more"]), tmp_path / "old.parquet")
    assert [row.more for row in read_manifest(tmp_path / "old.parquet").rows] == [(), (), ()]


def test_a_model_or_a_rule_that_captions_anew_takes_the_place_of_all(folder: Path, tmp_path: Path, cli: Cli):
    lines = [json.dumps({"file_name": "a.png", "text": ["A.", "B."], "label": "fox"})]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "a.png").write_bytes(numbered(3))
    out = tmp_path / "out" / "c.parquet"
    assert cli("caption", tmp_path, out).code == 0
    (row,) = read_manifest(out).rows
    assert (row.caption, row.more) == ("An image of a fox.", ())


def test_the_report_looks_at_all_captions(tmp_path: Path, cli: Cli):
    (tmp_path / "a.png").write_bytes(numbered(3))
    line = {"file_name": "a.png", "text": ["A whole sentence about a fox.", "cut off in the"]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line), "utf-8")
    out = tmp_path / "out" / "c.parquet"
    assert cli("caption", tmp_path, out, "--captioner", "given").code == 0
    assert cli("captions", out).code == 0
    report = json.loads((out.parent / "c.quality.json").read_text("utf-8"))
    assert report["captions"] == 2
    assert [one["caption"] for one in report["faulty"]] == ["cut off in the"]


def test_a_source_without_captions_or_classes_is_refused_with_what_helps(tmp_path: Path, cli: Cli):
    (tmp_path / "a.png").write_bytes(numbered(3))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "prompt": "A.", "kind": "fox"}\n')
    out = tmp_path / "out" / "c.parquet"
    given = cli("caption", tmp_path, out, "--captioner", "given")
    assert given.code == 2
    assert "Its columns are file_name, prompt, kind." in given.err
    assert "--caption-column" in given.err
    assert cli("caption", tmp_path, out, "--captioner", "given", "--caption-column", "Prompt").code == 0
    aio = cli("caption", tmp_path, tmp_path / "out" / "d.parquet")
    assert aio.code == 2
    assert "--label-column" in aio.err
    assert cli("caption", tmp_path, tmp_path / "out" / "d.parquet", "--label-column", "kind").code == 0
