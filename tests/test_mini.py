import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from kilopix.data.world.objects import OBJECTS, held_out_colors
from kilopix.data.world.render import render
from kilopix.data.world.scenes import load_scenes
from kilopix.runtime import read_json
from kilopix.stages.mini import run
from kilopix.types import UserError
from tiny import temporary_of_dead_process

SMALL = {"images_per_class": 5, "size": 32, "seed": 3, "classes": 4, "val_per_class": 2}


def _digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("mini") / "set"
    run(out, **SMALL, workers=1)
    return out


def test_the_set_is_laid_out_as_class_folders(made):
    folders = [item.folder for item in OBJECTS[:4]]
    for split, count in (("train", 5), ("val", 2)):
        assert sorted(p.name for p in (made / split).iterdir() if p.is_dir()) == sorted(folders)
        assert all(len(list((made / split / folder).glob("*.jpg"))) == count for folder in folders)
    assert read_json(made / "mini.json") == {"complete": True, **SMALL}
    assert not list(made.rglob("*.tmp"))


def test_scenes_say_what_the_pictures_show(made):
    for split in ("train", "val"):
        scenes = load_scenes(made / split)
        assert len(scenes) == len(list((made / split).rglob("*.jpg")))
        for file, scene in scenes.items():
            picture = np.asarray(Image.open(made / split / file)).astype(int)
            assert picture.shape == (32, 32, 3)
            assert np.abs(picture - render(scene, 32)).mean() < 8
            assert scene.object.color not in held_out_colors(scene.object.name)
    first = json.loads((made / "train" / "scenes.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert list(first)[:4] == ["file", "object", "colors", "color"]


def test_train_and_val_share_no_scene(made):
    train, val = (set(load_scenes(made / split).values()) for split in ("train", "val"))
    assert not train & val


def test_the_number_of_workers_changes_no_byte(made, tmp_path, monkeypatch):
    monkeypatch.setattr("kilopix.stages.mini._CHUNK", 7)
    run(tmp_path / "two", **SMALL, workers=2)
    assert _digests(tmp_path / "two") == _digests(made)


def test_a_run_that_was_cut_off_goes_on(made, tmp_path, monkeypatch):
    out = tmp_path / "cut"
    monkeypatch.setattr("kilopix.stages.mini._CHUNK", 3)
    drawn = []

    def stop_after_two(job, number):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(number)
        return real(job, number)

    from kilopix.stages import mini

    real = mini._Draw._draw
    monkeypatch.setattr(mini._Draw, "_draw", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run(out, **SMALL, workers=1)
    assert json.loads((out / "mini.json").read_text(encoding="utf-8"))["complete"] is False
    left_behind = temporary_of_dead_process(out / "train" / "car" / "car_00004.jpg")
    left_behind.write_bytes(b"half")
    before = (out / "train" / "car" / "car_00000.jpg").stat().st_mtime_ns
    monkeypatch.setattr(mini._Draw, "_draw", real)
    run(out, **SMALL, workers=1)
    assert (out / "train" / "car" / "car_00000.jpg").stat().st_mtime_ns == before
    assert _digests(out) == _digests(made)


def test_a_finished_set_is_left_alone(made, capsys, monkeypatch):
    monkeypatch.setattr("kilopix.stages.mini._draw_all", lambda *_: pytest.fail("drew again"))
    run(made, **SMALL)
    assert "already complete" in capsys.readouterr().out


def test_other_arguments_or_other_files_are_refused(made, tmp_path):
    with pytest.raises(UserError, match="seed: 3, here"):
        run(made, **{**SMALL, "seed": 4})
    (tmp_path / "letter.txt").write_text("dear reader", encoding="utf-8")
    with pytest.raises(UserError, match="not empty"):
        run(tmp_path, **SMALL)


@pytest.mark.parametrize(
    ("key", "value"),
    [("classes", 65), ("size", 8), ("images_per_class", 0), ("val_per_class", 0), ("workers", 0)],
)
def test_values_out_of_range_are_named(tmp_path, key, value):
    with pytest.raises(UserError, match=key):
        run(tmp_path / "out", **{**SMALL, key: value})
    assert not (tmp_path / "out").exists()
