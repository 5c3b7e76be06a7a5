"""Tar shards in the WebDataset convention: members of one key, up to the first dot of the name, are a sample.

In: tar files. Out: items that point to their picture's member, with the class and caption that the
sample's small members say (`txt`, `cls`, `json`); and the arrays of the published release, which keeps
text states and latents beside its pictures.
"""

import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kilopix.data.sources.classes import LabelNames
from kilopix.data.sources.containers import (
    BrokenImage,
    file_stamp,
    read_bytes,
    reference,
    split_reference,
    tar_index,
)
from kilopix.data.sources.folders import LONGEST_TEXT, caption_of_record, captions_of_text, read_record
from kilopix.data.sources.items import SourceItem, describe
from kilopix.data.sources.selection import EVERYTHING, Selection, Tally
from kilopix.errors import UserError
from kilopix.runtime import progress_bar
from kilopix.values import BadValue

PICTURES = ("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "jp2", "ppm", "heic")
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
    return folder + slash + key, ending.lower()


def tar_pictures(
    root: Path, files: list[Path], selection: Selection = EVERYTHING, tally: Tally | None = None
) -> tuple[list[SourceItem], list[tuple[str, str]]]:
    """The wanted pictures of tar shards below `root`, in order, and the members that are passed over.

    Conditions and captions are looked for in the samples' records.
    """
    tally = tally or Tally()
    items: list[SourceItem] = []
    unused: list[tuple[str, str]] = []
    with progress_bar(disable=len(files) < _MANY) as bar:
        task = bar.add_task("list samples", total=len(files), note="tar files")
        for file in files:
            container = file.relative_to(root).as_posix()
            samples, passed = _samples(file)
            unused += [(reference(container, name), why) for name, why in passed]
            names = LabelNames.of(file, [root, file.parent])
            spelled: dict[str, str] | None = None
            for key, sample in samples.items():
                if sample.picture is None:
                    unused.append((reference(container, key), "a sample without a picture"))
                    continue
                path = reference(container, sample.picture)
                try:
                    record = sample.record()
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    items.append(SourceItem(path, error=f"its record is damaged ({error})"))
                    continue
                if record and spelled is None:
                    spelled = selection.check(list(record), file)
                if tally.takes(selection, record, spelled or {name: name for name in selection.columns()}):
                    items.append(_item(path, key, sample, record, selection, names))
            bar.advance(task)
    return items, unused


@dataclass
class _Sample:
    """The picture's name of a sample, and the bytes of its texts, labels and records by their endings."""

    picture: str | None = None
    small: dict[str, bytes] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What its JSON members say."""
        record: dict[str, Any] = {}
        for ending in RECORDS:
            if ending in self.small:
                record |= read_record(self.small[ending])
        return record


def _samples(file: Path) -> tuple[dict[str, _Sample], list[tuple[str, str]]]:
    """The samples by their keys, and the members that are passed over, each with the reason."""
    members: dict[str, tuple[str, str]] = {}
    small: dict[str, bytes] = {}
    passed: list[tuple[str, str]] = []
    try:
        places = tar_index(file, file_stamp(file))
        with tarfile.open(file, "r:") as opened:
            for member in opened:
                key, ending = split_member(member.name)
                if member.isdir() or key.rpartition("/")[2] == "":
                    continue
                if member.name not in places:
                    passed.append((member.name, _why_passed(member)))
                    continue
                if member.name in members:
                    passed.append((member.name, "comes more than once; the last of the name is taken"))
                members[member.name] = (key, ending)
                if ending in _SMALL:
                    small.pop(member.name, None)
                    content = opened.extractfile(member)
                    if content is not None and member.size <= LONGEST_TEXT:
                        small[member.name] = content.read()
    except (tarfile.TarError, OSError, KeyError) as error:
        raise UserError(
            f"{file}: not a whole tar file ({error}). Replace it or move it away; compressed ones must be "
            "unpacked to .tar first."
        ) from None
    samples: dict[str, _Sample] = {}
    pictures: dict[str, list[tuple[int, str]]] = {}
    dotted: set[str] = set()
    for name, (key, ending) in members.items():
        if not ending:
            passed.append((name, "has no ending that says what it is"))
            continue
        sample = samples.setdefault(key, _Sample())
        if name in small:
            if ending in sample.small:
                passed.append((name, f"the sample {key} has another {ending}"))
            else:
                sample.small[ending] = small[name]
        elif ending in PICTURES:
            pictures.setdefault(key, []).append((PICTURES.index(ending), name))
        elif ending.rpartition(".")[2] in PICTURES:
            passed.append(
                (name, f"its key ends at the first dot, so that it is of kind {ending!r}; rename it")
            )
            dotted.add(key)
    for key, found in pictures.items():
        # Of pictures in one sample the kind that comes first is taken, of one kind the name as it is usual.
        first, *others = sorted(found, key=lambda one: (one[0], one[1] != one[1].lower()))
        samples[key].picture = first[1]
        passed += [(name, f"the sample's picture is {first[1]}") for _, name in others]
    return {k: s for k, s in samples.items() if s.picture or k not in dotted}, passed


def _why_passed(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"a link to {member.linkname}, which is not in this tar file"
    return "no regular file"


def _item(
    path: str, key: str, sample: _Sample, record: dict[str, Any], selection: Selection, names: LabelNames
) -> SourceItem:
    """What a sample's members say of its picture: a text before the record, which is before a label file."""
    texts = [sample.small[ending] for ending in TEXTS if ending in sample.small]
    labels = [sample.small[ending] for ending in LABELS if ending in sample.small]
    caption, label = selection.columns_of(list(record), Path(names.place)) if record else (None, None)
    try:
        found: object = caption_of_record(record, caption)
        if texts and not selection.caption_column:
            found = list(captions_of_text(texts[0], selection.caption_lines))
        named = record.get(label) if label else None
        if named is None and labels and selection.label_column is None:
            named = labels[0]
    except (BadValue, UnicodeDecodeError) as error:
        return SourceItem(path, error=f"its text is damaged ({error})")
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
    except (ValueError, EOFError, OSError) as error:
        raise BrokenImage(f"{what} is no array ({str(error).splitlines()[0]})") from None
    if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
        raise BrokenImage(f"{what} holds numbers that are not finite")
    return array
