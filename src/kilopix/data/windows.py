"""Which part of its whole picture an encoded square shows, as a network is told it.

In: rows of a manifest, with the sizes of the pictures that they are made from. Out: windows (x0, y0, x1, y1)
in fractions of the whole. With `square`, the whole is the centred square, so only Crop rows show less. With
`picture`, it is the picture as it was taken: of one that is no square, the encoded square is a window too.
"""

from collections.abc import Sequence
from typing import Literal

from kilopix.data.manifest import Row
from kilopix.data.pixels import WHOLE, Box
from kilopix.data.rows import Rows

Windows = Literal["square", "picture"]


def windows_of(rows: Sequence[Row], windows: Windows, plain: Rows) -> list[Box]:
    """The window of every row; `plain` are the pictures that augmented rows are made from."""
    inner = [row.box if row.kind == "crop" else WHOLE for row in rows]
    if windows == "square":
        return inner
    sizes = plain.sizes([row.base or row.path for row in rows])
    return [within(centred_square(*size), box) for size, box in zip(sizes, inner, strict=True)]


def centred_square(width: int, height: int) -> Box:
    """The centred square of a picture, in fractions of its sides; the whole if its size is not known."""
    if not width or not height:
        return WHOLE
    short = min(width, height)
    across, down = short / width, short / height
    return ((1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2)


def within(outer: Box, inner: Box) -> Box:
    """A window of a window, in fractions of the whole."""
    width, height = outer[2] - outer[0], outer[3] - outer[1]
    x0, y0, x1, y1 = inner
    return (outer[0] + x0 * width, outer[1] + y0 * height, outer[0] + x1 * width, outer[1] + y1 * height)
