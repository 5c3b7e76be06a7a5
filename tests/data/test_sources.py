import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kilopix.data.sources import (
    BrokenImage,
    class_folders,
    class_name_of,
    decode,
    open_image,
    square,
)
from kilopix.errors import UserError


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """Red on the left, green on the right, a blue square in the top left corner."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = (255, 0, 0)
    pixels[:, width // 2 :] = (0, 255, 0)
    pixels[: height // 5, : width // 5] = (0, 0, 255)
    return Image.fromarray(pixels)


def near(
    image: Image.Image, where: tuple[int, int], color: tuple[int, int, int], tolerance: int = 30
) -> bool:
    found = np.asarray(image)[where[1], where[0]].astype(int)
    return bool(np.abs(found - np.array(color)).max() <= tolerance)


def test_files_of_all_endings_are_listed_and_side_files_are_not(tmp_path: Path):
    for name in ("b_fox/1.jpg", "b_fox/sub/2.PNG", "b_fox/3.txt", "a/notes.md", "a/.hidden", "scenes.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source = class_folders(tmp_path)
    found = [(item.path, item.class_name) for item in source.items]
    assert found == [("a/notes.md", "a"), ("b_fox/1.jpg", "b fox"), ("b_fox/sub/2.PNG", "b fox")]
    assert source.unused == [("b_fox/3.txt", "a text, and no image of its name is beside it")]
    assert source.hidden == 1
    assert source.seen == 4
    assert class_name_of("great__white_shark") == "great white shark"


def test_a_table_names_the_folders_and_unknown_wordnet_ids_are_refused(tmp_path: Path):
    for folder in ("n00000001", "n02119789"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").touch()
    with pytest.raises(UserError, match=r"n00000001: named by a WordNet id.*classes\.txt"):
        class_folders(tmp_path)
    (tmp_path / "classes.txt").write_text("n00000001 tench, Tinca tinca\nn02119789 small fox\n\n")
    assert [item.class_name for item in class_folders(tmp_path).items] == ["tench", "small fox"]
    (tmp_path / "classes.txt").write_text("n00000001 tench\nn02119789\n")
    with pytest.raises(UserError, match=r"classes\.txt: line 2"):
        class_folders(tmp_path)


def test_hidden_folders_are_no_items_and_loose_images_are_found(tmp_path: Path):
    for name in ("fox/1.jpg", "fox/.checkpoints/2.jpg", "loose.PNG", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source = class_folders(tmp_path)
    assert [item.path for item in source.items] == ["fox/1.jpg"]
    assert source.unused == [(name, "not in a class folder") for name in ("loose.PNG", "notes.txt")]
    assert source.hidden == 1


def test_a_folder_without_classes_is_a_clear_error(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        class_folders(tmp_path / "none")
    with pytest.raises(UserError, match="no class folders"):
        class_folders(tmp_path)
    (tmp_path / "fox").mkdir()
    with pytest.raises(UserError, match="are empty"):
        class_folders(tmp_path)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp"])
def test_formats_open_as_rgb(tmp_path: Path, ending: str):
    picture().save(tmp_path / f"a.{ending}")
    image = open_image(tmp_path / f"a.{ending}")
    assert image.mode == "RGB"
    assert image.size == (60, 40)
    assert near(image, (45, 20), (0, 255, 0))


def test_alpha_palette_grey_cmyk_and_16_bit(tmp_path: Path):
    clear = picture().convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    clear.save(tmp_path / "clear.png")
    assert near(open_image(tmp_path / "clear.png"), (45, 20), (255, 255, 255), 0)
    picture().quantize(8).save(tmp_path / "palette.png")
    assert near(open_image(tmp_path / "palette.png"), (45, 20), (0, 255, 0))
    picture().convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert near(open_image(tmp_path / "cmyk.jpg"), (45, 20), (0, 255, 0), 60)
    picture().convert("L").save(tmp_path / "grey.png")
    assert near(open_image(tmp_path / "grey.png"), (45, 20), (150, 150, 150), 5)
    Image.fromarray(np.full((9, 9), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert near(open_image(tmp_path / "deep.png"), (4, 4), (128, 128, 128), 1)


def test_exif_rotation_is_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: show it turned by 90 degrees clockwise
    picture().save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image = open_image(tmp_path / "turned.jpg")
    assert image.size == (40, 60)
    assert near(image, (20, 10), (255, 0, 0))
    assert near(image, (38, 2), (0, 0, 255), 60)


def test_broken_files_say_why(tmp_path: Path):
    picture(400, 300).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    broken = {
        "cut.jpg": whole[: len(whole) // 2],
        "text.jpg": b"this is no picture",
        "empty.png": b"",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BrokenImage, match=r"\w"):
            open_image(tmp_path / name)
    with pytest.raises(BrokenImage, match="no such file"):
        open_image(tmp_path / "none.png")


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises any size, with hardly any data behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999)))


@pytest.mark.parametrize("side", [9_500, 12_000, 60_000])
def test_a_decompression_bomb_is_refused(side: int):
    with pytest.raises(BrokenImage, match="decompression bomb"):
        decode(png_of_size(side, side))


def test_pictures_of_a_pixel_are_refused_with_their_size():
    for size in ((1, 1), (500, 1), (7, 300)):
        with pytest.raises(BrokenImage, match=f"only {size[0]} x {size[1]} pixels"):
            decode(png_of_size(*size))


def test_postscript_is_not_run():
    with pytest.raises(BrokenImage, match="not an image"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n%%EndComments\nshowpage\n")


def test_damaged_exif_data_leave_the_picture_usable(tmp_path: Path):
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker of the camera" * 3
    picture().save(tmp_path / "a.jpg", exif=exif, quality=95)
    content = (tmp_path / "a.jpg").read_bytes()
    at = content.index(b"Exif\0\0") + 6
    damaged = content[: at + 4] + b"\xff\xff\xff\x7f" + content[at + 8 :]
    assert decode(damaged).size == (60, 40)


def test_the_jpeg_decoder_scales_but_not_below_what_is_asked(tmp_path: Path):
    picture(1600, 1200).save(tmp_path / "large.jpg")
    image = open_image(tmp_path / "large.jpg", at_least=128)
    assert 128 <= min(image.size) < 1200


def test_square_takes_the_centre(tmp_path: Path):
    wide = Image.new("RGB", (300, 100), "black")
    wide.paste("white", (100, 0, 200, 100))
    out = np.asarray(square(wide, 50))
    assert out.shape == (50, 50, 3)
    assert out[:, 3:-3].min() > 250
    assert square(Image.new("RGB", (1, 1)), 32).size == (32, 32)


def with_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    check = struct.pack(">I", zlib.crc32(kind + data))
    return content[:33] + struct.pack(">I", len(data)) + kind + data + check + content[33:]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"iCCP", b"big\0\0" + zlib.compress(bytes(range(256)) * 8000)),
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        (b"zTXt", b"Comment\0\0damaged"),
    ],
)
def test_a_png_whose_notes_are_large_or_damaged_is_read(tmp_path: Path, kind: bytes, data: bytes):
    exif = Image.Exif()
    exif[274] = 6
    picture().save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    image = decode(with_chunk(content, kind, data))
    assert np.array_equal(np.asarray(image), np.asarray(decode(content)))
    assert image.size == (40, 60)  # turned as its EXIF data say, which are no note
    with pytest.raises(BrokenImage):
        decode(with_chunk(content, kind, data)[:-40])


def test_cameras_raw_files_are_refused_by_name(tmp_path: Path):
    picture().save(tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(tmp_path / "a.NEF")
    with pytest.raises(BrokenImage, match="raw file; develop it"):
        open_image(tmp_path / "a.NEF")


def test_heic_is_read_with_its_extra_and_named_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from kilopix.data.sources import opening

    heif = pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
    heif.from_pillow(picture()).save(tmp_path / "a.heic", quality=95)
    image = open_image(tmp_path / "a.heic")
    assert image.mode == "RGB"
    assert near(image, (45, 20), (0, 255, 0))
    monkeypatch.setattr(opening, "_reads_heif", lambda: False)
    with pytest.raises(BrokenImage, match=r"an HEIC image, which needs .*kilopix\[heic\]"):
        open_image(tmp_path / "a.heic")
