import hashlib
import json
import time

import numpy as np
import pytest

from kilopix.data.world.backgrounds import COLORS, KINDS, Background, draw_background, vanishing_share
from kilopix.data.world.composed import LARGEST_OVERLAP, composed_scene, composed_task, overlap
from kilopix.data.world.lights import LIGHTS
from kilopix.data.world.objects import HUES, OBJECTS, held_out_colors
from kilopix.data.world.render import object_box, render
from kilopix.data.world.scenes import (
    ONE_OBJECT_SIZES,
    Scene,
    SceneObject,
    load_scenes,
    one_object_scene,
    scene_from_json,
    scene_to_json,
)
from kilopix.types import UserError

PLAIN = Background("plain", ("white",))


def _singles(count, split="train"):
    return [one_object_scene(OBJECTS[k % 64].name, 5, split, f"x_{k:05d}") for k in range(count)]


def _seen_box(scene: Scene, size: int):
    """The box of what differs from the bare background."""
    bare = render(Scene((), scene.background, scene.light), size).astype(int)
    changed = np.abs(render(scene, size).astype(int) - bare).sum(-1) > 40
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / size


def test_the_same_seed_split_and_id_give_the_same_picture_and_others_do_not():
    scene = one_object_scene("fox", 1, "train", "fox_00001")
    assert scene == one_object_scene("fox", 1, "train", "fox_00001")
    for other in ((2, "train", "fox_00001"), (1, "val", "fox_00001"), (1, "train", "fox_00002")):
        assert one_object_scene("fox", *other) != scene
    picture = render(scene, 64)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert picture.tobytes() == render(scene, 64).tobytes()


def test_scenes_do_not_change_between_versions():
    digest = hashlib.sha256(repr([*_singles(200), composed_scene(5, 7)]).encode()).hexdigest()
    assert digest[:16] == "103cd46cc161a736"


def test_one_object_scenes_are_within_their_ranges():
    for scene in _singles(1500):
        item = scene.object
        assert ONE_OBJECT_SIZES[0] <= item.size <= ONE_OBJECT_SIZES[1]
        assert abs(item.tilt) <= 20
        assert scene.light in LIGHTS
        assert scene.background.kind in KINDS
        x1, y1, x2, y2 = object_box(item)
        inside = (min(x2, 1) - max(x1, 0)) * (min(y2, 1) - max(y1, 0))
        assert inside / ((x2 - x1) * (y2 - y1)) > 0.6
    assert len({scene.light for scene in _singles(300)}) == len(LIGHTS)
    assert len({scene.background.kind for scene in _singles(300)}) == len(KINDS)
    assert {c for scene in _singles(1500) for c in scene.background.colors} == set(COLORS)


@pytest.mark.parametrize("split", ["train", "val"])
def test_held_out_pairs_are_never_drawn(split):
    for scene in _singles(3000, split):
        assert scene.object.color not in held_out_colors(scene.object.name)


def test_composed_scenes_draw_every_hue_of_every_recolorable_object():
    indices = [k for k in range(4800) if composed_task(k) in ("color", "attribution")]
    seen = {(item.name, item.color) for k in indices for item in composed_scene(5, k).objects}
    wanted = {(item.name, hue) for item in OBJECTS if item.recolorable for hue in HUES}
    assert len(wanted - seen) < 3


@pytest.mark.parametrize("name", [item.name for item in OBJECTS[::3]])
@pytest.mark.parametrize(("tilt", "mirror"), [(0.0, False), (17.0, False), (-17.0, True)])
def test_the_box_is_where_the_object_is_drawn(name, tilt, mirror):
    color = "red" if next(item for item in OBJECTS if item.name == name).recolorable else None
    ground = min(COLORS, key=lambda ground: vanishing_share(name, color, ground))
    item = SceneObject(name, color, 0.52, 0.47, 0.6, tilt, mirror)
    scene = Scene((item,), Background("plain", (ground,)), "even")
    assert np.abs(_seen_box(scene, 128) - np.array(object_box(item))).max() < 0.02


