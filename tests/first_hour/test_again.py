"""The same command again, as a user meets it: nothing is made twice, and equal runs give equal files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from containers import numbered
from kilopix import captioning, encoding
from kilopix.data.manifest import is_manifest, read_manifest
from kilopix.data.shards import Shards
from kilopix.data.text_storage import stack
from kilopix.errors import UserError
from kilopix.pretrained.captioner import Answer, ServerCaptionerConfig
from kilopix.stages import caption
from tiny import TINY, Cli

_ALL_STAGES = """
import os, sys
from pathlib import Path

os.umask(int(sys.argv[1], 8))
from kilopix.recipe import load_recipe
from kilopix.stages import augment, caption, encode, export, mini, sample, train

recipe, folder = load_recipe("mini", sys.argv[2:]), Path("all")
mini.run(folder / "world", 8, 32, classes=2, val_per_class=1, workers=1)
caption.run(folder / "world" / "train", folder / "captions.parquet", "structured")
augment.run(folder / "captions.parquet", folder / "augmented", "cutmix", size=32)
augmented = folder / "augmented" / augment.MANIFEST
encode.run(folder / "captions.parquet", folder / "shards", recipe, augmented, "cpu")
train.run(folder / "shards", folder / "run", recipe, "cpu")
sample.run(folder / "run", ["a photo of a fox"], folder / "samples", device="cpu")
export.run(folder / "run", folder / "hub", prompts=["a fox"], device="cpu")
export.run(folder / "run", folder / "pipeline", "diffusers", prompts=["a fox"], device="cpu")
"""
_WITH_TIMES = {"log.jsonl", "state.json"}
"""Files that say how long something took."""


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What all stages write, by umask; in each process Python's hashes differ."""
    settings = [*TINY, "training.images=64"]
    folders = {}
    for seed, umask in enumerate(("022", "002")):
        folders[umask] = tmp_path_factory.mktemp(f"umask-{umask}")
        subprocess.run(
            [sys.executable, "-c", _ALL_STAGES, umask, *settings],
            cwd=folders[umask],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return folders


def files_below(folder: Path) -> dict[str, Path]:
    return {f.relative_to(folder).as_posix(): f for f in sorted(folder.rglob("*")) if f.is_file()}


def test_the_umask_decides_who_may_read_what_is_written(two_runs: dict[str, Path]):
    for umask, folder in two_runs.items():
        widest = 0o666 & ~int(umask, 8)
        modes = {name: file.stat().st_mode & 0o777 for name, file in files_below(folder).items()}
        assert {name: oct(mode) for name, mode in modes.items() if mode != widest} == {}


def test_equal_runs_in_two_processes_give_equal_files(two_runs: dict[str, Path]):
    one, two = (files_below(folder) for folder in two_runs.values())
    assert one.keys() == two.keys()
    different = {name for name in one if one[name].read_bytes() != two[name].read_bytes()}
    assert {name for name in different if Path(name).name not in _WITH_TIMES} == set()
    assert {"all/captions.parquet", "all/shards/codec.safetensors", "all/run/model.safetensors"} <= one.keys()


def write_images(folder: Path, numbers: dict[str, int]) -> None:
    for name, number in numbers.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(numbered(number))


@pytest.fixture
def captions(tmp_path: Path, cli: Cli) -> Path:
    """The manifest of four images of two classes."""
    write_images(tmp_path / "images", {"cup/1.png": 1, "cup/2.png": 2, "fox/3.png": 3, "fox/4.png": 4})
    assert cli("caption", tmp_path / "images", tmp_path / "captions.parquet").code == 0
    return tmp_path / "captions.parquet"


def told(manifest: Path) -> dict[str, str]:
    return {row.path: row.caption for row in read_manifest(manifest).rows}


def test_a_caption_corrected_in_pandas_is_read(captions: Path):
    pandas = pytest.importorskip("pandas")
    before = read_manifest(captions)
    frame = pandas.read_parquet(captions)
    frame.loc[3, "caption"] = "A fox asleep."
    frame = frame[frame["path"] != "cup/1.png"].sort_values("caption")
    frame["class_name"] = frame["class_name"].astype("category")
    frame.to_parquet(captions)
    after = read_manifest(captions)
    assert told(captions) == {
        "cup/2.png": "An image of a cup.",
        "fox/3.png": "An image of a fox.",
        "fox/4.png": "A fox asleep.",
    }
    assert (after.root, after.job) == (before.root, before.job)
    assert after.rows[0].box == before.rows[0].box


def as_pandas_writes(table: pa.Table) -> pa.Table:
    """A table as a pandas saves it that keeps nothing of what it read but the columns."""
    columns = {"__index_level_0__": pa.array(range(len(table)))}
    for name in reversed(table.schema.names):
        column = table.column(name).combine_chunks()
        if pa.types.is_string(column.type):
            column = column.cast(pa.large_string())
        elif pa.types.is_integer(column.type):
            column = column.cast(pa.int64())
        elif pa.types.is_list(column.type):
            column = pa.array([[] for _ in column], pa.list_(pa.null()))
        elif pa.types.is_fixed_size_list(column.type):
            column = pa.array(column.to_pylist(), pa.list_(pa.float64()))
        columns[name] = column.dictionary_encode() if name == "kind" else column
    return pa.table(columns).replace_schema_metadata({"pandas": "{}"})


def test_a_manifest_is_read_by_its_columns_alone(captions: Path):
    before = read_manifest(captions)
    pq.write_table(as_pandas_writes(pq.read_table(captions)), captions)
    after = read_manifest(captions)
    assert (after.rows, after.root) == (before.rows, before.root)
    assert is_manifest(captions)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("caption", [1, 2, 3, 4], "the column 'caption' is of type int64, and must be string"),
        ("width", ["8", "8", "8", "8"], "the column 'width' is of type string, and must be int32"),
        ("height", [8.5, 8.0, 8.0, 8.0], "the column 'height' is of type double, and must be int32"),
        ("box", [[0.0, 1.0]] * 4, "'box' is of type list<.*>, and must be fixed_size_list"),
        ("caption", ["a", None, "c", "d"], r"row 1 \(cup/2.png\) has no caption"),
        ("path", ["a", "b", "b", "c"], "lists 'b' twice"),
        ("class_name", None, "no column 'class_name'; it has path, caption"),
        ("root", None, "Another program saved the manifest without its folder"),
    ],
)
def test_what_is_wrong_with_an_edited_manifest_is_said(captions: Path, column: str, values, said: str):
    table = as_pandas_writes(pq.read_table(captions))
    place = table.schema.get_field_index(column)
    table = table.remove_column(place)
    if values is not None:
        table = table.append_column(column, pa.array(values))
    if column == "class_name":
        table = table.select(["path", "caption"])
    pq.write_table(table, captions)
    with pytest.raises(UserError, match=said):
        read_manifest(captions)


