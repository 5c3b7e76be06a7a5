"""Tar shards in the WebDataset convention: members of one key, up to the first dot of the name, are a sample.

In: tar files. Out: items that point to their picture's member, with the class and caption that the
sample's small members say (`txt`, `cls`, `json`); and the arrays of the published release, which keeps
text states and latents beside its pictures.
"""

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile

import numpy as np

from kilopix.data.sources.classes import LabelNames
from kilopix.data.sources.containers import (
    TAR_DAMAGE,
    BrokenImage,
    file_stamp,
    read_bytes,
    reference,
    split_reference,
    tar_index,
    unread_end,
)
from kilopix.data.sources.folders import LONGEST_TEXT, caption_of_record, captions_of_text, read_record
from kilopix.data.sources.items import IMAGE_ENDINGS, SourceItem, describe
from kilopix.data.sources.selection import EVERYTHING, Selection, Tally
from kilopix.errors import UserError
from kilopix.faults import first_line
from kilopix.progress import Progress
from kilopix.values import BadValue, first_present

PICTURES = tuple(
    dict.fromkeys(("jpg", "jpeg", "png", "webp", *sorted(ending[1:] for ending in IMAGE_ENDINGS)))
)
TEXTS = ("txt", "caption", "text")
LABELS = ("cls", "class", "label")
RECORDS = ("json", "label.json")
RELEASE_TEXT = "flan_t5_xl_embeddings.npy"
RELEASE_MEAN = "vae_embeddings_mean_256.npy"
RELEASE_STD = "vae_embeddings_std_256.npy"
_SMALL = {*TEXTS, *LABELS, *RECORDS}
_MANY = 20  # tar files that take so long to list that a bar is shown


@dataclass(frozen=True)
class ReleaseArrays:
    """What the published release stores of a picture, as it is.

    `text` (N, 2048) are Flan-T5-XL's states of the caption; `mean` and `std` (4, 32, 32) those of the Stable
    Diffusion autoencoder at 256 pixels, not yet multiplied by its scale.
    """

    text: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def split_member(name: str) -> tuple[str, str]:
    """The key of a member and what follows its first dot, in small letters: `a/1.cls` is `a/1` and `cls`."""
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    return (folder + slash).removeprefix("./") + key, ending.lower()


def tar_pictures(
    root: Path, files: list[Path], selection: Selection = EVERYTHING, tally: Tally | None = None
) -> tuple[list[SourceItem], list[tuple[str, str]], int]:
    """The wanted pictures of tar shards below `root`, what is passed over, and how many members are hidden.

    Conditions and captions are looked for in the samples' records.
    """
    tally = tally or Tally()
    items: list[SourceItem] = []
    unused: list[tuple[str, str]] = []
    hidden = 0
    with Progress("list samples", len(files), unit="tar file", quiet=len(files) < _MANY) as shown:
        for file in files:
            container = file.relative_to(root).as_posix()
            shard = _read_shard(file)
            hidden += shard.hidden
            unused += [(reference(container, name) if name else container, why) for name, why in shard.passed]
            names = LabelNames.of(file, [root, file.parent])
            records = {key: sample.record() for key, sample in shard.samples.items()}
            fields = list(dict.fromkeys(field for record in records.values() for field in record or {}))
            spelled = selection.check(fields, file)
            columns = selection.columns_of(fields, file)
            for key, sample in shard.samples.items():
                record = records[key]
                if sample.picture is None:
                    unused.append((reference(container, key), "a sample without a picture"))
                    continue
                place = reference(container, sample.picture)
                if record is None:
                    items.append(SourceItem(place, error=sample.error))
                elif tally.takes(selection, record, spelled):
                    items.append(_item(place, key, sample, record, columns, selection, names))
            shown.advance()
    return items, unused, hidden


@dataclass
class _Sample:
    """The picture's name of a sample, the bytes of its texts, labels and records by their endings, and why it
    cannot be used, if so."""

    picture: str | None = None
    small: dict[str, bytes] = field(default_factory=dict)
    error: str = ""

    def record(self) -> dict[str, Any] | None:
        """What its JSON members say; None if the sample cannot be used, and `error` then says why."""
        record: dict[str, Any] = {}
        try:
            for ending in RECORDS:
                if ending in self.small:
                    record |= read_record(self.small[ending])
        except (ValueError, RecursionError) as error:
            self.error = self.error or f"its record is damaged ({error})"
        return None if self.error else record


@dataclass
class _Shard:
    """The samples of a tar file by their keys, what is passed over and why, and how much is hidden."""

    samples: dict[str, _Sample] = field(default_factory=dict)
    passed: list[tuple[str, str]] = field(default_factory=list)
    hidden: int = 0


