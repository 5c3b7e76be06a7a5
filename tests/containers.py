"""For tests of sources: small pictures that tell their number, and containers of them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def numbered(i: int) -> bytes:
    """A picture whose grey tells its number."""
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (i, i, i)).save(file, "PNG")
    return file.getvalue()


def number(image: Image.Image) -> int:
    assert image.size == (20, 16)
    return int(np.asarray(image)[3, 3, 0])


def write_parquet(path: Path, pictures: list[bytes | None], row_group: int = 7) -> None:
    column = pa.array([{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(pictures)])
    table = pa.table({"label": list(range(len(pictures))), "image": column})
    pq.write_table(table, path, row_group_size=row_group)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