class Captioner:
    """A captioner that counts what it is shown."""

    name = "counting"

    def __init__(self, shown: list[int], stops_at: int = 1000):
        self.shown, self.stops_at = shown, stops_at

    def caption(self, pictures, seed: int) -> list[Answer]:
        if len(self.shown) >= self.stops_at:
            raise KeyboardInterrupt
        levels = [load().getpixel((2, 2))[0] for load in pictures]
        self.shown += levels
        return [Answer(f"This is the number {level}, drawn with great care.") for level in levels]


MODEL = ServerCaptionerConfig(url="http://127.0.0.1:1/v1", model="m")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The grey levels of the images that a captioner was shown."""
    levels: list[int] = []
    monkeypatch.setattr(captioning, "load_captioner", lambda config, device: Captioner(levels))
    return levels


def number(level: int) -> str:
    return f"This is the number {level}, drawn with great care."


def test_only_new_and_changed_images_are_captioned(tmp_path: Path, shown: list[int], capsys):
    images, out = tmp_path / "images", tmp_path / "c.parquet"
    write_images(images, {f"a/{i}.png": 10 * i for i in range(1, 6)})
    caption.run(images, out, MODEL)
    assert shown == [10, 20, 30, 40, 50]
    frame = pq.read_table(out).to_pylist()
    frame[2]["caption"] = "Corrected by hand."
    table = pq.read_table(out)
    pq.write_table(
        pa.Table.from_pylist(frame, table.schema).replace_schema_metadata(table.schema.metadata), out
    )
    shown.clear()
    write_images(images, {"a/0.png": 5, "b/new.png": 60})
    (images / "a" / "1.png").rename(images / "a" / "renamed.png")
    (images / "a" / "2.png").unlink()
    before = (images / "a" / "5.png").stat()
    write_images(images, {"a/5.png": 55})  # of the same size and time, so that its content alone tells
    os.utime(images / "a" / "5.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (images / "a" / "5.png").stat().st_size == before.st_size
    capsys.readouterr()
    caption.run(images, out, MODEL)
    assert shown == [5, 55, 60]
    assert told(out) == {
        "a/0.png": number(5),
        "a/3.png": "Corrected by hand.",
        "a/4.png": number(40),
        "a/5.png": number(55),
        "a/renamed.png": number(10),
        "b/new.png": number(60),
    }
    assert "3 kept, 3 new, 1 dropped, since their images are gone" in capsys.readouterr().out
    shown.clear()
    caption.run(images, out, MODEL)
    assert "already complete, 6 captions" in capsys.readouterr().out
    assert shown == []


def test_another_captioner_keeps_nothing_and_is_refused(tmp_path: Path, shown: list[int]):
    write_images(tmp_path / "images", {"a/1.png": 1})
    caption.run(tmp_path / "images", tmp_path / "c.parquet", MODEL)
    write_images(tmp_path / "images", {"a/2.png": 2})
    before = (tmp_path / "c.parquet").read_bytes()
    for other in (MODEL.model_copy(update={"prompt": "What?"}), "aio"):
        with pytest.raises(UserError, match="captioner"):
            caption.run(tmp_path / "images", tmp_path / "c.parquet", other)
    assert (tmp_path / "c.parquet").read_bytes() == before


def test_captions_of_another_folder_are_not_dropped(tmp_path: Path, shown: list[int]):
    write_images(tmp_path / "one", {"a/1.png": 1, "a/2.png": 2})
    write_images(tmp_path / "two", {"a/3.png": 3, "a/2.png": 4, "a/1.png": 5})  # names alone are no images
    out = tmp_path / "c.parquet"
    caption.run(tmp_path / "one", out, MODEL)
    with pytest.raises(UserError, match=r"2 are of images that are no longer in .*, or others there"):
        caption.run(tmp_path / "two", out, MODEL)
    assert set(told(out)) == {"a/1.png", "a/2.png"}
    assert not list(tmp_path.glob(".*"))  # nothing of the refused call is in the way of the next


def test_an_interrupted_run_keeps_its_captions_when_images_are_added(
    tmp_path: Path, shown: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(caption, "ROWS_PER_PART_OF_MODEL", 2)
    images, out = tmp_path / "images", tmp_path / "c.parquet"
    write_images(images, {f"a/{i}.png": 10 * i for i in range(1, 8)})
    with monkeypatch.context() as patch:
        patch.setattr(captioning, "load_captioner", lambda config, device: Captioner(shown, 4))
        with pytest.raises(KeyboardInterrupt):
            caption.run(images, out, MODEL)
    assert shown == [10, 20, 30, 40]
    write_images(images, {"a/0.png": 5})
    with monkeypatch.context() as patch:
        patch.setattr(captioning, "load_captioner", lambda config, device: Captioner(shown, 6))
        with pytest.raises(KeyboardInterrupt):
            caption.run(images, out, MODEL)
    caption.run(images, out, MODEL)
    assert shown == [10, 20, 30, 40, 5, 50, 60, 70]
    assert list(told(out).values()) == [number(level) for level in (5, 10, 20, 30, 40, 50, 60, 70)]
    assert not list(tmp_path.glob(".*"))


ENCODE = ("data.image_size=32", "--device", "cpu", "--part-rows", 4)


def world(folder: Path, cli: Cli) -> Path:
    """Twelve images of two classes, and the manifest of their captions."""
    done = cli("mini", folder / "world", "--images-per-class", 6, "--val-per-class", 1, "--classes", 2)
    assert done.code == 0, done.err
    captions = folder / "captions.parquet"
    assert cli("caption", folder / "world" / "train", captions, "--captioner", "structured").code == 0
    return captions


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many images and captions are encoded."""
    counts = {"images": 0, "texts": 0}
    images, texts = encoding.encode_images, encoding.pack_in_batches

    def count_images(autoencoder, pixels, size):
        counts["images"] += len(pixels)
        return images(autoencoder, pixels, size)

    def count_texts(encoder, captions, *how):
        counts["texts"] += len(captions)
        return texts(encoder, captions, *how)

    monkeypatch.setattr(encoding, "encode_images", count_images)
    monkeypatch.setattr(encoding, "pack_in_batches", count_texts)
    return counts


