"""The data engine against the published way of doing it: CutMix, encoding, loading; ratios within one run.

    python benchmarks/data_engine.py [cutmix] [cores] [encoding] [loader] [memory]

Pictures are 500 x 375 JPEGs of about ImageNet's size in bytes, drawn as noise of many scales.
"""

import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kilopix.data.augmented import Augmenter
from kilopix.data.cutmix import paste_at
from kilopix.data.engines import run_local
from kilopix.data.loader import SampleOrder, load_batch
from kilopix.data.manifest import Manifest, Row
from kilopix.data.part_facts import LatentSums, PartFacts, gather
from kilopix.data.parts import Parts, TableJob, one_thread_here, write_table
from kilopix.data.pixels import read_square
from kilopix.data.rows import write_rows
from kilopix.data.shards import ShardIndex, Shards, to_shard, write_index
from kilopix.data.text_storage import TextStorage
from kilopix.pretrained.autoencoder import SDAutoencoderConfig, encode_images, load_autoencoder
from kilopix.pretrained.text_encoder import T5Config, encode_in_batches, load_text_encoder
from kilopix.stages.augment import AugmentPart
from kilopix.stages.encode import Pace
from kilopix.types import LatentMoments, TextStates

SIDE, QUALITY = 256, 95
WIDTH, LATENT = 2048, (4, 32, 32)  # of Flan-T5-XL, and of the autoencoder at 256 pixels


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of several runs, after one that is not counted, in seconds of the processor.

    On one core these are the seconds of a clock, but for other programs that share the core.
    """
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def photographs(folder: Path, count: int) -> Augmenter:
    """Files of 500 x 375 pixels in four classes, and what makes CutMix pictures of them."""
    for i in range(min(count, 48)):
        rng = np.random.default_rng(i)
        pixels = np.zeros((375, 500, 3), np.float32)
        for k in range(1, 8):
            cells = rng.normal(size=(2**k + 1, 2**k + 1, 3)).astype(np.float32)
            grown = [
                Image.fromarray(cells[..., c]).resize((500, 375), Image.Resampling.BICUBIC) for c in range(3)
            ]
            pixels += np.stack([np.asarray(g) for g in grown], -1) / 2 ** (0.75 * k)
        pixels += rng.normal(size=(375, 500, 1)).astype(np.float32) * 0.16
        low, high = pixels.min(), pixels.max()
        file = folder / f"{i}.jpg"
        Image.fromarray(((pixels - low) / (high - low) * 255).astype(np.uint8)).save(file, quality=92)
    rows = []
    for i in range(count):
        path = f"{i}.jpg"
        if i >= 48:
            (folder / path).write_bytes((folder / f"{i % 48}.jpg").read_bytes())
        rows.append(Row(path, f"class {i % 4}", "A picture.", width=500, height=375))
    size = np.mean([(folder / row.path).stat().st_size for row in rows])
    print(f"  {count} JPEGs of 500 x 375 pixels, {size / 1e3:.0f} kB each")
    manifest = Manifest(folder, rows, {})
    return Augmenter(write_rows(manifest, folder / "rows.arrow"), "cutmix", "all", SIDE, 0)


def plain_pillow(augmenter: Augmenter, planned: Row, out: Path, as_floats: bool) -> None:
    """CutMix as it is usually written: both pictures whole, both resized to 256, the partner once more."""

    def whole(path: str) -> Image.Image:
        image = Image.open(augmenter.rows.root / path).convert("RGB")
        scale = SIDE / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        )
        left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
        return image.crop((left, top, left + SIDE, top + SIDE))

    where = paste_at(planned.setting, planned.box, SIDE)
    base, partner = whole(planned.base), whole(planned.partner)
    if where.partner_side != SIDE:
        partner = partner.resize((where.partner_side,) * 2, Image.Resampling.BICUBIC)
    partner = partner.crop(where.partner_box)
    if as_floats:  # as tensors in [0, 1], which is how the published code pastes
        x0, y0, x1, y1 = where.box
        pasted = torch.from_numpy(np.array(base)).permute(2, 0, 1).float() / 255
        pasted[:, y0:y1, x0:x1] = torch.from_numpy(np.array(partner)).permute(2, 0, 1).float() / 255
        base = Image.fromarray((pasted * 255).round().byte().permute(1, 2, 0).numpy())
    else:
        base.paste(partner, where.box[:2])
    base.save(out, "JPEG", quality=QUALITY, subsampling=0)


def cutmix() -> None:
    """CutMix pictures a second on one core, decoding and writing included."""
    print("CutMix from 500 x 375 to 256 pixels, one core")
    with tempfile.TemporaryDirectory() as name, one_thread_here():
        folder, count = Path(name), 96
        augmenter = photographs(folder, count)
        outs = (folder / f"out{i}" for i in range(9))  # a new folder each time, as when it is used
        planned = [augmenter.plan(augmenter.rows[i]) for i in range(count)]
        file = folder / "plain.jpg"

        def usual(as_floats: bool) -> None:
            for row in planned:
                plain_pillow(augmenter, row, file, as_floats)

        opened = seconds(lambda: [read_square(folder, row.base, SIDE) for row in planned])
        fast, pillow, floats = (
            seconds(lambda: AugmentPart(augmenter, next(outs), count)(0)),
            seconds(lambda: usual(False)),
            seconds(lambda: usual(True)),
        )
    rates = [f"{count / taken:.0f}/s" for taken in (fast, pillow, floats)]
    print(f"  kilopix {rates[0]}, plain Pillow {rates[1]}, as floats {rates[2]}")
    print(f"  decoding and resizing alone {count / opened:.0f}/s")
    print(f"  {pillow / fast:.2f} times plain Pillow, {floats / fast:.2f} times the published way")


def cores() -> None:
    """The same in processes: from the first part that is done to the last, so that starting is left out."""
    print("CutMix in processes")
    with tempfile.TemporaryDirectory() as name:
        folder, count, rows = Path(name), 1200, 25
        augmenter = photographs(folder, count)
        make = AugmentPart(augmenter, folder / "out", rows)
        rates = []
        for workers in (1, 2):
            parts, times = Parts(folder / f"parts{workers}", count // rows), []
            job = TableJob(make, parts)
            run_local(job, parts.missing(), workers, lambda _, times=times: times.append(time.perf_counter()))
            steady = times[workers:]
            rates.append(rows * (len(steady) - 1) / (steady[-1] - steady[0]))
    print(f"  1 process {rates[0]:.0f}/s, 2 processes {rates[1]:.0f}/s: {rates[1] / rates[0]:.2f} times")


def write_networks(folder: Path) -> tuple[SDAutoencoderConfig, T5Config]:
    """A small AutoencoderKL and a small T5 encoder, random, in folders as the hub has them."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5EncoderModel
    from transformers import T5Config as HubT5Config

    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
    ).save_pretrained(str(folder / "kl"))
    config = HubT5Config(vocab_size=1000, d_model=256, d_kv=32, d_ff=512, num_layers=4, num_heads=8)
    T5EncoderModel(config).save_pretrained(folder / "t5")
    words = ["<pad>", "<unk>", *(f"w{i}" for i in range(998))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(folder / "t5")
    return SDAutoencoderConfig(name=str(folder / "kl")), T5Config(name=str(folder / "t5"), max_tokens=256)


def encoding() -> None:
    """Small networks of the paper's classes: batches, one pass, against one at a time, two passes."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import AutoTokenizer, T5EncoderModel

    print("encoding with a small AutoencoderKL at 128 pixels and a small T5 encoder, one core")
    generator, count, side = torch.Generator().manual_seed(0), 64, 128
    images = torch.rand(count, 3, side, side, generator=generator) * 2 - 1
    lengths = torch.randint(60, 140, (count,), generator=generator).tolist()
    texts = [" ".join(f"w{i}" for i in torch.randint(0, 998, (n,), generator=generator)) for n in lengths]
    with tempfile.TemporaryDirectory() as name, torch.inference_mode(), one_thread_here():
        folder = Path(name)
        configs = write_networks(folder)
        autoencoder = AutoencoderKL.from_pretrained(str(folder / "kl"), low_cpu_mem_usage=False).eval()
        text = T5EncoderModel.from_pretrained(folder / "t5").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / "t5")
        ours, our_text = load_autoencoder(configs[0], None), load_text_encoder(configs[1])
        pace = Pace.of("cpu", side)

        def one_at_a_time(with_text: bool = True) -> None:
            for image, caption in zip(images, texts, strict=True):
                mean = autoencoder.encode(image[None]).latent_dist.mean
                std = autoencoder.encode(image[None]).latent_dist.std
                assert mean.shape == std.shape
                if with_text:
                    text(**tokenizer(caption, return_tensors="pt", return_token_type_ids=False))

        def in_batches(with_text: bool = True) -> None:
            for batch in images.split(pace.images):
                encode_images(ours, batch)
            if with_text:
                encode_in_batches(our_text, texts, pace.tokens)

        whole = [seconds(work, 2) for work in (one_at_a_time, in_batches)]
        alone = [seconds(lambda work=work: work(False), 2) for work in (one_at_a_time, in_batches)]
    print(f"  {count / whole[1]:.0f} pictures with captions/s against {count / whole[0]:.0f}: ", end="")
    print(f"{whole[0] / whole[1]:.2f} times; the autoencoder alone {alone[0] / alone[1]:.2f} times")


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
    """Samples a second, from memory that both have been read into, as batches in float32."""
    count, size = 256, 32
    print(f"loading: latents {LATENT}, 77 to 180 tokens of {WIDTH}, batches of {size}, pages in memory")
    rng = np.random.default_rng(0)
    rates: dict[str, float] = {}
    for storage, dtype in (
        ("float16", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("int8", torch.bfloat16),
    ):
        with tempfile.TemporaryDirectory() as name, one_thread_here():
            folder = Path(name)
            write_shards(folder, count, storage, WIDTH, (77, 180))
            shards, order = Shards(folder), SampleOrder(count, 0)

            def ours(shards: Shards = shards, order: SampleOrder = order, dtype: torch.dtype = dtype) -> None:
                for first in range(0, count, size):
                    wanted = (rng.random(size) < 0.3).tolist()
                    load_batch(shards, order, first, wanted, [False] * size, dtype=dtype)

            rates[storage] = count / seconds(ours)
            if storage == "float16":
                for stored in (np.dtype(np.float16), np.dtype(np.float32)):
                    for kind in ("plain", "augmented"):
                        write_tar(folder / f"{kind}.tar", shards, kind, stored)
                    rates[f"tar {stored}"] = count / seconds(
                        lambda folder=folder: tar_batches(folder, size), 2
                    )
    tar = [rates["tar float16"], rates["tar float32"]]
    print(
        f"  tar of npy, batches in float32: {tar[0]:.0f} samples/s stored as float16, {tar[1]:.0f} as float32"
    )
    for storage, what in (
        ("float16", "float16, batches in float32"),
        ("bfloat16", "bfloat16, batches as stored"),
        ("int8", "int8, batches in bfloat16"),
    ):
        print(f"  shards of {what}: {rates[storage]:.0f} samples/s, ", end="")
        print(f"{rates[storage] / tar[0]:.2f} and {rates[storage] / tar[1]:.2f} times")


def anonymous_mib() -> float:
    """Memory of this process that no file backs, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def memory() -> None:
    """Memory over a million samples."""
    print("memory over a million samples")
    with tempfile.TemporaryDirectory() as name:
        folder, count, size = Path(name), 4096, 64
        write_shards(folder, count, "float16", 64, (8, 24))
        shards, order = Shards(folder), SampleOrder(count, 0)
        started = time.perf_counter()
        for first in range(0, 1_000_000, size):
            wanted = [(first + i) % 10 < 3 for i in range(size)]
            load_batch(shards, order, first, wanted, [False] * size)
            if first + size in (size * 1000, size * 7813) or first + size >= 1_000_000:
                print(f"  after {first + size:,} samples: {anonymous_mib():.0f} MiB")
        print(f"  {1_000_000 / (time.perf_counter() - started):.0f} samples/s")


MEASURES = {"cutmix": cutmix, "cores": cores, "encoding": encoding, "loader": loader, "memory": memory}


def main(names: list[str]) -> None:
    """Run the measurements of these names, or all."""
    for name in names or list(MEASURES):
        MEASURES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
