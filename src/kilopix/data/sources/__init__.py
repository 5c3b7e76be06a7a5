"""Where pictures come from: folders and containers of pictures, each opened in the same way."""

from kilopix.data.sources.classes import class_name_of, synonyms, tell_classes
from kilopix.data.sources.containers import BrokenImage, read_bytes, reference, split_reference
from kilopix.data.sources.folders import class_folders
from kilopix.data.sources.items import Source, SourceItem
from kilopix.data.sources.listing import list_source
from kilopix.data.sources.opening import decode, open_image, open_picture, read_picture, square, window
from kilopix.data.sources.selection import EVERYTHING, Selection
from kilopix.data.sources.tars import ReleaseArrays, release_arrays

__all__ = [
    "EVERYTHING",
    "BrokenImage",
    "ReleaseArrays",
    "Selection",
    "Source",
    "SourceItem",
    "class_folders",
    "class_name_of",
    "decode",
    "list_source",
    "open_image",
    "open_picture",
    "read_bytes",
    "read_picture",
    "reference",
    "release_arrays",
    "split_reference",
    "square",
    "synonyms",
    "tell_classes",
    "window",
]
