"""Where pictures come from, and how one is opened.

In: a folder with one sub-folder per class. Out: items in a fixed order, and RGB pictures; a file that
cannot be read raises `BrokenImage`, which stages count and report instead of stopping.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from kilopix.types import UserError

CLASS_TABLE = "classes.txt"
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class BrokenImage(Exception):
    """A file that is no readable picture; the message says why."""


@dataclass(frozen=True)
class SourceItem:
    """One file of a source: its path below the root, which is its id, and the name of its class."""

    path: str
    class_name: str


def class_folders(root: Path) -> list[SourceItem]:
    """All files below the class folders of `root`, sorted by path.

    Every file is listed, whatever its ending, so that a file that is no picture is reported rather than
    overlooked; hidden files and side files at the top (such as scenes.jsonl) are not items. A folder's
    name is its class, with underscores as spaces, unless a table `classes.txt` gives another.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images.")
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise UserError(
            f"{root}: no class folders in it; put the images of each class in a folder of its name."
        )
    names = _class_names(root, [folder.name for folder in folders])
    items = [
        SourceItem(str(file.relative_to(root)), names[folder.name])
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    if not items:
        raise UserError(f"{root}: its class folders are empty.")
    return items


def loose_images(root: Path) -> list[str]:
    """Images that lie beside the class folders instead of in one, so that a stage can report them."""
    return sorted(f.name for f in root.iterdir() if f.is_file() and f.suffix.lower() in IMAGE_ENDINGS)


def _class_names(root: Path, folders: list[str]) -> dict[str, str]:
    """The class name of every folder: from `classes.txt` if it is there, else from the folder's own name."""
    table = _read_names(root / CLASS_TABLE)
    names = {folder: table.get(folder, class_name_of(folder)) for folder in folders}
    for folder, name in names.items():
        if re.fullmatch(r"n\d{8}", name):
            raise UserError(
                f"{root / folder}: named by a WordNet id, which says nothing in a caption. Put a file "
                f"{CLASS_TABLE} into {root}, with a line '{folder} NAME' for every folder, as ImageNet's "
                "LOC_synset_mapping.txt has them."
            )
        if not name:
            raise UserError(f"{root / folder}: gives no class name; rename the folder.")
    return names


def _read_names(path: Path) -> dict[str, str]:
    """Lines of a folder and its class name; of several names with commas between, the first is taken."""
    if not path.is_file():
        return {}
    lines = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
    wrong = [i for i, line in enumerate(lines, 1) if len(line) < 2]
    if wrong:
        raise UserError(f"{path}: line {wrong[0]} is not a folder and its class name.")
    return {folder: names.split(",")[0].strip() for folder, names in lines}


def class_name_of(folder: str) -> str:
    """The class name that a folder's name stands for."""
    return " ".join(folder.replace("_", " ").split())


def open_image(path: Path, at_least: int | None = None) -> Image.Image:
    """Open, decode, turn upright and convert one picture to RGB.

    `at_least` lets the JPEG decoder scale down by itself, to no less than this many pixels on the
    shorter side. Transparent parts become white; 16-bit greyscale is scaled to 8 bits.
    """
    try:
        with Image.open(path) as image:
            if at_least and image.format == "JPEG":
                image.draft("RGB", _draft_size(image.size, at_least))
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise BrokenImage("not an image") from None
    except FileNotFoundError:
        raise BrokenImage("no such file") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow raises all of these, SyntaxError included, for files that are damaged.
        raise BrokenImage(str(error) or type(error).__name__) from None


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
    return image.convert("RGB")


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
