"""Encoded rows that hold still: shards of an earlier manifest, put aside while those of the new one are made.

In: shards, and the rows of now. Out: parts that are as they were stay in their place; of the others, latents
and text states are found by hashes of what they were made from, so that nothing is encoded twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilopix.data.manifest import Row
from kilopix.data.part_facts import PartFacts, ShardParts
from kilopix.data.parts import read_table
from kilopix.jobs import JOB, check_same_job
from kilopix.runtime import read_json, sha256_of_text, write_json

if TYPE_CHECKING:
    import pyarrow as pa

WORK, ASIDE = "work", "before"
INPUTS = ("manifest", "augmented")


def image_key(row: Row) -> str:
    """A hash of all that a row's latents are made from; nothing where the manifest does not say it."""
    if not row.made_from:
        return ""
    return sha256_of_text(repr((row.made_from, row.kind, row.setting, row.box, row.width, row.height)))


def text_key(row: Row) -> str:
    """A hash of all that a row's text states are made from."""
    return sha256_of_text(repr((row.caption, row.short, row.more)))


@dataclass(frozen=True)
class Texts:
    """The states of a row's caption, of its short one and of its further ones, as they lie in shards."""

    text: bytes
    short: bytes
    more: list[bytes]


@dataclass(frozen=True)
class Before:
    """Shards that were put aside, as far as the same encoders made them; small to send to another process."""

    folder: Path
    text_fingerprint: str
    autoencoder_fingerprint: str

    def latents(self, rows: Sequence[Row]) -> list[tuple[bytes, bytes] | None]:
        """Mean and standard deviation of each row, as they lie in shards, or None."""
        found = self._find("image_key", [image_key(row) for row in rows])
        return [None if one is None else (one["mean"][0].as_py(), one["std"][0].as_py()) for one in found]

    def texts(self, rows: Sequence[Row]) -> list[Texts | None]:
        """The text states of each row, or None."""
        found = self._find("text_key", [text_key(row) for row in rows])
        names = ("text", "short_text", "more_text")
        return [None if one is None else Texts(*(one[name][0].as_py() for name in names)) for one in found]

    def _find(self, column: str, keys: list[str]) -> "list[pa.Table | None]":
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self._tables[column]
        if table is None:
            return [None] * len(keys)
        wanted = pa.array([key or None for key in keys], pa.string())
        known = table.column(column).combine_chunks()
        places = pc.index_in(wanted, value_set=known, skip_nulls=True).to_pylist()  # pyright: ignore
        return [None if place is None else table.slice(place, 1) for place in places]

    @cached_property
    def _tables(self) -> "dict[str, pa.Table | None]":
        """All rows that lie aside, by what they are looked up for."""
        import pyarrow as pa

        made: dict[str, list[pa.Table]] = {"image_key": [], "text_key": []}
        for file in sorted(self.folder.glob("*.arrow")):
            table = read_table(file)
            facts = PartFacts.of(table)
            table = table.replace_schema_metadata(None)
            if facts.autoencoder_fingerprint == self.autoencoder_fingerprint:
                made["image_key"].append(table)
            if facts.text_fingerprint == self.text_fingerprint:
                made["text_key"].append(table)
        return {key: pa.concat_tables(tables) if tables else None for key, tables in made.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def earlier_job(
    out: Path, job: dict[str, Any], plain: Sequence[Row], overwrite: bool = False
) -> dict[str, Any] | None:
    """The job of a folder whose manifests alone have changed since; None of a new folder, the
    same job, or one to replace.

    Most of the images of before must be there still, or else it is another data set; and there must be
    augmented ones if there were. That and any other difference is a `UserError`.
    """
    if not (out / JOB).exists() or (before := read_json(out / JOB)) == job:
        return None
    if not check_same_job(before, job | {key: before.get(key) for key in INPUTS}, out, overwrite):
        return None
    files = (*(out / WORK / ASIDE).glob("*plain-*.arrow"), *out.glob("plain-*.arrow"))
    had = [key for file in files for key in _keys(file)]
    known = {image_key(row) for row in plain} - {""}
    few = sum(key in known for key in had) < len(had) / 2
    other = (had and few) or bool(before.get("augmented")) > bool(job["augmented"])
    return None if other and not check_same_job(before, job, out, overwrite) else before


def put_aside(out: Path, job: dict[str, Any], parts: ShardParts, rows_of: Callable[[int], list[Row]]) -> int:
    """Make the folder that of a new job; returns how many parts stay, since their rows are as they were.

    The others are put aside, and serve `Before`. What is interrupted here is done when it is called again.
    """
    (out / "index.json").unlink(missing_ok=True)
    place = out / WORK / ASIDE
    place.mkdir(parents=True, exist_ok=True)
    same = {parts.path(i).name for i in range(parts.count) if _is_same(parts.path(i), rows_of(i))}
    number = len(list(place.iterdir()))
    for file in sorted(out.glob("*-[0-9]*.arrow")):
        if file.name not in same:
            file.rename(place / f"{number:04d}-{file.name}")
            number += 1
    write_json(out / JOB, job)
    return len(same)


def _keys(file: Path) -> list[str]:
    table = read_table(file)
    return table.column("image_key").to_pylist() if "image_key" in table.schema.names else [""] * len(table)


def _is_same(file: Path, rows: list[Row]) -> bool:
    """Whether a part holds these very rows, none left out."""
    if not file.exists():
        return False
    table = read_table(file)
    if len(table) != len(rows) or "image_key" not in table.schema.names:
        return False
    wanted: dict[str, list[str]] = {
        name: [getattr(row, name) for row in rows] for name in ("path", "class_name", "base")
    }
    wanted |= {"image_key": [image_key(row) for row in rows], "text_key": [text_key(row) for row in rows]}
    return all(wanted["image_key"]) and all(
        table.column(name).to_pylist() == values for name, values in wanted.items()
    )
