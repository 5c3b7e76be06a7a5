"""A thousand damaged files: no crash, no hang, none lost from the report."""

import io
import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from containers import write_parquet, write_tar
from kilopix.data.manifest import read_manifest
from kilopix.data.sources import BrokenImage, decode, open_picture
from tiny import Cli

COUNT = 1000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")


def whole(rng: random.Random, kind: str) -> bytes:
    """A sound picture of some size, with soft shapes and some noise, and metadata that can be damaged."""
    width, height = rng.randrange(16, 90), rng.randrange(16, 90)
    noise = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 60, (height, width, 3))
    ramp = np.linspace(0, 190, width)[None, :, None] + np.zeros((height, 1, 3))
    picture = Image.fromarray((noise + ramp).astype(np.uint8))
    exif = Image.Exif()
    exif[274], exif[271] = rng.randrange(1, 9), "a camera"
    file = io.BytesIO()
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
    picture.save(file, kind, **options)
    return file.getvalue()


def truncated(rng: random.Random) -> bytes:
    content = whole(rng, rng.choice(FORMATS))
    return content[: rng.randrange(1, len(content) * 9 // 10)]


def bits_flipped(rng: random.Random) -> bytes:
    content = bytearray(whole(rng, rng.choice(FORMATS)))
    reach = len(content) if rng.random() < 0.5 else min(len(content), 200)  # half of them in the header
    for _ in range(rng.choice([1, 3, 10, 50])):
        content[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(content)


def wrong_ending(rng: random.Random) -> bytes:
    return whole(rng, rng.choice(FORMATS[1:]))  # its name says .jpg


def no_bytes(rng: random.Random) -> bytes:
    return b""


def png(width: int, height: int, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG with a header of one's choice."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    text = chunk(b"zTXt", b"Comment\0\0" + extra) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@cache
def long_comment() -> bytes:
    return zlib.compress(bytes(80_000_000))


def bomb(rng: random.Random) -> bytes:
    """A small file whose pixels would fill the memory."""
    if rng.randrange(2) == 0:
        side = rng.randrange(9_500, 60_000)
        return png(side, side, zlib.compress(bytes(100_000)))
    content = bytearray(whole(rng, "JPEG"))
    at = next(i for i in range(len(content) - 1) if content[i] == 0xFF and content[i + 1] in (0xC0, 0xC2))
    content[at + 5 : at + 9] = struct.pack(">HH", 65_000, rng.randrange(2_000, 65_000))
    return bytes(content)


def long_note(rng: random.Random) -> bytes:
    """Whole pixels, beside which lies a comment that would fill the memory if it were unpacked."""
    return png(64, 64, zlib.compress(bytes(65 * 64)), long_comment())


def one_pixel(rng: random.Random) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", rng.choice([(1, 1), (1, 300), (300, 1)])).save(file, rng.choice(["PNG", "BMP", "JPEG"]))
    return file.getvalue()


def text(rng: random.Random) -> bytes:
    start = rng.choice(
        ["%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", "<svg>", "{", "not found ", "P6\n"]
    )
    return (start + "text " * rng.randrange(1, 400)).encode()


DAMAGES: list[Callable[[random.Random], bytes]] = [
    truncated, bits_flipped, wrong_ending, no_bytes, bomb, long_note, one_pixel, text
]  # fmt: skip
ALWAYS_REFUSED = {"no_bytes", "bomb", "one_pixel", "text"}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The content of every file by its path, which names its damage."""
    made = {}
    for i in range(COUNT):
        rng = random.Random(i)
        damage = DAMAGES[i % len(DAMAGES)]
        made[f"fox{i % 3}/{i:04d}-{damage.__name__}.jpg"] = damage(rng)
    return made


def damage_of(path: str) -> str:
    return path.rsplit("-", 1)[1].removesuffix(".jpg")


def check(cli: Cli, place: Path, expected: set[str], damage: Callable[[str], str], out: Path) -> None:
    done = cli("caption", place, out, "--captioner", "aio", "--workers", 2)
    assert done.code == 0, done.err
    manifest = read_manifest(out)
    usable = {row.path for row in manifest.rows}
    left_out = {row.path: row.error for row in manifest.failed}
    assert not usable & set(left_out)
    assert usable | set(left_out) == expected
    assert len(manifest.rows) + len(manifest.failed) == len(expected) == COUNT
    listed = [
        json.loads(line) for line in out.with_name(out.stem + ".failures.jsonl").read_text().splitlines()
    ]
    assert {line["file"]: line["error"] for line in listed} == left_out
    assert all(left_out.values())
    kinds = Counter(damage(path) for path in usable)
    assert not ALWAYS_REFUSED & set(kinds), kinds
    for kind in ("wrong_ending", "long_note"):
        assert kinds[kind] == sum(damage(path) == kind for path in expected)
    assert 0 < kinds["bits_flipped"] < sum(damage(path) == "bits_flipped" for path in expected)
    reasons = {kind: " ".join(e for p, e in left_out.items() if damage(p) == kind) for kind in ALWAYS_REFUSED}
    assert "decompression bomb" in reasons["bomb"]
    assert "pixels; at least" in reasons["one_pixel"]
    assert "an empty file" in reasons["no_bytes"] or "holds no bytes" in reasons["no_bytes"]
    # What is usable can be opened once more, at any size.
    for path in sorted(usable)[::7]:
        assert open_picture(manifest.root, path, 32).mode == "RGB"


@pytest.mark.timeout(240)
def test_files_in_class_folders(files: dict[str, bytes], tmp_path: Path, cli: Cli):
    for path, content in files.items():
        (tmp_path / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / path).write_bytes(content)
    check(cli, tmp_path / "photos", set(files), damage_of, tmp_path / "c.parquet")


@pytest.mark.timeout(240)
def test_members_of_a_tar_shard(files: dict[str, bytes], tmp_path: Path, cli: Cli):
    members = files | {path.removesuffix("jpg") + "cls": b"fox" for path in files}
    write_tar(tmp_path / "0.tar", members)
    check(cli, tmp_path / "0.tar", {f"0.tar#{p}" for p in files}, damage_of, tmp_path / "c.parquet")


@pytest.mark.timeout(240)
def test_rows_of_a_parquet_file(files: dict[str, bytes], tmp_path: Path, cli: Cli):
    paths = list(files)
    (tmp_path / "classes.txt").write_text("".join(f"{i} fox\n" for i in range(COUNT)))
    write_parquet(tmp_path / "0.parquet", list(files.values()))
    expected = {f"0.parquet#{i}" for i in range(COUNT)}
    check(
        cli, tmp_path / "0.parquet", expected, lambda p: damage_of(paths[int(p.split("#")[1])]),
        tmp_path / "c.parquet",
    )  # fmt: skip


@pytest.mark.timeout(240)
def test_every_place_of_every_format_can_be_damaged():
    """Each byte of the header of each format, set to three values: a picture or a reason, nothing else."""
    tried = 0
    for kind in FORMATS:
        content = whole(random.Random(kind), kind)
        for at in range(min(len(content), 400)):
            for value in (0x00, 0x7F, 0xFF):
                damaged = content[:at] + bytes([value]) + content[at + 1 :]
                tried += 1
                try:
                    found = decode(damaged, 32).mode
                except BrokenImage as error:
                    found = str(error)
                assert found
    assert tried > 6000
