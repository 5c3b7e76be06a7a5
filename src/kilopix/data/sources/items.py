"""What a source is: a root, and below it the pictures in a fixed order, with what is known of each.

In: files of a source. Out: `Source`, whose fingerprint changes when the pictures or their texts do.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from kilopix.data.sources.containers import split_reference
from kilopix.data.sources.selection import Tally

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}


@dataclass(frozen=True)
class SourceItem:
    """One picture: its path below the root, which is its id, the name of its class, and its caption.

    Class name and caption are empty where the source does not say them; an item with an `error` cannot be
    used, whatever its picture is.
    """

    path: str
    class_name: str = ""
    caption: str = ""
    error: str = ""


@dataclass(frozen=True)
class Source:
    """All pictures of a source; `kind` is for people, `unused` names files that are no part of it and why.

    Where only some are wanted, `tally` counts them.
    """

    root: Path
    kind: str
    items: list[SourceItem]
    unused: list[tuple[str, str]] = field(default_factory=list)
    tally: Tally | None = None

    def fingerprint(self) -> str:
        """SHA-256 of every path, class, caption and file size, as hex."""
        digest = hashlib.sha256(self.kind.encode())
        sizes: dict[str, int] = {}
        for item in self.items:
            parts = split_reference(item.path)
            file = parts[0] if parts else item.path
            if file not in sizes:
                sizes[file] = _size(self.root / file)
            digest.update(repr((item, sizes[file])).encode())
        return digest.hexdigest()


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1
