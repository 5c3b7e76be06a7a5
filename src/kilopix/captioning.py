"""Rows of pictures to rows with captions, part by part: by a rule, or by a captioner.

In: rows without captions. Out: tables of the same rows, each with its caption and the size of its picture,
or with the reason why it cannot be used. `kilopix caption` hands the parts to workers.
"""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kilopix.data.captions import aio
from kilopix.data.cleaning import Cleaning, clean
from kilopix.data.manifest import Row, to_table
from kilopix.data.sources import BrokenImage, open_picture
from kilopix.data.world.captions import short_caption, structured_caption
from kilopix.data.world.scenes import Scene
from kilopix.pretrained.captioner import Captioner, CaptionerConfig, load_captioner
from kilopix.runtime import pick_device, seed_from, sha256_of_text

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

Rule = Literal["aio", "structured", "given"]
"""Captions without a model: from the class name, from scenes.jsonl, or as the source has them."""

NO_CAPTION = "no caption: "
"""How the error of a picture begins that is whole, but that the captioner could not describe."""


def with_what_made_it(
    rows: list[Row], contents: list[str], captioner: Rule | CaptionerConfig, scenes: dict[str, Scene] | None
) -> list[Row]:
    """The rows with a hash of all that their captions are made from, of which `contents` are the images'.

    A model is shown the image alone; a rule goes by what the source says of it.
    """

    def hashed(row: Row, content: str) -> str:
        if not content or not isinstance(captioner, str):
            return content
        told: tuple[object, ...] = (row.class_name,)
        if captioner == "given":
            told += (row.caption, row.short, row.more)
        elif captioner == "structured":
            told += (row.path, (scenes or {}).get(row.path))
        return sha256_of_text(repr((content, *told)))

    return [replace(row, made_from=hashed(row, content)) for row, content in zip(rows, contents, strict=True)]


def keep_caption(row: Row, before: Row) -> Row:
    """A row with the caption that it had before, and with the short one if its class is the same still."""
    short = row.short or (before.short if before.class_name == row.class_name else _short(row))
    size = {"width": before.width, "height": before.height}
    return replace(row, caption=before.caption, short=short, more=before.more, **size)


def _short(row: Row) -> str:
    return row.short or (aio(row.class_name) if row.class_name else "")


def printable(path: str) -> str:
    """The path, or where its bytes are no UTF-8, an escaped form that can be written to a file."""
    return path if _is_utf8(path) else ascii(path)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class _Opened:
    """A row whose picture has been opened: its size is known, or why it cannot be used."""

    row: Row
    picture: "Image.Image | None" = None


def _open(root: Path, row: Row) -> _Opened:
    if not _is_utf8(row.path):
        return _Opened(replace(row, path=ascii(row.path), error="its name is not UTF-8"))
    if row.error:
        return _Opened(row)
    try:
        picture = open_picture(root, row.path)
    except BrokenImage as error:
        return _Opened(replace(row, error=str(error)))
    return _Opened(replace(row, width=picture.width, height=picture.height), picture)


@dataclass(frozen=True)
class RulePart:
    """Makes one part of the manifest by a rule; a value, so that it can be sent to another process."""

    root: Path
    rows: list[Row]
    rule: Rule
    scenes: dict[str, Scene] | None
    seed: int
    rows_per_part: int

    def __call__(self, part: int) -> "pa.Table":
        """The rows of part number `part`."""
        start = part * self.rows_per_part
        return to_table(self._row(row) for row in self.rows[start : start + self.rows_per_part])

    def _row(self, row: Row) -> Row:
        row = _open(self.root, row).row
        if row.error:
            return row
        if self.rule == "given":
            return row if row.caption else replace(row, error="the source has no caption for it")
        row = replace(row, more=())  # the source's own, which this rule does not take
        if self.rule == "aio":
            if not row.class_name:
                return replace(row, error="the source does not say its class, which aio captions need")
            return replace(row, caption=aio(row.class_name), short=aio(row.class_name))
        if self.scenes is None or row.path not in self.scenes:
            return replace(row, error="not described in scenes.jsonl")
        scene, seed = self.scenes[row.path], seed_from(self.seed, row.path)
        return replace(row, caption=structured_caption(scene, seed), short=short_caption(scene, seed))


@dataclass(frozen=True)
class ModelPart:
    """Makes one part of the manifest with a captioner, which is loaded where the first part is made."""

    root: Path
    rows: list[Row]
    config: CaptionerConfig
    cleaning: Cleaning
    seed: int
    device: str
    rows_per_part: int

    @cached_property
    def _captioner(self) -> Captioner:
        return load_captioner(self.config, pick_device(self.device))

    def __call__(self, part: int) -> "pa.Table":
        """The rows of part number `part`."""
        start = part * self.rows_per_part
        rows = self.rows[start : start + self.rows_per_part]
        opened: dict[int, Row] = {}
        loads = [partial(self._load, i, row, opened) for i, row in enumerate(rows)]
        answers = self._captioner.caption(loads, seed_from(self.seed, part))
        return to_table(self._told(opened[i], answer.text, answer.error) for i, answer in enumerate(answers))

    def _load(self, i: int, row: Row, opened: dict[int, Row]) -> "Image.Image | None":
        found = _open(self.root, row)
        opened[i] = found.row
        return found.picture

    def _told(self, row: Row, text: str, error: str) -> Row:
        if row.error:
            return row
        caption = clean(text, self.cleaning) if not error else ""
        if not caption:
            return replace(
                row, caption="", error=NO_CAPTION + (error or "the captioner's answer has no words")
            )
        return replace(row, caption=caption, short=_short(row), more=())
