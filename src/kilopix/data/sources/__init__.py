"""Where pictures come from: folders and containers of pictures, each opened in the same way."""

from kilopix.data.sources.containers import BrokenImage, read_bytes, reference, split_reference
from kilopix.data.sources.folders import (
    SourceItem,
    class_folders,
    class_name_of,
    loose_images,
)
from kilopix.data.sources.opening import decode, open_image, open_picture, square, window

__all__ = [
    "BrokenImage",
    "SourceItem",
    "class_folders",
    "class_name_of",
    "decode",
    "loose_images",
    "open_image",
    "open_picture",
    "read_bytes",
    "reference",
    "split_reference",
    "square",
    "window",
]
