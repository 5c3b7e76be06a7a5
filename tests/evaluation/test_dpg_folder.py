from pathlib import Path

import pytest

from kilopix.evaluation.dpg_folder import Picture, crop_box, find_pictures
from kilopix.types import UserError

NAMES = ["b", "a"]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_grids_are_cut_in_the_published_order(tmp_path: Path):
    touch(tmp_path, "a.png", "b.jpg", "made.json", ".DS_Store")
    found = find_pictures(tmp_path, NAMES)
    assert [(one.item, one.file) for one in found] == [("b", "b.jpg")] * 4 + [("a", "a.png")] * 4
    boxes = [crop_box(one.place, (20, 12)) for one in found[:4] if one.place]
    assert boxes == [(0, 0, 10, 6), (10, 0, 20, 6), (0, 6, 10, 12), (10, 6, 20, 12)]
    assert [one.place for one in find_pictures(tmp_path, NAMES, per_prompt=2)] == [(0, 0), (1, 0)] * 2


def test_single_pictures_and_folders(tmp_path: Path):
    touch(tmp_path / "single", "a.png", "b.webp")
    assert find_pictures(tmp_path / "single", NAMES, "single") == [
        Picture("b", "b.webp"),
        Picture("a", "a.png"),
    ]
    touch(tmp_path / "folders", "a/0000.png", "a/0001.png", "b/0.png", "b/1.png")
    found = find_pictures(tmp_path / "folders", NAMES, "folders")
    assert [one.file for one in found] == ["b/0.png", "b/1.png", "a/0000.png", "a/0001.png"]


@pytest.mark.parametrize(
    ("files", "layout", "message"),
    [
        (["a.png"], "grid", "1 of 2 prompts of the questions have no picture: b. Nothing was scored"),
        (["a.png", "b.png", "c.png"], "grid", "c.png: belongs to no prompt"),
        (["a.png", "a.jpg", "b.png"], "grid", "are of the same prompt; keep one"),
        (["a.png", "b.png", "notes.txt"], "single", "notes.txt: out of place"),
        (["a.png", "b/0.png"], "single", "b: out of place"),
        (["a/0.png", "b.png"], "folders", "b.png: out of place"),
        (["a/0.png", "a/1.png", "b/0.png"], "folders", "b: 1 picture, where 2 are expected"),
        (["a/0.png", "b/0.txt"], "folders", "0.txt: not a picture"),
        (["a/0.png", "a/0.jpg", "b/0.png", "b/1.png"], "folders", "are the same picture of the prompt"),
    ],
)
def test_what_is_out_of_place_is_named(tmp_path: Path, files: list[str], layout, message: str):
    with pytest.raises(UserError, match=message):
        find_pictures(touch(tmp_path, *files), NAMES, layout)


def test_a_layout_has_only_so_many_pictures(tmp_path: Path):
    touch(tmp_path, "a.png", "b.png")
    for layout, count in (("grid", 5), ("single", 2)):
        with pytest.raises(UserError, match=f"has no {count} pictures a prompt"):
            find_pictures(tmp_path, NAMES, layout, count)  # pyright: ignore
