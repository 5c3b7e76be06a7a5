"""The rows of a manifest as one memory-mapped file, so that any number of workers share one copy.

In: a manifest. Out: an Arrow file in a work folder, and its rows by number; which rows are of which class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kilopix.data.manifest import Manifest, Row, from_table, to_table
from kilopix.data.parts import read_table, write_table

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Rows:
    """Rows in a file, and the folder that their paths start from; small to send to another process."""

    root: Path
    file: Path

    @cached_property
    def _table(self) -> "pa.Table":
        return read_table(self.file)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: int) -> Row:
        return from_table(self._table.slice(i, 1))[0]

    def value(self, i: int, column: str) -> str:
        """The text of one column of row i, which is all that is read."""
        return self._table.column(column)[i].as_py()

    def span(self, start: int, stop: int) -> list[Row]:
        """The rows from `start` to before `stop`, or to the end."""
        return from_table(self._table.slice(start, stop - start))

    def sizes(self, paths: Sequence[str]) -> list[tuple[int, int]]:
        """Width and height of the pictures of these paths; (0, 0) of one that is not there."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = pc.index_in(pa.array(paths), value_set=self._table.column("path"))  # pyright: ignore
        taken = self._table.select(["width", "height"]).take(found)
        columns = (pc.fill_null(taken.column(name), 0).to_pylist() for name in ("width", "height"))
        return list(zip(*columns, strict=True))

    @cached_property
    def classes(self) -> "Classes":
        """The rows grouped by class."""
        return Classes.of(self._table.column("class_name"))

    def __getstate__(self) -> dict[str, Path]:
        return {"root": self.root, "file": self.file}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__dict__.update(state)


@dataclass(frozen=True)
class Classes:
    """Row numbers ordered by class: class c has `order[starts[c]:starts[c + 1]]`."""

    names: dict[str, int]
    order: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, column: "pa.ChunkedArray") -> "Classes":
        """Group a column of class names; the classes are in the order of their names."""
        names = sorted(column.unique().to_pylist())
        number = {name: i for i, name in enumerate(names)}
        import pyarrow as pa
        import pyarrow.compute as pc

        codes = pc.index_in(column, value_set=pa.array(names)).to_numpy()  # pyright: ignore
        counts = np.bincount(codes, minlength=len(names))
        return cls(number, np.argsort(codes, kind="stable"), np.concatenate([[0], np.cumsum(counts)]))

    def others(self, class_name: str) -> int:
        """How many rows are not of this class."""
        c = self.names[class_name]
        return len(self.order) - int(self.starts[c + 1] - self.starts[c])

    def other(self, class_name: str, k: int) -> int:
        """The k-th row that is not of this class, for k from 0 to before `others`."""
        c = self.names[class_name]
        first, after = int(self.starts[c]), int(self.starts[c + 1])
        return int(self.order[k if k < first else k + after - first])


def write_rows(manifest: Manifest, file: Path) -> Rows:
    """Write the rows of a manifest to `file`; the same manifest gives the same bytes."""
    write_table(file, to_table(manifest.rows).combine_chunks())
    return Rows(manifest.root, file)
