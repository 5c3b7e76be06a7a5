"""Prompt matrices, seeds and sweeps, from the command line to the contact sheet."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kilopix.data.pictures import sheet
from kilopix.prompts import expand, expand_all, numbers, whole_numbers
from kilopix.types import UserError
from tiny import Cli


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image, int)


def test_a_matrix_is_all_its_combinations():
    assert expand("a {red|blue} {fox|car}") == ["a red fox", "a red car", "a blue fox", "a blue car"]
    assert expand("a {big |}fox") == ["a big fox", "a fox"]
    assert expand("plain") == ["plain"]
    assert expand("a {brace} and a | bar  kept") == ["a {brace} and a | bar  kept"]
    assert expand("a {x|x} b") == ["a x b"]
    assert expand_all(["a", "{b|c}"]) == ["a", "b", "c"]
    with pytest.raises(UserError, match="at most 10,000"):
        expand("{a|b}" * 14)


def test_lists_of_numbers():
    assert numbers("1, 3.5,1", "-g") == (1.0, 3.5)
    assert whole_numbers("5,2-4", "-s") == (5, 2, 3, 4)
    assert numbers(None, "-g") == whole_numbers(None, "-s") == ()
    for text in ("a", "1,,2", "nan", "inf", "1e99", ""):
        with pytest.raises(UserError, match="-g"):
            numbers(text, "-g")
    for text in ("4-2", "1.5", "0-99999999", "x-y", "", "1,", "nan"):
        with pytest.raises(UserError, match="-s"):
            whole_numbers(text, "-s")


def test_a_sheet_puts_pictures_in_their_places():
    images = [Image.new("RGB", (128, 128), (40 * i, 0, 0)) for i in range(6)]
    whole = np.asarray(sheet(images, ["one", "two", "three"], ["above", "below"]))
    for i in range(6):
        row, column = divmod(i, 3)
        y, x = 24 + row * 136 + 64, 158 + column * 136 + 64
        assert whole[y, x].tolist() == [40 * i, 0, 0]
    assert (whole[:24] < 255).any(), "no labels over the columns"
    assert (whole[24:, :150] < 255).any(), "no labels beside the rows"


def test_a_sweep_is_one_sheet_and_goes_on_where_it_was(tiny_demo: Path, tmp_path: Path, cli: Cli):
    out = tmp_path / "out"
    call = (
        *("sample", tiny_demo / "run", "a {red|blue} car", "-o", out, "--seeds", "3,7-8"),
        *("--guidance", "1,3", "--steps", "1,2"),
    )
    done = cli(*call)
    assert done.code == 0, done.err
    listed = json.loads((out / "samples.json").read_text())["images"]
    assert len(listed) == 2 * 3 * 2 * 2
    assert listed[0] == {"file": "00000.png", "prompt": "a red car", "seed": 3, "guidance": 1.0, "steps": 1}
    assert listed[-1] == {"file": "00023.png", "prompt": "a blue car", "seed": 8, "guidance": 3.0, "steps": 2}
    assert pixels(out / "grid.png").shape[1::-1] == (158 + 2 * 136, 24 + 12 * 136 + 8)
    kept = {file: file.stat().st_mtime_ns for file in out.glob("0*.png")}
    content = (out / "00013.png").read_bytes()
    (out / "00013.png").unlink()
    (out / "grid.png").unlink()
    assert cli(*call).code == 0
    assert (out / "00013.png").read_bytes() == content
    changed = [f.name for f, stamp in kept.items() if f.stat().st_mtime_ns != stamp]
    assert changed == ["00013.png"]
    alone = tmp_path / "alone"
    one = ("sample", tiny_demo / "run", "a blue car", "-o", alone, "--seed", "3", "--steps", "2")
    assert cli(*one, "--guidance", "1").code == 0
    image = next(
        i for i in listed if (i["prompt"], i["seed"], i["steps"], i["guidance"]) == ("a blue car", 3, 2, 1)
    )
    a, b = (pixels(f) for f in (alone / "00000.png", out / image["file"]))
    assert np.abs(a - b).max() <= 1


def test_a_sweep_over_steps_alone(tiny_demo: Path, tmp_path: Path, cli: Cli):
    assert cli("sample", tiny_demo / "run", "a car", "-o", tmp_path / "out", "--steps", "1,2,3").code == 0
    assert pixels(tmp_path / "out" / "grid.png").shape[1::-1] == (158 + 3 * 136, 24 + 136 + 8)


def test_wrong_settings_are_one_line(tiny_demo: Path, tmp_path: Path, cli: Cli):
    for options, words in (
        (("--steps", "0"), "steps"),
        (("--steps", "ten"), "--steps 'ten'"),
        (("--guidance", "-1"), "guidance"),
        (("--guidance", "nan"), "--guidance nan"),
        (("--guidance", "1,inf"), "--guidance inf"),
        (("--steps", "4,0"), "steps"),
        (("--seeds", "9-1"), "--seeds 9-1"),
        (("--seeds", ""), "--seeds ''"),
    ):
        done = cli("sample", tiny_demo / "run", "a car", "-o", tmp_path / "out", *options)
        assert done.code == 2
        assert words in done.err
        assert done.err.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_the_shipped_model_from_the_shell(tmp_path: Path, cli: Cli):
    done = cli("sample", "mini", "a car", "-o", tmp_path / "out", "--steps", "2")
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "00000.png").exists()
