"""`kilopix caption` says which classes it took, so that a folder taken for a class that is none is seen."""

from pathlib import Path

import pytest
from PIL import Image

from kilopix.data.sources import tell_classes
from tiny import Cli


def images(root: Path, **folders: int) -> Path:
    for name, count in folders.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (i, 0, 0)).save(root / name / f"{i}.png")
    return root


def test_classes_are_told_with_their_images(tmp_path: Path, cli: Cli):
    done = cli("caption", images(tmp_path / "photos", cat=3, train=1), tmp_path / "captions.parquet")
    assert done.code == 0, done.err
    assert "2 classes: cat (3 images), train (1)." in done.out


def test_many_classes_are_counted_and_the_first_are_named():
    names = [f"class {i:04}" for i in range(1200)] + [""] * 3000
    assert tell_classes(names, shown=2) == (
        "1,200 classes: class 0000 (1 image), class 0001 (1), and 1,198 more; 3,000 of no class"
    )


def test_images_without_classes_say_nothing_of_them():
    assert tell_classes(["", ""]) == ""


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_a_folder_of_a_split_is_no_class(tmp_path: Path, cli: Cli, name: str):
    photos = images(tmp_path / "photos", **{name: 3})
    done = cli("caption", photos, tmp_path / "captions.parquet")
    assert done.code != 0
    assert f"give {photos / name}" in done.err
    assert "Traceback" not in done.err


def test_the_folders_of_two_splits_are_no_classes(tmp_path: Path, cli: Cli):
    photos = images(tmp_path / "photos", train=2, val=2)
    done = cli("caption", photos, tmp_path / "captions.parquet")
    assert done.code != 0
    assert f"give {photos / 'train'}" in done.err
