from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kilopix.data.pixels import WHOLE, fit, read_square, save_jpeg
from kilopix.data.sources import BrokenImage


def picture(width: int, height: int, grain: int = 9) -> Image.Image:
    cells = height // grain + 1, width // grain + 1, 3
    noise = np.random.default_rng(0).integers(0, 256, cells, np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("size", "side"), [((500, 375), 256), ((90, 120), 256), ((64, 64), 64), ((37, 301), 32)]
)
def test_the_centred_square_is_resized_as_pillow_does(size: tuple[int, int], side: int):
    image = picture(*size)
    short = min(size)
    left, top = (size[0] - short) // 2, (size[1] - short) // 2
    expected = image.crop((left, top, left + short, top + short)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    out = fit(image, side)
    assert out.shape == (side, side, 4)
    assert out.dtype == np.uint8
    assert np.abs(out[..., :3].astype(int) - np.asarray(expected)).max() <= 2


def test_pictures_that_pillow_holds_in_pieces_are_resized_too():
    image = picture(2600, 2500, 300)
    left = (2600 - 2500) // 2
    expected = image.crop((left, 0, left + 2500, 2500)).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(fit(image, 64)[..., :3].astype(int) - np.asarray(expected)).max() <= 2


def test_a_window_shows_its_part():
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (150, 50, 200, 100))  # the bottom right quarter of the centred square
    assert fit(image, 32, (0.5, 0.5, 1.0, 1.0))[..., :3].min() == 255
    assert fit(image, 32, (0.0, 0.0, 0.5, 0.5))[..., :3].max() == 0


def test_jpegs_are_decoded_small_where_that_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from kilopix.data import pixels

    picture(800, 600, 200).save(tmp_path / "a.jpg", quality=95)
    seen = []
    whole = pixels.fit
    monkeypatch.setattr(pixels, "fit", lambda image, *rest: seen.append(image.size) or whole(image, *rest))
    for side, box in ((256, WHOLE), (64, WHOLE), (64, (0.25, 0.25, 0.75, 0.75))):
        read_square(tmp_path, "a.jpg", side, box)
    assert seen == [(400, 300), (100, 75), (200, 150)]
    small, large = read_square(tmp_path, "a.jpg", 64), whole(Image.open(tmp_path / "a.jpg"), 64)
    assert np.abs(small.astype(int) - large)[..., :3].mean() < 4


def test_a_broken_file_says_so(tmp_path: Path):
    (tmp_path / "a.jpg").write_text("no picture", encoding="utf-8")
    with pytest.raises(BrokenImage, match="not an image"):
        read_square(tmp_path, "a.jpg", 32)


def test_a_jpeg_is_the_one_that_pillow_writes_of_three_colours(tmp_path: Path):
    pixels = fit(picture(90, 64), 64)
    save_jpeg(pixels, tmp_path / "a.jpg", 95)
    Image.fromarray(pixels[..., :3].copy()).save(tmp_path / "b.jpg", quality=95, subsampling=0)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
