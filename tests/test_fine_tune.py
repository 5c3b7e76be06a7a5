"""An aesthetic-style fine-tune: pictures chosen by a column's threshold move the score of new pictures up."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tiny import Cli

NAMES = ("fox", "owl", "cup", "car", "cat", "bus")
TINY_NET = ["model.width=48", "model.depth=2", "model.heads=2", "model.registers=1", "model.text_layers=0"]
SETTINGS = [
    *TINY_NET,
    "data.image_size=32",
    "training.batch_size=16",
    "training.log_every=160",
    "training.checkpoint_every=100000",
    "training.average.half_life_images=200",
    "training.schedule.warmup_images=32",
    "objective.augment_probability=0",
    "sampling.steps=6",
    "sampling.guidance.scale=1",
]


def write_set(folder: Path) -> Path:
    """Dark and bright pictures in equal shares; the column `aesthetic` is their brightness out of ten."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(96):
        brightness = (3.0 if i % 2 else 7.0) + rng.normal(0, 0.4)
        pixels = np.clip(25.5 * brightness + rng.normal(0, 12, (32, 32, 3)), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        caption = f"A photo of a {NAMES[i // 2 % 4]}."
        rows.append({"image": {"bytes": out.getvalue()}, "caption": caption, "aesthetic": brightness})
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "all.parquet")
    return folder


def score(run: Path) -> float:
    """The mean brightness, out of ten, of pictures for prompts that were in no training."""
    from kilopix import Generator

    prompts = [f"a drawing of a {name}" for name in NAMES[4:]]
    images = Generator.from_pretrained(run, device="cpu")(prompts, seeds=range(8))
    return float(np.mean([np.asarray(image) for image in images])) / 25.5


def rate(value: str) -> list[str]:
    """Settings of AdamW at a learning rate."""
    return ["optimizer.kind=adamw", f"optimizer.lr={value}"]


def test_a_fine_tune_on_chosen_pictures_raises_their_score(tmp_path: Path, cli: Cli):
    def do(*command: object) -> str:
        done = cli(*command)
        assert done.code == 0, done.err
        return done.out

    source = write_set(tmp_path / "set")
    cpu = ["--device", "cpu"]
    given = ["--captioner", "given", "--workers", 1]
    do("caption", source, tmp_path / "all.parquet", *given)
    chosen = do("caption", source, tmp_path / "chosen.parquet", *given, "--where", "aesthetic>=5")
    assert "48 of 96 pictures are selected" in chosen
    do("encode", tmp_path / "all.parquet", tmp_path / "shards", *SETTINGS, *cpu, "--workers", 1)
    codec = ["--codec", tmp_path / "shards", "--workers", 1]
    do("encode", tmp_path / "chosen.parquet", tmp_path / "chosen", *SETTINGS, *cpu, *codec)
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    do("train", tmp_path / "shards", run, *SETTINGS, "training.images=1600", *rate("4e-3"), *cpu)
    shorter = ["training.images=640", *rate("1e-3")]
    do("train", tmp_path / "chosen", tuned, *SETTINGS, *shorter, *cpu, "--start-from", run)
    before, after = score(run), score(tuned)
    assert before == pytest.approx(5, abs=1)
    assert after > before + 0.8


def test_a_codec_of_other_settings_is_refused(tiny_demo: Path, tmp_path: Path, cli: Cli):
    codec = ["--codec", tiny_demo / "shards", "autoencoder.channels=8"]
    done = cli("encode", tiny_demo / "captions.parquet", tmp_path / "s", "data.image_size=32", *codec)
    assert "was fitted with" in done.err
    assert not (tmp_path / "s").exists()
