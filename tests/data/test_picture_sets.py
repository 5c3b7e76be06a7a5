"""Which pictures are scored; whatever is wrong with one is an error with its name."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

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
    with pytest.raises(UserError, match=r"00001/samples: holds 1 pictures, and others 2"):
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
    with pytest.raises(UserError, match="write one line"):
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
