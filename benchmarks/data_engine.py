"""The data engine against the published way of doing it: CutMix, encoding, loading; ratios within one run.

    python benchmarks/data_engine.py [cutmix] [cores] [encoding] [loader] [memory]

Pictures are 500 x 375 JPEGs of about ImageNet's size in bytes, drawn as noise of many scales.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import loading
from kilopix.data.augmented import Augmenter
from kilopix.data.cutmix import paste_at
from kilopix.data.engines import run_local
from kilopix.data.manifest import Manifest, Row
from kilopix.data.parts import Parts, TableJob, threads_here
from kilopix.data.pixels import read_square
from kilopix.data.rows import write_rows
from kilopix.pace import Pace
from kilopix.pretrained.autoencoder import SDAutoencoderConfig, encode_images, load_autoencoder
from kilopix.pretrained.text_encoder import T5Config, encode_in_batches, load_text_encoder
from kilopix.stages.augment import AugmentPart
from timing import side_by_side

SIDE, QUALITY = 256, 95


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
    with tempfile.TemporaryDirectory() as name, threads_here(1):
        folder, count = Path(name), 96
        augmenter = photographs(folder, count)
        outs = (folder / f"out{i}" for i in range(9))  # a new folder each time, as when it is used
        planned = [augmenter.plan(augmenter.rows[i]) for i in range(count)]
        file = folder / "plain.jpg"

        def usual(as_floats: bool) -> None:
            for row in planned:
                plain_pillow(augmenter, row, file, as_floats)

        works = {
            "kilopix": lambda: AugmentPart(augmenter, next(outs), count)(0),
            "pillow": lambda: usual(False),
            "floats": lambda: usual(True),
            "opened": lambda: [read_square(folder, row.base, SIDE) for row in planned],
        }
        taken = side_by_side(works, 8)
    rate = {name: f"{count / one:.0f}/s" for name, one in taken.items()}
    print(f"  kilopix {rate['kilopix']}, plain Pillow {rate['pillow']}, as floats {rate['floats']}")
    print(f"  decoding and resizing alone {rate['opened']}")
    print(f"  {taken['pillow'] / taken['kilopix']:.2f} times plain Pillow, ", end="")
    print(f"{taken['floats'] / taken['kilopix']:.2f} times the published way")


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
    with tempfile.TemporaryDirectory() as name, torch.inference_mode(), threads_here(1):
        folder = Path(name)
        configs = write_networks(folder)
        autoencoder = AutoencoderKL.from_pretrained(str(folder / "kl"), low_cpu_mem_usage=False).eval()
        text = T5EncoderModel.from_pretrained(folder / "t5").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / "t5")
        ours, our_text = load_autoencoder(configs[0], None), load_text_encoder(configs[1])
        pace = Pace.of(our_text, ours, "cpu", side)

        def one_at_a_time(with_text: bool = True) -> None:
            for image, caption in zip(images, texts, strict=True):
                mean = autoencoder.encode(image[None]).latent_dist.mean
                std = autoencoder.encode(image[None]).latent_dist.std
                assert mean.shape == std.shape
                if with_text:
                    text(**tokenizer(caption, return_tensors="pt", return_token_type_ids=False))

        def in_batches(with_text: bool = True) -> None:
            for batch in images.split(pace.images.most):
                encode_images(ours, batch)
            if with_text:
                encode_in_batches(our_text, texts, pace.tokens.most)

        works = {
            "usual": one_at_a_time,
            "kilopix": in_batches,
            "usual, pictures": lambda: one_at_a_time(False),
            "kilopix, pictures": lambda: in_batches(False),
        }
        taken = side_by_side(works, 3)
    fast, usual = count / taken["kilopix"], count / taken["usual"]
    alone = taken["usual, pictures"] / taken["kilopix, pictures"]
    print(f"  {fast:.0f} pictures with captions/s against {usual:.0f}: {fast / usual:.2f} times; ", end="")
    print(f"the autoencoder alone {alone:.2f} times")


MEASURES = {
    "cutmix": cutmix,
    "cores": cores,
    "encoding": encoding,
    "loader": loading.loader,
    "memory": loading.memory,
}


def main(names: list[str]) -> None:
    """Run the measurements of these names, or all."""
    for name in names or list(MEASURES):
        MEASURES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
