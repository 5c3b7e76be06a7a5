from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kilopix.data.world.backgrounds import COLORS, Background
from kilopix.data.world.composed import composed_scene
from kilopix.data.world.objects import HUES, OBJECTS
from kilopix.data.world.render import object_box, render
from kilopix.data.world.scenes import Scene, SceneObject
from kilopix.data.world.scoring import Verdict, judge_scene, shares
from kilopix.pretrained import judge as judge_module
from kilopix.pretrained.judge import load_judge
from kilopix.types import Detection, UserError

WEIGHTS = Path(judge_module.__file__).parent / "assets" / "judge.safetensors"
HELD_OUT_SEED = 909_090  # tools/train_judge.py never draws from it
BAR = 0.97


def _tensor(scenes, size=64):
    return torch.from_numpy(np.stack([render(scene, size) for scene in scenes])).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def held_out():
    return [composed_scene(HELD_OUT_SEED, index) for index in range(500)]


@pytest.fixture(scope="module")
def right(judge, held_out):
    found = judge.detect(_tensor(held_out))
    return shares([judge_scene(scene, seen) for scene, seen in zip(held_out, found, strict=True)])


@pytest.mark.parametrize("part", ["object", "count", "position", "color"])
def test_the_judge_is_right_about_held_out_scenes(right, part):
    assert right[part] >= BAR, right


def test_the_judge_stays_right_on_blurred_and_noisy_pictures(judge, held_out):
    generator = torch.Generator().manual_seed(0)
    images = _tensor(held_out[:200]).float()
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, padding=1, count_include_pad=False)
    flawed = 0.5 * (images + blurred) + 6 * torch.randn(images.shape, generator=generator)
    found = judge.detect(flawed.clamp(0, 255).to(torch.uint8))
    verdicts = [judge_scene(scene, seen) for scene, seen in zip(held_out, found, strict=False)]
    assert shares(verdicts)["object"] >= 0.9


def test_bare_backgrounds_and_noise_hold_no_object(judge):
    bare = [Scene((), Background("plain", (color,)), "even") for color in COLORS]
    bare += [
        Scene((), Background("stripes", ("white", "teal"), "diagonal", s / 20, 3), "even")
        for s in (3, 4, 5, 6)
    ]
    assert not any(judge.detect(_tensor(bare)))
    noise = torch.randint(0, 256, (8, 3, 64, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    assert not any(judge.detect(noise))


def test_blobs_of_color_hold_no_object(judge):
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    empty = 0
    for k, color in enumerate(((220, 30, 30), (30, 80, 220), (40, 170, 60), (250, 210, 20), (130, 40, 190))):
        for radius in (9.0, 16.0):
            inside = torch.exp(
                -((((rows - 30 - k) / radius) ** 2 + ((columns - 34) / (0.7 * radius)) ** 2) ** 2)
            )
            blob = 230 + inside * (torch.tensor(color).view(3, 1, 1) - 230)
            empty += not judge.detect(blob.to(torch.uint8)[None])[0]
    assert empty >= 9


def test_boxes_are_in_pixels_of_the_given_picture(judge):
    item = SceneObject("bucket", "blue", 0.6, 0.4, 0.5)
    scene = Scene((item,), Background("plain", ("white",)), "even")
    for size in (64, 48, 160):
        (found,) = judge.detect(_tensor([scene], size))
        assert [(d.name, d.color) for d in found] == [("bucket", "blue")]
        assert np.abs(np.array(found[0].box) / size - np.array(object_box(item))).max() < 0.06
    wide = torch.nn.functional.interpolate(_tensor([scene], 64).float(), (64, 128)).to(torch.uint8)
    ((seen,),) = judge.detect(wide)
    assert abs((seen.box[0] + seen.box[2]) / 2 - 0.6 * 128) < 6


def test_only_recolorable_objects_have_a_color_and_the_best_comes_first(judge, held_out):
    recolorable = {item.name for item in OBJECTS if item.recolorable}
    for found in judge.detect(_tensor(held_out[:60])):
        assert all((d.color in HUES) if d.name in recolorable else d.color is None for d in found)
        scores = [d.score for d in found]
        assert scores == sorted(scores, reverse=True)
        assert all(judge.header.threshold < score <= 1 for score in scores)


def test_batches_change_nothing(judge, held_out):
    images = _tensor(held_out[:7])
    one_by_one = [[(d.name, d.color) for d in judge.detect(image[None])[0]] for image in images]
    assert [[(d.name, d.color) for d in found] for found in judge.detect(images, batch=3)] == one_by_one
    assert judge.detect(images[:0]) == []


def test_the_weights_are_small_and_say_where_they_come_from(judge):
    assert WEIGHTS.stat().st_size <= 2_000_000
    with safe_open(WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert "tools/train_judge.py" in metadata["command"]
    assert "everything" in metadata["held_out_accuracy"]
    assert {t.dtype for t in load_file(WEIGHTS).values() if t.is_floating_point()} == {torch.float16}
    assert judge.header.names == tuple(item.name for item in OBJECTS)
    assert judge.header.colors == HUES
    assert judge.header.recolorable == {item.name for item in OBJECTS if item.recolorable}
    assert len(judge.fingerprint) == 64


def test_broken_or_missing_weights_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.safetensors"):
        load_judge(path=tmp_path / "none.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(UserError, match=r"junk\.safetensors"):
        load_judge(path=tmp_path / "junk.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not the weights of a judge"):
        load_judge(path=tmp_path / "other.safetensors")


def _seen(name, x, y, color=None, score=0.9):
    return Detection(name, (64 * x - 5, 64 * y - 5, 64 * x + 5, 64 * y + 5), score, color)


PAIR = Scene(
    (SceneObject("car", "red", 0.25, 0.5, 0.3), SceneObject("cat", None, 0.75, 0.55, 0.3)),
    Background("plain", ("white",)),
    "even",
)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ([_seen("car", 0.25, 0.5, "red"), _seen("cat", 0.75, 0.5)], Verdict(True, True, True, True)),
        ([_seen("car", 0.75, 0.5, "red"), _seen("cat", 0.25, 0.5)], Verdict(True, True, False, True)),
        ([_seen("car", 0.25, 0.5, "blue"), _seen("cat", 0.75, 0.5)], Verdict(True, True, True, False)),
        ([_seen("car", 0.25, 0.5, "red")], Verdict(False, False, False, True)),
        (
            [_seen("car", 0.25, 0.5, "red"), _seen("cat", 0.75, 0.5), _seen("cat", 0.5, 0.9)],
            Verdict(True, False, True, True),
        ),
        ([_seen("car", 0.25, 0.5, "red"), _seen("dog", 0.75, 0.5)], Verdict(False, False, False, True)),
    ],
)
def test_verdicts_say_what_is_right(found, verdict):
    assert judge_scene(PAIR, found) == verdict
    assert verdict.everything == (found and verdict == Verdict(True, True, True, True))


def test_shares_count_only_scenes_that_ask():
    verdicts = [
        Verdict(True, True, None, None),
        Verdict(True, False, False, True),
        Verdict(True, True, True, None),
    ]
    assert shares(verdicts) == {
        "object": 1.0,
        "count": pytest.approx(2 / 3),
        "position": 0.5,
        "color": 1.0,
        "everything": pytest.approx(2 / 3),
    }