def contents(folder: Path) -> dict[str, bytes]:
    return {name: file.read_bytes() for name, file in files_below(folder).items()}


def correct(manifest: Path, row: int, caption: str) -> str:
    """Correct a caption as with pandas; returns the path of its image."""
    table = pq.read_table(manifest)
    rows = table.to_pylist()
    rows[row]["caption"] = caption
    edited = pa.Table.from_pylist(rows, table.schema).replace_schema_metadata(table.schema.metadata)
    pq.write_table(edited, manifest)
    return rows[row]["path"]


def test_only_rows_that_have_changed_are_encoded(tmp_path: Path, cli: Cli, counted: dict[str, int]):
    captions, shards = world(tmp_path, cli), tmp_path / "shards"
    assert cli("encode", captions, shards, *ENCODE).code == 0
    assert counted == {"images": 12, "texts": 24}
    before = contents(shards)
    corrected = correct(captions, 5, "A thing that was looked at again.")
    new = sorted((tmp_path / "world" / "train").glob("*/*.jpg"))[0]
    Image.open(new).transpose(Image.Transpose.ROTATE_90).save(new.with_name("a_first.jpg"), quality=95)
    scenes = tmp_path / "world" / "train" / "scenes.jsonl"
    line = json.loads(scenes.read_text(encoding="utf-8").splitlines()[0])
    line["file"] = f"{new.parent.name}/a_first.jpg"
    with open(scenes, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    added = cli("caption", tmp_path / "world" / "train", captions, "--captioner", "structured")
    assert "12 kept, 1 new" in added.out
    counted.update(images=0, texts=0)
    asked = cli("encode", captions, shards, *ENCODE)
    assert asked.code == 2
    assert "cannot be resumed" in asked.err
    assert contents(shards) == before, "a run may be in the middle of these shards"
    done = cli("encode", captions, shards, *ENCODE, "--overwrite")
    assert done.code == 0, done.err
    assert "0 of 4 parts stay" in done.out
    assert counted == {"images": 1, "texts": 4}  # long and short, of the corrected row and of the new one
    rows = read_manifest(captions).rows
    assert corrected in [row.path for row in rows]
    opened = Shards(shards)
    assert opened.column("plain", "path").to_pylist() == [row.path for row in rows]
    assert opened.column("plain", "caption").to_pylist() == [row.caption for row in rows]
    # What is kept is what would be made: with the same codec, a new folder holds the same.
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "codec.safetensors").write_bytes(before["codec.safetensors"])
    fresh = cli("encode", captions, tmp_path / "fresh", *ENCODE, "--codec", tmp_path / "codec")
    assert fresh.code == 0, fresh.err
    same, other = contents(shards), contents(tmp_path / "fresh")
    assert sorted(same) == sorted(other)
    one, two = Shards(shards), Shards(tmp_path / "fresh")
    for i in range(len(rows)):
        np.testing.assert_allclose(one.plain(i).mean, two.plain(i).mean, atol=1e-2)
        np.testing.assert_allclose(text_of(one, i), text_of(two, i), atol=1e-2)
    assert cli("verify", shards).code == 0


