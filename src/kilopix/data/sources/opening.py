"""How a picture is opened, turned upright, converted to RGB and brought to size.

In: a path below a root, which may lead into a Parquet or tar file, or a picture file's bytes. Out: RGB
pictures; what cannot be read raises `BrokenImage`, which stages count and report instead of stopping.
"""

import io
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps, UnidentifiedImageError

from kilopix.data.sources.containers import BrokenImage, read_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What is opened whatever a file's ending says; none of them starts another program, as PostScript does."""
MIN_SIDE = 8
"""Pixels along the shorter side below which a picture shows nothing that could be learnt or described."""
MAX_PIXELS = 89_000_000
"""More than this (9,400 x 9,400) is taken for a decompression bomb; Pillow warns from 89.5 million on."""

RAW_ENDINGS = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw")
"""Cameras' raw files; most are TIFF files, of which only a small preview would be read."""
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_PNG_MARK = b"\x89PNG\r\n\x1a\n"
_PNG_NOTES = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")  # a colour profile, and texts: no pixels

# What Pillow raises for damaged files, besides its own errors.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def open_picture(root: Path, path: str, at_least: int | None = None) -> Image.Image:
    """Open one picture of a manifest or source: a file, a Parquet row or a tar member below `root`.

    The same as `decode` of its bytes; from any thread and process, in any order. Raises `BrokenImage`.
    """
    return decode(read_picture(root, path), at_least)


def read_picture(root: Path, path: str) -> bytes:
    """The bytes that `open_picture` decodes; raises `BrokenImage`."""
    _refuse_raw(path)
    return read_bytes(root, path)


def open_image(path: Path, at_least: int | None = None) -> Image.Image:
    """Open one picture file; the same as `decode` of its bytes."""
    _refuse_raw(path.name)
    return decode(read_bytes(path.parent, path.name), at_least)


def _refuse_raw(path: str) -> None:
    if PurePosixPath(path).suffix.lower() in RAW_ENDINGS:
        raise BrokenImage("a camera's raw file; develop it into a JPEG, PNG or TIFF file")


def decode(content: bytes, at_least: int | None = None) -> Image.Image:
    """Decode a picture, turn it upright and convert it to RGB.

    `at_least` lets the JPEG decoder scale down by itself, to no less than this many pixels on the
    shorter side. Transparent parts become white; 16-bit greyscale is scaled to 8 bits; colour profiles are
    not applied. HEIC needs the extra `heic`. Raises `BrokenImage` for what is damaged, larger than MAX_PIXELS
    or smaller than MIN_SIDE.
    """
    if not content:
        raise BrokenImage("an empty file")
    if content.startswith(b"version https://git-lfs"):
        raise BrokenImage("a pointer of Git LFS; `git lfs pull` brings the image")
    formats = FORMATS
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        if not _reads_heif():
            raise BrokenImage("an HEIC image, which needs `pip install 'kilopix[heic]'`")
        formats = (*FORMATS, "HEIF")
    try:
        return _decode(content, at_least, formats)
    except BrokenImage:
        pixels = _without_notes(content)
        if len(pixels) == len(content):
            raise
        return _decode(pixels, at_least, formats)


@cache
def _reads_heif() -> bool:
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return False
    register_heif_opener()
    return True


def _without_notes(content: bytes) -> bytes:
    """A PNG without its colour profile and texts, which Pillow refuses where they are large or damaged."""
    if not content.startswith(_PNG_MARK):
        return content
    kept, at = [_PNG_MARK], len(_PNG_MARK)
    while at + 8 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] not in _PNG_NOTES:
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _decode(content: bytes, at_least: int | None, formats: tuple[str, ...]) -> Image.Image:
    # Pillow warns of odd metadata in usable files, some of ImageNet's among them; what matters is checked.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            _check_size(*image.size)
            if at_least and image.format == "JPEG":
                image.draft("RGB", _draft_size(image.size, at_least))
            image.load()
            return _to_rgb(_upright(image))
    except UnidentifiedImageError:
        raise BrokenImage("not an image") from None
    except Image.DecompressionBombError:
        raise BrokenImage(f"more than {MAX_PIXELS:,} pixels: taken for a decompression bomb") from None
    except _DAMAGE as error:
        raise BrokenImage(str(error) or type(error).__name__) from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if min(width, height) < MIN_SIDE:
        raise BrokenImage(f"only {width} x {height} pixels; at least {MIN_SIDE} a side are needed")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF tag says; a picture whose EXIF data are damaged stays as it is."""
    try:
        ImageOps.exif_transpose(image, in_place=True)  # no copy of a picture that stands upright
        return image
    except _DAMAGE:
        return image


def _draft_size(size: tuple[int, int], at_least: int) -> tuple[int, int]:
    scale = at_least / min(size)
    return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image.load()
        values = image.convert("F")
        top = 65535.0 if image.mode.startswith("I") else 1.0
        return values.point(lambda v: v * (255.0 / top) + 0.0).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def square(image: Image.Image, side: int) -> Image.Image:
    """The centred square of a picture at `side` x `side` pixels, resized once."""
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    return window(image, (left, top, left + short, top + short), side)


def window(image: Image.Image, box: tuple[float, float, float, float], side: int) -> Image.Image:
    """A window of a picture, in its pixels, at `side` x `side` pixels, resized once."""
    if box[2] - box[0] < side:
        return image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return image.resize((side, side), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
