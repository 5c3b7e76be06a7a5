"""Tar shards in the WebDataset convention: members of one key, up to the first dot of the name, are a sample.

In: tar files. Out: items that point to their picture's member, with the class and caption that the
sample's small members say (`txt`, `cls`, `json`); and the arrays of the published release, which keeps
text states and latents beside its pictures.
"""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kilopix.data.sources.captioned import CAPTION_COLUMNS, CLASS_COLUMNS
from kilopix.data.sources.classes import class_of_file, name_label, read_class_table
from kilopix.data.sources.containers import BrokenImage, read_bytes, reference, split_reference
from kilopix.data.sources.items import SourceItem
from kilopix.data.sources.selection import EVERYTHING, Selection, Tally
from kilopix.errors import UserError
from kilopix.runtime import progress_bar

PICTURES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "caption", "text")
LABELS = ("cls", "class", "label")
RECORDS = ("json", "label.json")
RELEASE_TEXT = "flan_t5_xl_embeddings.npy"
RELEASE_MEAN = "vae_embeddings_mean_256.npy"
RELEASE_STD = "vae_embeddings_std_256.npy"
_MANY = 20  # tar files that take so long to list that a bar is shown
_MOST = 1 << 20  # bytes of a caption or record; what is longer is something else


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
    """The wanted pictures of tar shards below `root`, in order, and the samples that hold none.

    Conditions and captions are looked for in the samples' records.
    """
    tally = tally or Tally()
    items: list[SourceItem] = []
    unused: list[tuple[str, str]] = []
    table = read_class_table(root)
    with progress_bar(disable=len(files) < _MANY) as bar:
        task = bar.add_task("list samples", total=len(files), note="tar files")
        for file in files:
            _add_samples(file, str(file.relative_to(root)), table, items, unused, selection, tally)
            bar.advance(task)
    return items, unused


def _add_samples(
    file: Path,
    container: str,
    table: dict[str, str],
    items: list[SourceItem],
    unused: list[tuple[str, str]],
    selection: Selection,
    tally: Tally,
) -> None:
    spelled: dict[str, str] | None = None
    for key, members in _samples(file).items():
        picture = next((members[ending] for ending in PICTURES if ending in members), None)
        if picture is None:
            unused.append((reference(container, key), "a sample without a picture (jpg, png or webp)"))
            continue
        path = reference(container, str(picture))
        try:
            record = _record(members)
            if record and spelled is None:
                spelled = selection.check(record, file)
            if tally.takes(selection, record, spelled or {name: name for name in selection.columns()}):
                caption = selection.caption_column and (spelled or {}).get(selection.caption_column)
                items.append(_item(path, key, members, record, caption, table, file))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            items.append(SourceItem(path, error=f"its text or record is damaged ({error})"))


def _samples(file: Path) -> dict[str, dict[str, Any]]:
    """The members of every sample by their endings: the name of a picture, the bytes of texts and records."""
    samples: dict[str, dict[str, Any]] = {}
    small = {*TEXTS, *LABELS, *RECORDS}
    try:
        with tarfile.open(file, "r:") as opened:
            for member in opened:
                key, ending = split_member(member.name)
                if not member.isreg() or not ending or key.rpartition("/")[2] == "":
                    continue
                sample = samples.setdefault(key, {})
                if ending in small and member.size <= _MOST:
                    content = opened.extractfile(member)
                    sample[ending] = content.read() if content else b""
                else:
                    sample[ending] = member.name
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{file}: not a whole tar file ({error}). Replace it or move it away; compressed ones must be "
            "unpacked to .tar first."
        ) from None
    return samples


def _record(members: dict[str, Any]) -> dict[str, Any]:
    """What a sample's JSON members say."""
    record: dict[str, Any] = {}
    for ending in RECORDS:
        if isinstance(members.get(ending), bytes):
            found = json.loads(members[ending])
            record |= found if isinstance(found, dict) else {}
    return record


def _item(
    path: str,
    key: str,
    members: dict[str, Any],
    record: dict[str, Any],
    caption: str | None,
    table: dict[str, str],
    file: Path,
) -> SourceItem:
    if caption:
        texts = [str(record.get(caption) or "")]
    else:
        texts = [members[e].decode() for e in TEXTS if isinstance(members.get(e), bytes)]
        texts += [str(record[name]) for name in CAPTION_COLUMNS if record.get(name)]
    labels = [members[e].decode().strip() for e in LABELS if isinstance(members.get(e), bytes)]
    words = [record[name] for name in CLASS_COLUMNS if record.get(name) is not None]
    class_name = class_of_file(key.rpartition("/")[2])
    if not class_name and (words or labels):
        class_name = name_label((words or labels)[0], None, table, file)
    return SourceItem(path, class_name, " ".join(texts[0].split()) if texts else "")


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