def text_of(shards: Shards, i: int) -> np.ndarray:
    return stack([shards.plain(i).text], shards.index.text_storage).states.numpy()


def test_parts_whose_rows_are_the_same_stay(tmp_path: Path, cli: Cli, counted: dict[str, int]):
    captions, shards = world(tmp_path, cli), tmp_path / "shards"
    assert cli("encode", captions, shards, *ENCODE).code == 0
    before = {file.name: file.stat().st_ino for file in shards.glob("plain-*.arrow")}
    correct(captions, 5, "A thing that was looked at again.")
    counted.update(images=0, texts=0)
    assert "2 of 3 parts stay" in cli("encode", captions, shards, *ENCODE, "--overwrite").out
    assert counted == {"images": 0, "texts": 2}
    after = {file.name: file.stat().st_ino for file in shards.glob("plain-*.arrow")}
    assert [before[name] == after[name] for name in sorted(after)] == [True, False, True]


def test_shards_of_other_settings_or_images_stay_as_they_are(tmp_path: Path, cli: Cli):
    captions, shards = world(tmp_path, cli), tmp_path / "shards"
    assert cli("encode", captions, shards, *ENCODE).code == 0
    before = contents(shards)
    held_out = tmp_path / "val.parquet"
    assert cli("caption", tmp_path / "world" / "val", held_out, "--captioner", "structured").code == 0
    for manifest, settings, said in (
        (captions, ("data.text_storage=int8",), "text_storage"),
        (held_out, (), "manifest"),
    ):
        refused = cli("encode", manifest, shards, *ENCODE, *settings)
        assert refused.code == 2
        assert said in refused.err
    assert contents(shards) == before