def test_positive_tilt_is_anticlockwise_and_mirror_is_left_right():
    upright = render(Scene((SceneObject("guitar", "blue", 0.5, 0.5, 0.8),), PLAIN, "even"), 64)
    mirrored = render(Scene((SceneObject("guitar", "blue", 0.5, 0.5, 0.8, mirror=True),), PLAIN, "even"), 64)
    assert np.abs(upright[:, ::-1].astype(int) - mirrored).mean() < 2
    turned = render(Scene((SceneObject("bell", "red", 0.5, 0.5, 0.8, 20.0),), PLAIN, "even"), 64)
    top_row = next(row for row in turned if (row < 200).any())
    assert np.flatnonzero((top_row < 200).any(-1)).mean() < 30


def test_objects_stand_out_from_their_background():
    for scene in _singles(400):
        item = scene.object
        for ground in scene.background.colors:
            assert vanishing_share(item.name, item.color, ground) < 0.3


def test_lights_change_the_picture_but_mildly():
    item = SceneObject("car", "red", 0.5, 0.5, 0.7)
    even = render(Scene((item,), Background("plain", ("grey",)), "even"), 64).astype(int)
    for light in set(LIGHTS) - {"even"}:
        lit = render(Scene((item,), Background("plain", ("grey",)), light), 64).astype(int)
        assert 4 < np.abs(lit - even).mean() < 50, light
    warm = render(Scene((), PLAIN, "warm from the left"), 64).astype(int)
    assert warm[:, 0, 0].mean() > warm[:, -1, 0].mean() + 20


@pytest.mark.parametrize("kind", KINDS)
def test_backgrounds_show_both_their_colors(kind):
    colors = ("white",) if kind == "plain" else ("white", "black")
    direction = {"gradient": "down", "stripes": "vertical"}.get(kind, "")
    picture = draw_background(Background(kind, colors, direction, 0.25, 3), 128)
    assert picture.max() > 225
    assert kind == "plain" or picture.min() < 60


def test_composed_scenes_match_their_task_and_overlap_little():
    for index in range(600):
        scene, task = composed_scene(9, index), composed_task(index)
        names = {item.name for item in scene.objects}
        counts = {"single": {1}, "color": {1}, "counting": {2, 3, 4}}.get(task, {2})
        assert len(scene.objects) in counts
        assert len(names) == (1 if task in ("single", "color", "counting") else 2)
        boxes = [object_box(item) for item in scene.objects]
        assert all(overlap(a, b) < LARGEST_OVERLAP for i, a in enumerate(boxes) for b in boxes[:i])
        low, high = {1: (0.3, 0.9), 2: (0.22, 0.6)}.get(len(boxes), (0.22, 0.42))
        assert all(low <= item.size <= high for item in scene.objects)
        if task == "attribution":
            assert len({item.color for item in scene.objects} - {None}) == 2
    assert composed_scene(9, 3) == composed_scene(9, 3)
    assert composed_scene(9, 3) != composed_scene(10, 3)


def test_scenes_survive_json(tmp_path):
    scenes = {f"a/{k}.jpg": scene for k, scene in enumerate(_singles(100))}
    lines = [json.dumps(scene_to_json(scene, file)) for file, scene in scenes.items()]
    (tmp_path / "scenes.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert load_scenes(tmp_path) == scenes
    assert scene_from_json(json.loads(lines[0])) == scenes["a/0.jpg"]


def test_broken_or_missing_scene_lists_are_named(tmp_path):
    with pytest.raises(UserError, match=r"scenes\.jsonl: no such file"):
        load_scenes(tmp_path)
    (tmp_path / "scenes.jsonl").write_text('{"file": "a.jpg"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 1"):
        load_scenes(tmp_path)


def test_rendering_is_quick():
    scenes = _singles(200)
    for scene in scenes:
        render(scene, 64)
    start = time.process_time()
    for scene in scenes:
        render(scene, 64)
    # About 1 ms; the bar leaves room for slow machines.
    assert (time.process_time() - start) / len(scenes) < 0.006
