"""A hub data set streamed into Parquet files; needs the extra `hub`."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kilopix.data.manifest import read_manifest
from kilopix.data.sources import list_source, open_picture
from tiny import Cli

pytest.importorskip("datasets", reason="the extra `hub` is not installed")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A data set of nine rows in two Parquet files, as the hub keeps them."""
    import io

    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["tench, Tinca tinca", "kit fox"]},
    }
    for number, rows in enumerate((range(5), range(5, 9))):
        pictures = []
        for i in rows:
            file = io.BytesIO()
            Image.new("RGB", (30, 20), (20 * i, 0, 0)).save(file, "PNG")
            pictures.append({"bytes": file.getvalue(), "path": f"{i}.png"})
        table = pa.table({"image": pictures, "label": [i % 2 for i in rows]})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / f"train-0000{number}-of-00002.parquet")
    return folder.parent


def reds(folder: Path) -> list[int]:
    pictures = [open_picture(folder, item.path) for item in list_source(folder).items]
    return [int(picture.getpixel((3, 3))[0]) for picture in pictures]  # pyright: ignore


def test_a_data_set_is_streamed_and_captioned(dataset: Path, tmp_path: Path, cli: Cli, monkeypatch):
    monkeypatch.setattr("kilopix.stages.fetch.ROWS_PER_FILE", 4)
    out = tmp_path / "pictures"
    assert cli("fetch", dataset, out).code == 0
    assert sorted(f.name for f in out.glob("*.parquet")) == [f"train-0000{i}.parquet" for i in range(3)]
    assert reds(out) == [20 * i for i in range(9)]
    assert cli("caption", out, tmp_path / "c.parquet").code == 0
    captions = [row.caption for row in read_manifest(tmp_path / "c.parquet").rows]
    assert captions == ["An image of a tench.", "An image of a kit fox."] * 4 + ["An image of a tench."]
    again = cli("fetch", dataset, out)
    assert (again.code, "already complete, 9 rows" in again.out) == (0, True)


def test_an_interrupted_fetch_goes_on_at_the_missing_file(
    dataset: Path, tmp_path: Path, cli: Cli, monkeypatch
):
    monkeypatch.setattr("kilopix.stages.fetch.ROWS_PER_FILE", 4)
    out = tmp_path / "pictures"
    assert cli("fetch", dataset, out).code == 0
    whole = reds(out)
    (out / "fetched.json").unlink()
    (out / "train-00001.parquet").unlink()
    kept = (out / "train-00000.parquet").stat().st_mtime_ns
    assert cli("fetch", dataset, out).code == 0
    assert (out / "train-00000.parquet").stat().st_mtime_ns == kept
    assert reds(out) == whole
    (out / "fetched.json").unlink()
    assert "9 rows" in cli("fetch", dataset, out).out


def test_a_limit_and_wrong_names(dataset: Path, tmp_path: Path, cli: Cli):
    assert cli("fetch", dataset, tmp_path / "few", "--limit", 3).code == 0
    assert len(reds(tmp_path / "few")) == 3
    wrong = cli("fetch", dataset, tmp_path / "none", "--split", "nowhere")
    assert wrong.code == 2
    assert "nowhere" in wrong.err
    missing = cli("fetch", tmp_path / "not-there", tmp_path / "none2")
    assert missing.code == 2
    assert "not-there" in missing.err


@pytest.mark.parametrize("splits", [True, False])
def test_a_data_set_that_was_saved_to_disk_is_fetched(tmp_path: Path, cli: Cli, splits: bool):
    from datasets import Dataset, DatasetDict, Features, Value
    from datasets import Image as ImageFeature

    rows = [{"image": Image.new("RGB", (30, 20), (20 * i, 0, 0)), "text": f"{i}"} for i in range(4)]
    features = Features({"image": ImageFeature(), "text": Value("string")})
    made = Dataset.from_list(rows, features=features)
    saved = DatasetDict({"train": made, "test": made.select([3])}) if splits else made
    saved.save_to_disk(str(tmp_path / "saved"))
    refused = cli("caption", tmp_path / "saved", tmp_path / "c.parquet")
    assert (refused.code, "`save_to_disk` wrote; `kilopix fetch" in refused.err) == (2, True)
    done = cli("fetch", tmp_path / "saved", tmp_path / "out")
    assert done.code == 0, done.err
    assert reds(tmp_path / "out") == [0, 20, 40, 60]
    if splits:
        no = cli("fetch", tmp_path / "saved", tmp_path / "other", "--split", "dev")
        assert (no.code, "has no split 'dev'; it has train, test" in no.err) == (2, True)


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_what_is_lost_of_a_complete_fetch_is_fetched_anew(
    dataset: Path, tmp_path: Path, cli: Cli, monkeypatch, damage: str
):
    monkeypatch.setattr("kilopix.stages.fetch.ROWS_PER_FILE", 4)
    out = tmp_path / "pictures"
    assert cli("fetch", dataset, out).code == 0
    whole, lost = reds(out), out / "train-00001.parquet"
    kept = {file: file.stat().st_mtime_ns for file in out.glob("*.parquet") if file != lost}
    if damage == "deleted":
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[:-40])
    done = cli("fetch", dataset, out)
    assert "train-00001.parquet" in done.out
    assert reds(out) == whole
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert "already complete" in cli("fetch", dataset, out).out
