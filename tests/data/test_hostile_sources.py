"""Sources that were made to harm: bombs, sizes that cannot be, members and arrays that lead elsewhere."""

import io
import struct
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kilopix.data.sources import BrokenImage, decode, read_picture
from kilopix.data.sources.tars import _array, tar_pictures
from kilopix.types import UserError


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, notes: bytes = b"") -> bytes:
    rows = zlib.compress((b"\0" + b"\x55" * 48) * 16)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + notes + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


PNG = _png(16, 16)
BOMB = zlib.compress(bytes(64 * 2**20), 9)


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 1), (1, 1), (10_000, 10_000)])
def test_an_image_that_says_it_is_too_large_is_not_decoded(size: tuple[int, int]):
    with pytest.raises(BrokenImage):
        decode(_png(*size))


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_notes_that_unpack_without_end_are_left_out(kind: bytes):
    assert decode(_png(16, 16, _chunk(kind, b"a\0\0" + BOMB))).size == (16, 16)


def test_of_an_animation_without_end_the_first_image_is_taken():
    assert decode(_png(16, 16, _chunk(b"acTL", struct.pack(">II", 10**6, 0)))).size == (16, 16)
    out = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), (i, 0, 0)) for i in range(256)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert decode(out.getvalue()).size == (16, 16)


def _npy(shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    head = str({"descr": kind, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head


def _npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.zeros(1))
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(_npy((10**12,)), _npy((-1,)), _npy((2, 2), "|O"), _npy((2**63, 2**63)), _npy((0,) * 100), _npz()),
        *(b"", b"PK\x03\x04abcd", b"\x80\x04K\x01.", b"\x93NUMPY\x09\0"),
    ],
)
def test_an_array_that_cannot_be_is_a_broken_image(content: bytes):
    with pytest.raises(BrokenImage, match="text"):
        _array(content, "text")


def _tar(path: Path) -> Path:
    members = {"../up.png": PNG, "/etc/root.png": PNG, "ok.png": PNG, "ok.txt": b"fox", "deep.png": PNG}
    with tarfile.open(path, "w") as file:
        for name, content in (members | {"deep.json": b"[" * 10**5}).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        for name, kind in (
            ("l.png", tarfile.SYMTYPE),
            ("h.png", tarfile.LNKTYPE),
            ("f.png", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../../etc/passwd"
            file.addfile(member)
    return path


def test_members_are_read_where_they_lie_and_links_out_are_passed_over(tmp_path: Path):
    items, passed, _ = tar_pictures(tmp_path, [_tar(tmp_path / "a.tar")])
    assert [item.path for item in items if not item.error] == [
        "a.tar#../up.png",
        "a.tar#/etc/root.png",
        "a.tar#ok.png",
    ]
    assert {path for path, _ in passed} == {"a.tar#l.png", "a.tar#h.png", "a.tar#f.png"}
    for item in items:
        assert read_picture(tmp_path, item.path) == PNG
    for path in ("a.tar#l.png", "a.tar#h.png", "a.tar#nothing.png"):
        with pytest.raises(BrokenImage):
            read_picture(tmp_path, path)


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\xff" * 11 + b"\xf0", b"-0000000001\0"]
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_a_member_of_a_size_that_cannot_be_ends_the_file(size: bytes, kind: bytes, tmp_path: Path):
    path = _tar(tmp_path / "a.tar")
    raw = bytearray(path.read_bytes())
    raw[124:136], raw[156:157], raw[148:156] = size, kind, b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    path.write_bytes(raw)
    with suppress(UserError):
        items, passed, _ = tar_pictures(tmp_path, [path])
        assert items == [] or any("damaged" in why for _, why in passed)
    with pytest.raises(BrokenImage):
        read_picture(tmp_path, "a.tar#ok.png")
