"""Loading batches from shards against tars of NumPy members, as the published data are stored and read.

The tars hold the arrays alone, without the pictures and captions that lie between them in the published
ones and would have to be skipped.
"""

import io
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kilopix.data.checked_batches import load_samples
from kilopix.data.loader import SampleOrder, collate
from kilopix.data.manifest import Row
from kilopix.data.part_facts import LatentSums, PartFacts, gather
from kilopix.data.parts import threads_here, write_table
from kilopix.data.shards import ShardIndex, Shards, to_shard, write_index
from kilopix.data.text_storage import STORAGES, TextStorage
from kilopix.types import LatentMoments, TextStates
from timing import side_by_side

SIDE = 256
WIDTH, LATENT = 2048, (4, 32, 32)  # of Flan-T5-XL, and of the autoencoder at 256 pixels


def write_shards(folder: Path, count: int, storage: TextStorage, width: int, tokens: tuple[int, int]) -> None:
    """Shards of random latents and text states, each plain picture with an augmented version."""
    generator = torch.Generator().manual_seed(0)
    per_file = 64
    paths = []
    for kind in ("plain", "augmented"):
        for start in range(0, count, per_file):
            here = min(per_file, count - start)
            latents = torch.randn(here, *LATENT, generator=generator)
            moments = LatentMoments(latents, latents.abs() * 0.1)
            lengths = torch.randint(*tokens, (here,), generator=generator).tolist()
            texts = [torch.randn(n, width, generator=generator) for n in lengths]
            rows = [
                Row(f"{kind}/{i}", "class", "A picture.", kind="plain" if kind == "plain" else "cutmix")
                for i in range(start, start + here)
            ]
            if kind == "augmented":
                rows = [
                    Row(r.path, "class", r.caption, kind="cutmix", base=r.path.replace(kind, "plain"))
                    for r in rows
                ]
            facts = PartFacts(
                text_encoder_name="random",
                text_width=width,
                text_fingerprint="r",
                autoencoder_name="random",
                autoencoder_fingerprint="r",
                latent_shape=LATENT,
                left_out=[],
                sums=LatentSums.of(moments),
            )
            short = [text[:8] for text in texts]
            table = facts.put_into(
                to_shard(rows, moments, texts, short, storage),
                TextStates(torch.zeros(1, 1, width), torch.ones(1, 1, dtype=torch.bool))
                if not paths
                else None,
            )
            paths.append(folder / f"{kind}-{start // per_file:05d}.arrow")
            write_table(paths[-1], table)
    gathered = gather(paths, folder)
    index = ShardIndex(
        image_size=SIDE,
        latent_shape=LATENT,
        text_width=width,
        text_encoder_name="random",
        text_encoder={"max_tokens": tokens[1]},
        text_fingerprint="r",
        text_storage=storage,
        autoencoder_name="random",
        autoencoder={"kind": "random"},
        autoencoder_fingerprint="r",
        latent_statistics=gathered.sums.statistics(),
        plain=count,
        augmented=count,
        left_out=0,
        psnr_db=None,
        files=gathered.files,
    )
    write_index(folder, index)


def write_tar(path: Path, shards: Shards, kind: str, dtype: np.dtype) -> None:
    """The same samples as tar members in NumPy's format, as the published shards hold them."""
    with tarfile.open(path, "w") as tar:
        for i in range(len(shards)):
            sample = shards.plain(i) if kind == "plain" else shards.augmented(i)
            assert sample is not None
            assert sample.std is not None
            text = sample.text.values.view(np.float16).astype(dtype)
            for name, array in (("mean", sample.mean), ("std", sample.std), ("text", text)):
                buffer = io.BytesIO()
                np.save(buffer, array)
                info = tarfile.TarInfo(f"{i:06d}.{name}.npy")
                info.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(info, buffer)


def read_tar(path: Path) -> list[dict[str, np.ndarray]]:
    """All samples of a tar, read as a stream."""
    samples: list[dict[str, np.ndarray]] = []
    with tarfile.open(path, "r|") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            name = member.name.split(".")[1]
            if name == "mean":
                samples.append({})
            samples[-1][name] = np.load(io.BytesIO(file.read()))
    return samples


