"""What a source is: a root, and below it the pictures in a fixed order, with what is known of each.

In: files of a source. Out: `Source`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from kilopix.data.sources.classes import LabelNames, class_of_file
from kilopix.data.sources.selection import Tally
from kilopix.values import BadValue, label_of, texts_of

IMAGE_ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
IMAGE_ENDINGS |= {".jp2", ".j2k", ".ppm", ".pgm", ".heic", ".heif"}


@dataclass(frozen=True)
class SourceItem:
    """One picture: its path below the root, which is its id, the name of its class, and its captions.

    Class name and captions are empty where the source does not say them; an item with an `error` cannot be
    used, whatever its picture is.
    """

    path: str
    class_name: str = ""
    captions: tuple[str, ...] = ()
    error: str = ""

    @property
    def caption(self) -> str:
        """The first caption, or an empty one."""
        return self.captions[0] if self.captions else ""


def describe(path: str, file_name: str, captions: object, label: object, names: LabelNames) -> SourceItem:
    """The item of a picture of which a source has these values; every kind of source goes through here.

    A label in words is the class's name; else the name of a file as ImageNet has them says it; else a number
    is looked up in `names`. What is no caption or no label makes an item with an error.
    """
    try:
        texts, text = texts_of(captions), label_of(label)
    except BadValue as error:
        return SourceItem(path, error=str(error))
    return SourceItem(path, names.look_up(text, class_of_file(file_name)), texts)


@dataclass(frozen=True)
class Source:
    """All pictures of a source; `kind` is for people, `unused` names files that are no part of it and why.

    Where only some are wanted, `tally` counts them. `hidden` counts files whose names begin with a dot, which
    are no part of any source; `columns` are what a table or Parquet files have, for messages; `notes` are
    lines that a user should read.
    """

    root: Path
    kind: str
    items: list[SourceItem]
    unused: list[tuple[str, str]] = field(default_factory=list)
    tally: Tally | None = None
    hidden: int = 0
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def seen(self) -> int:
        """How many pictures and other files were looked at: taken, not selected, and passed over."""
        tally = self.tally
        return len(self.items) + len(self.unused) + (tally.unwanted + tally.without if tally else 0)
