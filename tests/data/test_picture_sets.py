"""Which pictures are scored; whatever is wrong with one is an error with its name."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from kilopix.data.checked import check_pictures
from kilopix.data.manifest import Row, write_manifest
from kilopix.data.picture_sets import read_picture_set, read_pixels
from kilopix.types import UserError
from tiny_networks import draw_pictures


def test_a_plain_folder_in_order(tmp_path: Path):
    draw_pictures(tmp_path / "b", 2, 0)
    draw_pictures(tmp_path, 1, 1)
    (tmp_path / "notes.txt").write_text("side files are no pictures")
    found = read_picture_set(tmp_path)
    assert found.files == ("00000.png", "b/00000.png", "b/00001.png")
    assert found.prompts is None
    assert found.prompts_sha256 is None
    pixels = read_pixels(tmp_path, found.files, (40, 40))
    assert pixels.shape == (3, 3, 40, 40)
    assert pixels.dtype == torch.uint8


def test_what_kilopix_sample_wrote(tmp_path: Path):
    names = draw_pictures(tmp_path, 2, 0)
    draw_pictures(tmp_path / "other", 1, 1)
    images = [{"file": name, "prompt": f"prompt of {name}", "seed": 0} for name in names]
    (tmp_path / "samples.json").write_text(json.dumps({"images": images}))
    found = read_picture_set(tmp_path)
    assert found.files == tuple(names)
    assert found.prompts == tuple(f"prompt of {name}" for name in names)
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=r"00001\.png: is missing"):
        read_picture_set(tmp_path)
    (tmp_path / "samples.json").write_text("[]")
    with pytest.raises(UserError, match=r"samples\.json"):
        read_picture_set(tmp_path)


def test_genevals_layout(tmp_path: Path):
    for number, prompt in enumerate(["a photo of a fox", "a photo of a car"]):
        folder = tmp_path / f"{number:05d}"
        draw_pictures(folder / "samples", 2, number)
        (folder / "metadata.jsonl").write_text(json.dumps({"tag": "single_object", "prompt": prompt}) + "\n")
        (folder / "grid.png").write_bytes((folder / "samples" / "00000.png").read_bytes())
    found = read_picture_set(tmp_path)
    assert found.files == tuple(f"0000{i}/samples/0000{j}.png" for i in (0, 1) for j in (0, 1))
    assert found.prompts == ("a photo of a fox",) * 2 + ("a photo of a car",) * 2
    (tmp_path / "00001" / "samples" / "00001.png").unlink()
    with pytest.raises(UserError, match=r"00001/samples: 1 picture, where 2 are expected"):
        read_picture_set(tmp_path)


def test_prompts_must_fit_the_files(tmp_path: Path):
    names = draw_pictures(tmp_path / "set", 2, 0)
    lines = tmp_path / "prompts.jsonl"

    def write(*files: str) -> None:
        lines.write_text("".join(json.dumps({"file": f, "prompt": f"of {f}"}) + "\n" for f in files))

    write(names[1], names[0])
    assert read_picture_set(tmp_path / "set", lines).prompts == ("of 00000.png", "of 00001.png")
    write(names[0])
    with pytest.raises(UserError, match=r"no prompt for 00001\.png"):
        read_picture_set(tmp_path / "set", lines)
    write(*names, "00002.png")
    with pytest.raises(UserError, match=r"prompt for 00002\.png, which is not there"):
        read_picture_set(tmp_path / "set", lines)
    lines.write_text("a red fox\n")
    with pytest.raises(UserError, match="not valid JSON"):
        read_picture_set(tmp_path / "set", lines)


def test_files_listed_twice_and_strange_files_are_named(tmp_path: Path):
    draw_pictures(tmp_path, 3, 0)
    images = [{"file": f"0000{i}.png", "prompt": "a fox"} for i in (0, 1, 2, 1)]
    (tmp_path / "samples.json").write_text(json.dumps({"images": images}))
    with pytest.raises(UserError, match=r"lists '00001\.png' twice"):
        read_picture_set(tmp_path)
    (tmp_path / "samples.json").unlink()
    (tmp_path / "00003.pn").write_bytes(b"?")
    with pytest.raises(UserError, match=r"00003\.pn: no picture by its name"):
        read_picture_set(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_picture_set(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures in it"):
        read_picture_set(tmp_path / "empty")


def test_a_picture_of_another_size_or_damaged_is_named(tmp_path: Path):
    names = draw_pictures(tmp_path, 3, 0)
    draw_pictures(tmp_path / "wide", 1, 1, (60, 40))
    with pytest.raises(UserError, match=r"wide/00000\.png: is 60 x 40, and the pictures are 40 x 40"):
        read_pixels(tmp_path, [*names, "wide/00000.png"], (40, 40))
    draw_pictures(tmp_path / "wide", 1, 1, (60, 40))
    fitted = read_pixels(tmp_path, ["wide/00000.png"], (40, 40), fit=True)
    expected = Image.open(tmp_path / "wide" / "00000.png").crop((10, 0, 50, 40))
    assert fitted[0].permute(1, 2, 0).numpy().tobytes() == expected.tobytes()
    whole = (tmp_path / names[1]).read_bytes()
    (tmp_path / names[1]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"00001\.png: cannot be read"):
        read_pixels(tmp_path, names, (40, 40))


def lay_geneval(root: Path, metadata: bytes) -> Path:
    """Two prompts of two images each, the second with these metadata."""
    for number in range(2):
        folder = root / f"{number:05d}"
        draw_pictures(folder / "samples", 2, number)
        good = {"tag": "single_object", "include": [], "prompt": f"a photo of a car, {number}"}
        (folder / "metadata.jsonl").write_text(json.dumps(good))
    (root / "00001" / "metadata.jsonl").write_bytes(metadata)
    return root


WHOLE = {"tag": "colors", "include": [{"class": "car", "count": 1}], "prompt": "a\u2028red car"}


@pytest.mark.parametrize(
    "metadata",
    [
        json.dumps(WHOLE).encode(),
        json.dumps(WHOLE, ensure_ascii=False).encode() + b"\r\n",
        b"\xef\xbb\xbf" + json.dumps(WHOLE, ensure_ascii=False).encode(),
        json.dumps(WHOLE, indent=1).encode(),
        json.dumps({**WHOLE, "id": 7}).encode(),
    ],
    ids=["one line", "U+2028 and CRLF", "byte-order mark", "several lines", "another key"],
)
def test_genevals_metadata_are_read_however_they_are_written(tmp_path: Path, metadata: bytes):
    found = read_picture_set(lay_geneval(tmp_path, metadata))
    assert found.prompts == ("a photo of a car, 0",) * 2 + ("a red car",) * 2


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"", "is empty"),
        (b"{}", "the key 'tag' is missing"),
        (b'{"tag": "colors"}', "the key 'prompt' is missing"),
        (b'{"tag": "colors", "prompt": ""}', "its prompt is empty"),
        (b'{"tag": "colors", "prompt": ["a car"]}', "its prompt is a list"),
        (b'{"tag": "colors", "prompt": 7}', "its prompt is the number 7, not text"),
        (b'{"tag": "colors", "prompt": null}', "its prompt is empty"),
        (b"[1]", "expected an object"),
        (b'{\n "prompt": ', "not valid JSON"),
        (b'{"tag": 1, "prompt": "a"}\n{"tag": 1, "prompt": "b"}\n', "holds 2 prompts, where one is expected"),
        ('{"tag": "a", "prompt": "café"}'.encode("latin-1"), "not a text in UTF-8"),
    ],
)
def test_bad_metadata_of_genevals_layout_are_named(tmp_path: Path, metadata: bytes, message: str):
    with pytest.raises(UserError, match=rf"00001/metadata\.jsonl.*{message}"):
        read_picture_set(lay_geneval(tmp_path, metadata))


def test_no_folder_of_genevals_layout_is_passed_over(tmp_path: Path):
    lay_geneval(tmp_path, json.dumps(WHOLE).encode())
    (tmp_path / "00001" / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"00001/metadata\.jsonl: missing"):
        read_picture_set(tmp_path)
    (tmp_path / "00001").rename(tmp_path / "car")
    (tmp_path / "car" / "metadata.jsonl").write_text(json.dumps(WHOLE))
    with pytest.raises(UserError, match=r"car: holds metadata\.jsonl, but its name is no number"):
        read_picture_set(tmp_path)


def write_prompts(path: Path, *entries: object, ending: str = "\n", start: str = "") -> Path:
    """JSON lines as they are, with U+2028 unescaped."""
    texts = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    path.write_bytes((start + "".join(text + ending for text in texts)).encode())
    return path


def test_prompts_are_read_with_any_ends_of_lines_and_names_of_files(tmp_path: Path):
    folder = tmp_path / "set"
    names = [f"sub/{name}" for name in draw_pictures(folder / "sub", 3, 0)]
    lines = tmp_path / "prompts.jsonl"
    spelled = [f"./{names[0]}", names[1].replace("/", "\\"), str(folder / names[2])]
    entries = [{"file": file, "prompt": f"a red\u2028car {i}"} for i, file in enumerate(spelled)]
    for ending in ("\n", "\r\n", "\n\n"):
        for start in ("", "\ufeff"):
            found = read_picture_set(folder, write_prompts(lines, *entries, ending=ending, start=start))
            assert found.prompts == ("a red car 0", "a red car 1", "a red car 2")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prompt": ["a red car"]}, "entry 2: its prompt is a list"),
        ({"prompt": ["a red car", "a car"]}, "entry 2: its prompt is a list"),
        ({"prompt": 3}, "entry 2: its prompt is the number 3, not text"),
        ({"prompt": None}, "entry 2: its prompt is empty"),
        ({"prompt": float("nan")}, "entry 2: its prompt is empty"),
        ({"prompt": " "}, "entry 2: its prompt is empty"),
        ({"prompt": True}, "entry 2: its prompt is the truth value true"),
        ({"prompt": {"text": "a car"}}, r"entry 2: its prompt is a record \(text\)"),
        ({"text": "a car"}, "entry 2: the key 'prompt' is missing"),
        ({"file": 1, "prompt": "a car"}, "entry 2: 'file' must be the name of a file, not 1"),
        ({"file": "../00001.png", "prompt": "a car"}, "entry 2: .* is not below"),
        ({"file": "./00000.png", "prompt": "a car"}, r"entry 2: 00000\.png has a prompt already, in entry 1"),
    ],
)
def test_an_entry_that_is_no_prompt_is_named(tmp_path: Path, entry: dict[str, object], message: str):
    names = draw_pictures(tmp_path / "set", 2, 0)
    good = {"file": names[0], "prompt": "a red car"}
    lines = write_prompts(tmp_path / "prompts.jsonl", good, {"file": names[1], **entry})
    with pytest.raises(UserError, match=message):
        read_picture_set(tmp_path / "set", lines)
    write_prompts(tmp_path / "set" / "prompts.jsonl", good, {"file": names[1], **entry})
    with pytest.raises(UserError, match=message):
        read_picture_set(tmp_path / "set")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"file": "00000.png", "prompt": ["a fox"]}, r"image 1: 'prompt' must be a text"),
        ({"file": "00000.png"}, r"image 1: 'prompt' must be a text, not None"),
        ({"file": 3, "prompt": "a fox"}, r"image 1: 'file' must be the name of a file"),
        ({"file": "../a.png", "prompt": "a fox"}, r"is not below"),
        ("00000.png", "not a list of samples"),
    ],
)
def test_a_list_of_samples_with_odd_values_is_refused(tmp_path: Path, image: object, message: str):
    draw_pictures(tmp_path, 1, 0)
    (tmp_path / "samples.json").write_text(json.dumps({"images": [image]}))
    with pytest.raises(UserError, match=rf"samples\.json.*{message}"):
        read_picture_set(tmp_path)
    (tmp_path / "samples.json").write_text(json.dumps({"images": {"a": 1}}))
    with pytest.raises(UserError, match=r"samples\.json: not a list of samples"):
        read_picture_set(tmp_path)


def _contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in draw_pictures(folder, 4, 0)]


def _in_parquet(folder: Path, contents: list[bytes]) -> list[str]:
    folder.mkdir(exist_ok=True)
    table = pa.table({"image": contents, "text": [f"a boat {i}" for i in range(4)]})
    pq.write_table(table, folder / "val.parquet", row_group_size=3)
    return [f"val.parquet#{i}" for i in range(4)]


def _in_tar(folder: Path, contents: list[bytes]) -> list[str]:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "shard.tar", "w") as file:
        for i, content in enumerate(contents):
            for name, data in ((f"{i:04d}.png", content), (f"{i:04d}.txt", f"a boat {i}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return [f"shard.tar#{i:04d}.png" for i in range(4)]


@pytest.mark.parametrize("pack", [_in_parquet, _in_tar])
def test_pictures_in_containers_are_pictures(tmp_path: Path, pack: Callable[[Path, list[bytes]], list[str]]):
    contents = _contents(tmp_path / "plain")
    plain = read_picture_set(tmp_path / "plain")
    names = pack(tmp_path / "packed", contents)
    rows = [Row(path=name, class_name="boat", caption=f"a boat {i}") for i, name in enumerate(names)]
    manifest = tmp_path / "val.parquet"
    write_manifest(manifest, tmp_path / "packed", rows, {})
    container = tmp_path / "packed" / names[0].split("#")[0]
    for place in (manifest, tmp_path / "packed", container):
        found = read_picture_set(place)
        assert found.files == tuple(names)
        assert found.prompts == tuple(f"a boat {i}" for i in range(4))
        expected = read_pixels(plain.root, plain.files, (40, 40))
        assert torch.equal(read_pixels(found.root, found.files, (40, 40)), expected)
        assert check_pictures(found.root, found.files) == check_pictures(plain.root, plain.files)
    container.unlink()
    with pytest.raises(UserError, match=rf"{container.name}: is missing"):
        read_picture_set(manifest)


def test_images_of_an_array_are_pictures(tmp_path: Path):
    _contents(tmp_path / "plain")
    plain = read_picture_set(tmp_path / "plain")
    pixels = read_pixels(plain.root, plain.files, (40, 40))
    array = pixels.permute(0, 2, 3, 1).numpy()
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "batch.npz", array, np.arange(4))  # ADM's sampling script adds the labels
        found = read_picture_set(tmp_path / "batch.npz", cache=tmp_path / "cache")
        assert len(found.files) == 4
        assert torch.equal(read_pixels(found.root, found.files, (40, 40)), pixels)
        checked = check_pictures(found.root, found.files, heads_only=True)
        assert (checked.size, len(set(checked.sha256))) == ((40, 40), 4)
        assert check_pictures(found.root, found.files) == checked


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 3, 16, 16), np.uint8), r"'arr_0' holds 2 x 3 x 16 x 16 of uint8; .*height x width x 3"),
        (np.zeros((2, 16, 16, 3), np.float32), "'arr_0' holds 2 x 16 x 16 x 3 of float32"),
        (np.zeros((0, 16, 16, 3), np.uint8), "'arr_0' holds 0 x 16"),
        (np.zeros((2, 4, 4, 3), np.uint8), "of 4 x 4 pixels"),
        (np.array([{"a": 1}], dtype=object), "'arr_0' cannot be read .*objects"),
    ],
)
def test_an_array_that_is_no_images_is_refused(tmp_path: Path, value: np.ndarray, message: str):
    np.savez(tmp_path / "batch.npz", value)
    with pytest.raises(UserError, match=rf"batch\.npz: .*{message}"):
        read_picture_set(tmp_path / "batch.npz", cache=tmp_path / "cache")
    np.savez(tmp_path / "batch.npz", mu=np.zeros(3))
    with pytest.raises(UserError, match=r"batch\.npz: holds no images"):
        read_picture_set(tmp_path / "batch.npz", cache=tmp_path / "cache")