def _read_shard(file: Path) -> _Shard:
    shard = _Shard()
    members: dict[str, int] = {}
    small: dict[str, bytes] = {}
    try:
        places = tar_index(file, file_stamp(file))
        with tarfile.open(file, "r:") as opened:
            for member in opened:
                _, ending = split_member(member.name)
                if member.isdir():
                    continue
                if PurePosixPath(member.name).name.startswith(".") or "__MACOSX/" in member.name:
                    shard.hidden += 1
                    continue
                if member.name not in places:
                    shard.passed.append((member.name, _why_passed(member)))
                    continue
                if member.name in members:
                    shard.passed.append((member.name, "comes more than once; the last of the name is taken"))
                members[member.name] = places[member.name][1]
                if ending in _SMALL:
                    small.pop(member.name, None)
                    content = opened.extractfile(member) if members[member.name] <= LONGEST_TEXT else None
                    if content is not None:
                        small[member.name] = content.read()
            end = opened.offset
        if why := unread_end(file, end):
            shard.passed.append(("", why))
    except PermissionError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from None
    except (*TAR_DAMAGE, OSError, KeyError) as error:
        raise UserError(
            f"{file}: not a whole tar file ({error}). Replace it or move it away; compressed ones must be "
            "unpacked to .tar first."
        ) from None
    _group(shard, members, small)
    return shard


def _group(shard: _Shard, members: dict[str, int], small: dict[str, bytes]) -> None:
    """Put the members, by name and size, into the samples of their keys; name what has no place in one."""
    pictures: dict[str, list[tuple[int, str]]] = {}
    texts: dict[str, list[tuple[int, str]]] = {}
    dotted: set[str] = set()
    for name, size in members.items():
        key, ending = split_member(name)
        if not ending:
            shard.passed.append((name, "has no ending that says what it is"))
            continue
        sample = shard.samples.setdefault(key, _Sample())
        last = ending.rpartition(".")[2]
        if name in small and ending in sample.small:
            shard.passed.append((name, f"the sample {key} has another {ending}"))
        elif name in small:
            sample.small[ending] = small[name]
            for kinds in (TEXTS, LABELS):
                if ending in kinds and small[name].strip():
                    texts.setdefault(f"{key}\0{kinds[0]}", []).append((kinds.index(ending), name))
        elif ending in _SMALL:
            sample.error = f"its member {name} is of {size:,} bytes, no caption and no label"
        elif ending in PICTURES:
            pictures.setdefault(key, []).append((PICTURES.index(ending), name))
        elif last in PICTURES or last in TEXTS:
            dotted |= {key} if last in PICTURES else set()
            bare = name.removesuffix(last)
            if last in PICTURES or not any(bare + other in members for other in PICTURES):
                why = f"its key ends at the first dot, so that it is of kind {ending!r}; rename it"
                shard.passed.append((name, why))
    for found in texts.values():
        first, *others = sorted(found)
        shard.passed += [(name, f"{first[1]} is taken in its place") for _, name in others]
    for key, found in pictures.items():
        # Of pictures in one sample the kind that comes first is taken, of one kind the name as it is usual.
        first, *others = sorted(found, key=lambda one: (one[0], one[1] != one[1].lower()))
        shard.samples[key].picture = first[1]
        shard.passed += [(name, f"the sample's picture is {first[1]}") for _, name in others]
    shard.samples = {k: s for k, s in shard.samples.items() if s.picture or k not in dotted}


def _why_passed(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "is stored with holes (tar --sparse); pack it without"
    if member.issym() or member.islnk():
        return f"a link to {member.linkname}, which is not in this tar file"
    return "no regular file"


def _item(
    path: str,
    key: str,
    sample: _Sample,
    record: dict[str, Any],
    columns: tuple[list[str], list[str]],
    selection: Selection,
    names: LabelNames,
) -> SourceItem:
    """What a sample's members say of its picture: a text before the record, which is before a label file."""
    try:
        found: object = None
        if not selection.caption_column:
            texts = [sample.small[ending] for ending in TEXTS if ending in sample.small]
            read = [captions_of_text(text, selection.caption_lines) for text in texts]
            found = first_present(list(some) for some in read)
        if found is None:
            found = caption_of_record(record, columns[0])
    except BadValue as error:
        return SourceItem(path, error=str(error))
    except UnicodeDecodeError as error:
        return SourceItem(path, error=f"its text is damaged ({error})")
    labels = [sample.small[ending] for ending in LABELS if ending in sample.small]
    named = first_present(record.get(name) for name in columns[1])
    if named is None and labels and selection.label_column is None:
        named = labels[0]
    return describe(path, key.rpartition("/")[2], found, named, names)


def release_arrays(root: Path, path: str) -> ReleaseArrays:
    """The stored text states and latents of a picture of the published release, `shard.tar#key.jpg`.

    Raises `BrokenImage` if one is missing, has another shape, or holds a number that is not finite.
    """
    parts = split_reference(path)
    if parts is None:
        raise BrokenImage("not a member of a tar shard, so nothing is stored beside it")
    key, _ = split_member(parts[1])
    text, mean, std = (
        _array(read_bytes(root, reference(parts[0], f"{key}.{ending}")), ending)
        for ending in (RELEASE_TEXT, RELEASE_MEAN, RELEASE_STD)
    )
    if text.ndim != 2 or not len(text) or mean.ndim != 3 or mean.shape != std.shape:
        raise BrokenImage(f"stored arrays have shapes {text.shape}, {mean.shape} and {std.shape}")
    return ReleaseArrays(text, mean, std)


def _array(content: bytes, what: str) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, TypeError, ArithmeticError, MemoryError, EOFError, OSError, BadZipFile) as error:
        why = first_line(error)
        raise BrokenImage(f"{what} is no array ({why})") from None
    if not isinstance(array, np.ndarray):
        raise BrokenImage(f"{what} is no array")
    if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
        raise BrokenImage(f"{what} holds numbers that are not finite")
    return array
