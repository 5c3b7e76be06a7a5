from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kilopix.data.checked import check_pictures
from kilopix.runtime import sha256_of_file
from kilopix.types import UserError

FILES = [f"{i}.png" for i in range(6)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for file in FILES:
        Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).save(tmp_path / file)
    return tmp_path


def test_whole_sets_pass(pictures: Path):
    checked = check_pictures(pictures, FILES)
    assert checked.size == (10, 8)
    assert checked.sha256 == tuple(sha256_of_file(pictures / file) for file in FILES)
    assert check_pictures(pictures, FILES, (10, 8)) == checked


def test_every_kind_of_fault_is_named(pictures: Path):
    def expect(message: str, **options) -> None:
        with pytest.raises(UserError, match=message):
            check_pictures(pictures, FILES, **options)

    expect(
        r"6 of the pictures are not of 8x8 pixels: 0\.png \(10x8\).* and 1 more\. Nothing",
        size=(8, 8),
    )
    (pictures / "3.png").write_bytes((pictures / "1.png").read_bytes())
    expect(r"1 of the pictures are the same as others; .*: 3\.png \(as 1\.png\)")
    assert check_pictures(pictures, FILES, allow_doubled=True).size == (10, 8)
    Image.new("RGB", (8, 8)).save(pictures / "3.png")
    expect(r"1 of the pictures are not of 10x8 pixels: 3\.png \(8x8\)")
    whole = (pictures / "4.png").read_bytes()
    (pictures / "4.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "5.png").unlink()
    expect(r"2 of the pictures cannot be read: 4\.png \(.*\), 5\.png \(no such file\)")


def test_heads_are_enough_for_sizes(pictures: Path):
    assert check_pictures(pictures, FILES, heads_only=True) == check_pictures(pictures, FILES)
    turned = Image.new("RGB", (8, 10))
    turned.getexif()[0x0112] = 6
    turned.save(pictures / "3.png", exif=turned.getexif())
    for heads_only in (True, False):
        assert check_pictures(pictures, FILES, (10, 8), heads_only=heads_only).size == (10, 8)
    (pictures / "4.png").write_bytes(b"?")
    with pytest.raises(UserError, match=r"1 of the pictures cannot be read: 4\.png"):
        check_pictures(pictures, FILES, heads_only=True)


def test_any_size_may_pass(pictures: Path):
    Image.new("RGB", (8, 8)).save(pictures / "3.png")
    assert check_pictures(pictures, FILES, "any").size == (10, 8)
    with pytest.raises(UserError, match="pixels, so cut them"):
        check_pictures(pictures, FILES, other_size=", so cut them")
