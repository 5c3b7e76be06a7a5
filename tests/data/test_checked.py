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

    expect(r"6 of the pictures are not of 8x8 pixels: 0\.png \(10x8\).* and 1 more\. Nothing", size=(8, 8))
    (pictures / "3.png").write_bytes((pictures / "1.png").read_bytes())
    expect(r"1 of the pictures are the same as others; .*: 3\.png \(as 1\.png\)")
    assert check_pictures(pictures, FILES, allow_doubled=True).size == (10, 8)
    Image.new("RGB", (8, 8)).save(pictures / "3.png")
    expect(r"1 of the pictures are not of 10x8 pixels: 3\.png \(8x8\)")
    whole = (pictures / "4.png").read_bytes()
    (pictures / "4.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "5.png").unlink()
    expect(r"2 of the pictures cannot be read: 4\.png \(.*\), 5\.png \(no such file\)")
