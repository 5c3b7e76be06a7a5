"""CutMix and Crop of a whole data set: what each picture becomes, and its pixels.

In: the rows of a manifest. Out: for every row the row of its augmented version, with geometry and a caption
that says what is where, and the version's pixels. Both are pure functions of (seed, the row's path), so
the pictures can be made by any worker in any order, beforehand or while encoding.
"""

import random
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kilopix.data.captions import aio, cropped, short_with_inset, with_inset
from kilopix.data.cutmix import SettingChoice, choose_crop, choose_paste, paste, paste_at
from kilopix.data.manifest import Row
from kilopix.data.pixels import read_square
from kilopix.data.rows import Rows
from kilopix.data.sources import BrokenImage
from kilopix.runtime import seed_from

Kind = Literal["cutmix", "crop"]
BASE_HASH = 32
"""Digits at the head of a row's `made_from` that are of the image it is made from, as of that image's own."""


@dataclass(frozen=True)
class Augmenter:
    """Makes one augmented version of every row, at `size` pixels."""

    rows: Rows
    kind: Kind
    setting: SettingChoice
    size: int
    seed: int

    def plan(self, row: Row) -> Row:
        """The augmented version of a row: its place, its partner and its caption; no file is opened."""
        rng = random.Random(seed_from(self.kind, self.setting, self.seed, row.path))
        return self._crop(row, rng) if self.kind == "crop" else self._cutmix(row, rng)

    def _cutmix(self, row: Row, rng: random.Random) -> Row:
        where = choose_paste(self.setting, self.size, rng)
        classes = self.rows.classes
        i = classes.other(row.class_name, rng.randrange(classes.others(row.class_name)))
        partner = self.rows[i]
        x0, y0, x1, y1 = (v / self.size for v in where.box)
        box = (x0, y0, x1, y1)
        caption = with_inset(row.caption, partner.caption, box)
        shorts = [one.short or (aio(one.class_name) if one.class_name else "") for one in (row, partner)]
        short = short_with_inset(shorts[0], shorts[1], box, rng) if all(shorts) else ""
        halves = [one.made_from[:BASE_HASH] for one in (row, partner)]
        made_from = "".join(halves) if all(halves) else ""
        return self._row(row, caption, short, box, made_from, where.setting, partner.path)

    def _crop(self, row: Row, rng: random.Random) -> Row:
        box = choose_crop(rng)
        short = cropped(row.short, box) if row.short else ""
        return self._row(row, cropped(row.caption, box), short, box, row.made_from)

    def _row(
        self,
        row: Row,
        caption: str,
        short: str,
        box: tuple[float, float, float, float],
        made_from: str,
        setting: str = "",
        partner: str = "",
    ) -> Row:
        return Row(
            # Its own ending stays, since a.png and a.jpg may both be there.
            path=f"{self.kind}/{row.path}.jpg",
            class_name=row.class_name,
            caption=caption,
            short=short,
            width=self.size,
            height=self.size,
            kind=self.kind,
            base=row.path,
            setting=setting,
            partner=partner,
            box=box,
            made_from=made_from,
        )

    def pixels(self, planned: Row) -> np.ndarray:
        """The pixels of a planned version, as `read_square` gives them; raises `BrokenImage`.

        A partner is decoded, and resized, at the size at which it is pasted.
        """
        root, size = self.rows.root, self.size
        if planned.kind == "crop":
            return read_square(root, planned.base, size, planned.box)
        where = paste_at(planned.setting, planned.box, size)
        base = read_square(root, planned.base, size)
        return paste(base, read_square(root, planned.partner, where.partner_side), where)


@dataclass(frozen=True)
class Pictures:
    """The rows of a manifest with their pixels at `size`; with an augmenter, of their augmented versions."""

    rows: Rows
    size: int
    augmenter: Augmenter | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def span(self, start: int, stop: int) -> list[Row]:
        """The rows from `start` to before `stop`, or to the end."""
        rows = self.rows.span(start, stop)
        return [self.augmenter.plan(row) for row in rows] if self.augmenter else rows

    def pixels(self, row: Row) -> np.ndarray:
        """The pixels of a row, `size x size x 3`; raises `BrokenImage`."""
        made = (
            self.augmenter.pixels(row) if self.augmenter else read_square(self.rows.root, row.path, self.size)
        )
        return made[..., :3]


@dataclass(frozen=True)
class LoadedBatch:
    """The rows that could be read, their pixels `B H W 3` in uint8, and the files that could not."""

    rows: list[Row]
    pixels: np.ndarray
    left_out: list[tuple[str, str]]


def load_ahead(pictures: Pictures, rows: list[Row], batch: int, threads: int) -> Iterator[LoadedBatch]:
    """Batches of pictures, decoded in threads while the batch before is in use."""

    def load(row: Row) -> np.ndarray | str:
        try:
            return pictures.pixels(row)
        except BrokenImage as error:
            return str(error)

    def collect(futures: list[Any], rows: list[Row]) -> LoadedBatch:
        loaded = [future.result() for future in futures]
        arrays = [one for one in loaded if not isinstance(one, str)]
        empty = np.empty((0, pictures.size, pictures.size, 3), np.uint8)
        return LoadedBatch(
            [row for row, one in zip(rows, loaded, strict=True) if not isinstance(one, str)],
            np.stack(arrays) if arrays else empty,
            [(row.path, one) for row, one in zip(rows, loaded, strict=True) if isinstance(one, str)],
        )

    waiting: deque[tuple[list[Any], list[Row]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(rows), batch):
            chunk = rows[start : start + batch]
            waiting.append(([pool.submit(load, row) for row in chunk], chunk))
            if len(waiting) > 1:
                yield collect(*waiting.popleft())
        while waiting:
            yield collect(*waiting.popleft())