@pytest.mark.parametrize("damage", ["deleted", "cut"])
@pytest.mark.parametrize("name", ["plain-00001.arrow", "codec.safetensors", "empty_text.safetensors"])
def test_encode_makes_anew_what_is_lost_of_complete_shards(
    tmp_path: Path, cli: Cli, counted: dict[str, int], name: str, damage: str
):
    captions, shards = world(tmp_path, cli), tmp_path / "shards"
    assert cli("encode", captions, shards, *ENCODE).code == 0
    before = contents(shards)
    counted.update(images=0, texts=0)
    if damage == "deleted":
        (shards / name).unlink()
    else:
        (shards / name).write_bytes(before[name][:-100])
    done = cli("encode", captions, shards, *ENCODE)
    assert done.code == 0, done.err
    assert name in done.out
    assert contents(shards) == before
    assert counted["images"] == (4 if name.startswith("plain") else 0)
    assert "already complete" in cli("encode", captions, shards, *ENCODE).out


def test_augmented_pictures_stay_as_long_as_their_images_do(tmp_path: Path, cli: Cli):
    captions, out = world(tmp_path, cli), tmp_path / "augmented"
    assert cli("augment", captions, out, "--size", 32).code == 0
    before = {file.name: file.stat().st_ino for file in out.rglob("*.jpg")}
    corrected = correct(captions, 5, "A thing that was looked at again.")
    done = cli("augment", captions, out, "--size", 32)
    assert done.code == 0, done.err
    assert "12 of 12 pictures stay" in done.out
    assert {file.name: file.stat().st_ino for file in out.rglob("*.jpg")} == before
    rows = read_manifest(out / "manifest.parquet").rows
    held_out = tmp_path / "val.parquet"
    assert cli("caption", tmp_path / "world" / "val", held_out, "--captioner", "structured").code == 0
    refused = cli("augment", held_out, out, "--size", 32)
    assert (refused.code, "manifest" in refused.err) == (2, True)
    assert next(r for r in rows if r.base == corrected).caption.startswith(
        "A thing that was looked at again."
    )
    assert cli("augment", captions, tmp_path / "fresh", "--size", 32).code == 0
    (tmp_path / "world" / "train" / rows[0].base).unlink()
    assert cli("caption", tmp_path / "world" / "train", captions, "--captioner", "structured").code == 0
    assert cli("augment", captions, out, "--size", 32).code == 0
    assert cli("augment", captions, tmp_path / "fresh2", "--size", 32).code == 0
    ours, fresh = contents(out), contents(tmp_path / "fresh2")
    assert ours.keys() == fresh.keys()
    assert [name for name in ours if ours[name] != fresh[name] and name.endswith(".jpg")] == []
