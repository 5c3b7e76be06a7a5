"""Pictures as arrays: opened at no more pixels than are needed, cut and resized once.

In: paths below a root, which may lead into a Parquet or tar file. Out: uint8 arrays `side x side x 4`: red,
green, blue, and a byte that means nothing. So Pillow holds its pictures and encodes JPEGs; to pack three
bytes, and unpack them, takes longer than to resize four. The resizing is torch's bicubic one with
antialiasing, which works on bytes with the weights that Pillow uses, several times as fast.
"""

from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from kilopix.data.sources import open_picture

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def read_square(root: Path, path: str, side: int, box: Box = WHOLE) -> np.ndarray:
    """The window `box` (in fractions of the centred square) of a picture, `side x side x 4` in uint8.

    A JPEG is decoded at the smallest size that its decoder offers from which nothing has to be enlarged.
    Raises `BrokenImage` if the file is no readable picture.
    """
    share = box[2] - box[0]
    return fit(open_picture(root, path, ceil(side / share)), side, box)


def fit(image: Image.Image, side: int, box: Box = WHOLE) -> np.ndarray:
    """The window `box` of the centred square of an RGB picture, resized once to `side x side x 4`."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    part = max(1, round((box[2] - box[0]) * short))
    x0, y0 = (min(round(v * short), short - part) for v in box[:2])
    x0, y0 = left + x0, top + y0
    pixels = _whole(image)[y0 : y0 + part, x0 : x0 + part]
    return np.array(pixels) if part == side else _resized(np.array(pixels), side)


def _whole(image: Image.Image) -> np.ndarray:
    """All pixels of an RGB picture, not copied but where Pillow holds a large one in pieces."""
    import pyarrow as pa

    try:
        flat = pa.array(image).flatten().to_numpy()
    except ValueError:
        return np.asarray(image.convert("RGBX"))
    return flat.reshape(image.height, image.width, 4)


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    import torch
    from torch.nn.functional import interpolate

    # In torch's channels-last order, which is how the bytes lie; its fast path is for that order, and
    # knows it by the strides, for which NumPy's own new axis would have 0.
    tensor = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
    out = interpolate(tensor, size=(side, side), mode="bicubic", antialias=True)
    return np.ascontiguousarray(out.permute(0, 2, 3, 1)[0].numpy())


def save_jpeg(pixels: np.ndarray, file: Path, quality: int) -> None:
    """Write pixels `H W 4` as a JPEG that keeps all of its colours' pixels."""
    image = Image.frombuffer("RGBX", pixels.shape[1::-1], pixels, "raw", "RGBX", 0, 1)
    image.save(file, "JPEG", quality=quality, subsampling=0)