def tar_batches(folder: Path, size: int) -> None:
    """Batches from both streams: the augmented one is read whole, since a stream cannot skip by choice."""
    plain, other = read_tar(folder / "plain.tar"), read_tar(folder / "augmented.tar")
    wanted = np.random.default_rng(0).random(len(plain)) < 0.3
    chosen = [b if take else a for a, b, take in zip(plain, other, wanted, strict=True)]
    for start in range(0, len(chosen), size):
        batch = chosen[start : start + size]
        torch.from_numpy(np.stack([s["mean"] for s in batch])).float()
        torch.from_numpy(np.stack([s["std"] for s in batch])).float()
        text = torch.zeros(len(batch), max(len(s["text"]) for s in batch), WIDTH)
        for i, sample in enumerate(batch):
            text[i, : len(sample["text"])] = torch.from_numpy(sample["text"])


def loader() -> None:
    """Samples a second, from memory that all have been read into; the tar's batches are in float32."""
    count, size = 256, 32
    print(f"loading: latents {LATENT}, 77 to 180 tokens of {WIDTH}, batches of {size}, pages in memory")
    rng = np.random.default_rng(0)

    def batches(shards: Shards, dtype: torch.dtype) -> None:
        order = SampleOrder(count, 0)
        for first in range(0, count, size):
            wanted = (rng.random(size) < 0.3).tolist()
            samples, _ = load_samples(shards, order, first, range(size), wanted, [False] * size)
            collate(samples, shards.index.text_storage, dtype)

    with tempfile.TemporaryDirectory() as name, threads_here(1):
        works: dict[str, Callable[[], object]] = {}
        for storage in STORAGES:
            folder = Path(name) / storage
            write_shards(folder, count, storage, WIDTH, (77, 180))
            shards = Shards(folder)
            for dtype in (torch.float32, torch.bfloat16):
                works[f"{storage} to {dtype}"] = partial(batches, shards, dtype)
            for stored in (np.dtype(np.float16), np.dtype(np.float32)) if storage == "float16" else ():
                place = Path(name) / f"tar-{stored}"
                place.mkdir()
                for kind in ("plain", "augmented"):
                    write_tar(place / f"{kind}.tar", shards, kind, stored)
                works[f"tar {stored}"] = partial(tar_batches, place, size)
        taken = side_by_side(works)
    tar = [taken["tar float16"], taken["tar float32"]]
    rates = [f"{count / one:.0f} samples/s" for one in tar]
    print(f"  tar of npy, batches in float32: stored as float16 {rates[0]}, as float32 {rates[1]}")
    for what, one in taken.items():
        if not what.startswith("tar"):
            print(f"  shards of {what}: {count / one:.0f} samples/s, ", end="")
            print(f"{tar[0] / one:.2f} and {tar[1] / one:.2f} times")


def mib(what: str) -> float:
    """Memory of this process in MiB: `RssAnon`, which no file backs, or `RssFile`, mapped pages of files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def memory() -> None:
    """Memory over a million samples."""
    print("memory over a million samples")
    with tempfile.TemporaryDirectory() as name:
        folder, count, size = Path(name), 4096, 64
        write_shards(folder, count, "float16", 64, (8, 24))
        whole = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        shards, order = Shards(folder), SampleOrder(count, 0)
        started = time.perf_counter()
        for first in range(0, 1_000_000, size):
            wanted = [(first + i) % 10 < 3 for i in range(size)]
            collate(load_samples(shards, order, first, range(size), wanted, [False] * size)[0])
            if first + size in (size * 1000, size * 7813) or first + size >= 1_000_000:
                print(f"  after {first + size:,} samples: {mib('RssAnon'):.0f} MiB of its own, ", end="")
                print(f"{mib('RssFile'):.0f} MiB mapped of files, of which the shards are {whole:.0f}")
        print(f"  {1_000_000 / (time.perf_counter() - started):.0f} samples/s")
