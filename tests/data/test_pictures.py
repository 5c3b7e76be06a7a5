import numpy as np
from PIL import Image

from kilopix.data.pictures import grid, save_png


def test_a_grid_holds_every_picture_in_its_place(tmp_path):
    colors = [(i * 20, 255 - i * 20, 128) for i in range(12)]
    images = [Image.new("RGB", (64, 64), color) for color in colors]
    sheet = grid(images, [f"a photo number {i} with a rather long text beneath it" for i in range(12)], 1)
    pixels = np.asarray(sheet)
    found = [
        tuple(pixels[8 + row * 170 + 64, 8 + column * 136 + 64]) for row in range(2) for column in range(6)
    ]
    assert found == colors
    save_png(sheet, tmp_path / "deep" / "grid.png")
    with Image.open(tmp_path / "deep" / "grid.png") as saved:
        assert saved.size == sheet.size


def test_pictures_of_one_prompt_share_a_row():
    sheet = grid([Image.new("RGB", (200, 200)) for _ in range(6)], ["a", "b"], 3)
    assert sheet.size == (8 + 3 * 208, 8 + 2 * 242)
