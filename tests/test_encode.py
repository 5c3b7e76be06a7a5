"""Encoding: online augmentation, storage of text, whitening, stored arrays; and looking at what was made."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from batches import load_batch
from hub_models import write_dc, write_kl, write_t5
from kilopix.data.captions import aio
from kilopix.data.loader import SampleOrder
from kilopix.data.manifest import read_manifest
from kilopix.data.parts import write_table
from kilopix.data.shards import Shards, read_index, write_index
from kilopix.data.text_storage import stack
from kilopix.data.verify import verify
from kilopix.generator import Generator
from kilopix.runtime import sha256_of_file
from tiny import TINY, Cli

SIZE = "data.image_size=32"
COUNT = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of pictures, and the manifest of their captions."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        file = folder / "images" / ("fox", "owl", "cup")[i % 3] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cells = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(cells).resize((64, 48), Image.Resampling.BICUBIC).save(file)
    from kilopix.stages.caption import run

    run(folder / "images", folder / "captions.parquet", "aio")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}


def test_any_number_of_workers_gives_the_same_shards(photos: Path, tmp_path: Path, cli: Cli):
    for name, workers in (("one", 1), ("two", 2)):
        done = cli(
            *("encode", photos / "captions.parquet", tmp_path / name, SIZE, "--online"),
            *("--workers", workers, "--part-rows", 5, "--device", "cpu"),
        )
        assert done.code == 0, done.err
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert len([name for name in one if name.endswith(".arrow")]) == 10
    assert one == two


def test_pictures_augmented_online_are_those_of_augment(photos: Path, tmp_path: Path, cli: Cli):
    captions = photos / "captions.parquet"
    assert cli("augment", captions, tmp_path / "cutmix", "--size", 32).code == 0
    offline = read_manifest(tmp_path / "cutmix" / "manifest.parquet")
    augmented = ("--augmented", tmp_path / "cutmix" / "manifest.parquet")
    assert cli("encode", captions, tmp_path / "offline", SIZE, *augmented).code == 0
    setting = "data.augment.setting=all"
    assert cli("encode", captions, tmp_path / "online", SIZE, setting, "--online").code == 0
    refused = cli("encode", captions, tmp_path / "both", SIZE, "--online", *augmented)
    assert "leave out --augmented" in refused.err
    first, second = Shards(tmp_path / "offline"), Shards(tmp_path / "online")
    assert second.column("augmented", "path").to_pylist() == [row.path for row in offline.rows]
    assert second.column("augmented", "caption").to_pylist() == [row.caption for row in offline.rows]
    assert read_index(tmp_path / "online").augmentation == {"kind": "cutmix", "setting": "all"}
    for i in range(COUNT):
        ours, theirs, plain = second.augmented(i), first.augmented(i), second.plain(i)
        assert ours is not None
        assert theirs is not None
        # Offline, the pictures go through JPEG once more.
        difference = np.abs(ours.mean.astype(float) - theirs.mean).mean()
        assert difference < 0.25 * np.abs(ours.mean.astype(float) - plain.mean).mean()


def test_captions_of_a_captioner_replace_the_composed_ones(photos: Path, tmp_path: Path, cli: Cli):
    assert cli("augment", photos / "captions.parquet", tmp_path / "cutmix", "--size", 32).code == 0
    made, out = tmp_path / "cutmix" / "manifest.parquet", tmp_path / "recaptioned.parquet"
    done = cli("caption", made, out, "--captioner", "aio")
    assert done.code == 0, done.err
    before, after = read_manifest(made), read_manifest(out)
    assert [row.caption for row in after.rows] == [aio(row.class_name) for row in before.rows]
    assert [(r.path, r.base, r.box) for r in after.rows] == [(r.path, r.base, r.box) for r in before.rows]
    shards = tmp_path / "shards"
    assert cli("encode", photos / "captions.parquet", shards, SIZE, "--augmented", out).code == 0
    assert Shards(shards).column("augmented", "caption").to_pylist() == [row.caption for row in after.rows]


def hub_settings(folder: Path, kind: str) -> list[str]:
    settings = [SIZE, f"text={{kind='t5', name='{write_t5(folder / 't5')}', max_tokens=12}}"]
    if kind == "dc":
        dc = write_dc(folder / "dc")
        return [*settings, f"autoencoder={{kind='diffusers', name='{dc}', downsampling=4}}"]
    return [*settings, f"autoencoder={{kind='sd', name='{write_kl(folder / 'kl', 4)}', whiten=true}}"]


@pytest.mark.parametrize("kind", ["sd", "dc"])
def test_whitened_latents_are_trained_on_and_restored(photos: Path, tmp_path: Path, cli: Cli, kind: str):
    settings = [*TINY, *hub_settings(tmp_path, kind)]
    shards, run = tmp_path / "shards", tmp_path / "run"
    done = cli("encode", photos / "captions.parquet", shards, *settings, "--online")
    assert done.code == 0, done.err
    index = read_index(shards)
    assert (index.text_encoder["max_tokens"], index.text_width) == (12, 16)
    opened = Shards(shards)
    batch = load_batch(opened, SampleOrder(COUNT, 0), 0, [False] * COUNT, [False] * COUNT)
    power = (batch.moments.mean.square() + batch.moments.std.square()).mean((0, 2, 3))
    torch.testing.assert_close(power, torch.ones_like(power), atol=0.02, rtol=0)
    assert np.abs(np.stack([opened.plain(i).mean for i in range(COUNT)]).std((0, 2, 3)) - 1).max() > 0.1
    assert cli("train", shards, run, *settings).code == 0
    generator = Generator.from_pretrained(run, "cpu")
    assert generator.whitening == index.latent_statistics
    decoded, decode = [], generator.autoencoder.decode
    generator.autoencoder.decode = lambda z: decoded.append(z) or decode(z)  # pyright: ignore
    (image,) = generator("an image of a fox")
    assert image.size == (32, 32)
    latents = generator.latents(["an image of a fox"], [0], generator.recipe.sampling)
    torch.testing.assert_close(decoded[0], index.latent_statistics.restore(latents), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_the_storage_of_text_is_the_recipes(photos: Path, tmp_path: Path, cli: Cli, storage: str):
    half, other = tmp_path / "half", tmp_path / "other"
    assert cli("encode", photos / "captions.parquet", half, SIZE).code == 0
    assert cli("encode", photos / "captions.parquet", other, SIZE, f"data.text_storage={storage}").code == 0
    first, second = Shards(half), Shards(other)
    assert second.index.text_storage == storage
    for i in (0, 7, COUNT - 1):
        exact = stack([first.plain(i).text], "float16").states
        stored = stack([second.plain(i).text], second.index.text_storage).states
        error = (stored - exact).abs().max() / exact.abs().max()
        assert 0 < error < 0.01
    sizes = [sum(f.stat().st_size for f in folder.glob("*.arrow")) for folder in (half, other)]
    assert (sizes[1] < 0.8 * sizes[0]) == (storage == "int8")


def test_what_the_release_stores_is_taken_as_it_is(tmp_path: Path, cli: Cli):
    rng = np.random.default_rng(0)
    arrays = {}
    (tmp_path / "release").mkdir()
    with tarfile.open(tmp_path / "release" / "0.tar", "w") as tar:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        def npy(array: np.ndarray) -> bytes:
            buffer = io.BytesIO()
            np.save(buffer, array)
            return buffer.getvalue()

        for i in range(3):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(picture, "JPEG")
            text, mean = rng.normal(size=(5 + i, 16)), rng.normal(size=(4, 32, 32))
            arrays[f"0.tar#n{i}.jpg"] = text, mean
            add(f"n{i}.jpg", picture.getvalue())
            add(f"n{i}.txt", b"an image of a fox")
            add(f"n{i}.flan_t5_xl_embeddings.npy", npy(text.astype(np.float32)))
            add(f"n{i}.vae_embeddings_mean_256.npy", npy(mean.astype(np.float32)))
            if i < 2:
                add(f"n{i}.vae_embeddings_std_256.npy", npy(np.full((4, 32, 32), 0.5, np.float32)))
    from kilopix.data.manifest import Row, write_manifest

    rows = [Row(path, "fox", "an image of a fox", "an image of a fox", 64, 64) for path in arrays]
    write_manifest(tmp_path / "m.parquet", tmp_path / "release", rows, {})
    settings = hub_settings(tmp_path, "sd")
    settings[0] = "data.image_size=256"
    done = cli("encode", tmp_path / "m.parquet", tmp_path / "shards", *settings, "--stored")
    assert done.code == 0, done.err
    assert "1 left out" in done.out
    shards = Shards(tmp_path / "shards")
    assert len(shards) == 2
    for i in range(2):
        text, mean = arrays[shards.plain(i).path]
        np.testing.assert_allclose(shards.plain(i).mean, mean * 0.18215, atol=1e-3)
        np.testing.assert_allclose(stack([shards.plain(i).text], "float16").states[0], text, atol=2e-3)
        assert shards.plain(i).std is not None
    refused = cli("encode", tmp_path / "m.parquet", tmp_path / "other", "--stored")
    assert "set text.kind=t5" in refused.err


def test_verify_names_every_fault(photos: Path, tmp_path: Path, cli: Cli):
    out = tmp_path / "shards"
    assert cli("encode", photos / "captions.parquet", out, SIZE, "--part-rows", 10, "--online").code == 0
    done = cli("verify", out)
    assert done.code == 0, done.err
    assert f"{COUNT} plain and {COUNT} augmented" in done.out
    index = read_index(out)
    name = "plain-00001.arrow"
    from kilopix.data.parts import read_table

    # Damage that hashes do not show: a number that is not finite, and a row too few.
    table = read_table(out / name)
    mean = bytearray(table["mean"][2].as_py())
    mean[0:2] = np.float16(np.nan).tobytes()
    column = table["mean"].to_pylist()
    column[2] = bytes(mean)
    import pyarrow as pa

    place = table.schema.get_field_index("mean")
    damaged = table.set_column(place, "mean", pa.array(column, pa.large_binary()))
    (out / name).unlink()
    write_table(out / name, damaged)
    assert "1 fault" in cli("verify", out).err, "the hash differs"
    write_index(out, index.model_copy(update={"files": index.files | {name: sha256_of_file(out / name)}}))
    (fault,) = verify(out).faults
    assert fault.startswith(f"{name}: mean of 1 row is of the wrong size or not finite, first of ")
    assert table["path"][2].as_py() in fault
    write_index(out, index.model_copy(update={"plain": COUNT + 1}))
    write_table(out / name, table)
    (fault,) = verify(out).faults
    assert fault == f"index.json: says {COUNT + 1} plain pictures, but the files hold {COUNT}"
    (out / "augmented-00000.arrow").unlink()
    done = cli("verify", out)
    assert done.code == 2
    assert "augmented-00000.arrow: missing" in done.out


def test_a_part_that_verify_finds_damaged_is_made_again_alone(photos: Path, tmp_path: Path, cli: Cli):
    out = tmp_path / "shards"
    command = ("encode", photos / "captions.parquet", out, SIZE, "--part-rows", 10)
    assert cli(*command).code == 0
    before = contents(out)
    (out / "plain-00001.arrow").unlink()
    (out / "index.json").unlink()
    kept = (out / "plain-00000.arrow").stat().st_mtime_ns
    assert cli(*command).code == 0
    assert contents(out) == before
    assert (out / "plain-00000.arrow").stat().st_mtime_ns == kept


def test_inspect_shows_pictures_beside_captions(photos: Path, tmp_path: Path, cli: Cli):
    out = tmp_path / "shards"
    assert cli("encode", photos / "captions.parquet", out, SIZE, "--online").code == 0
    done = cli("inspect", out, tmp_path / "page.html", "-n", 5)
    assert done.code == 0, done.err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img") == 10
    assert page.count("data:image/png;base64,") == 10
    assert page.count("<b>cutmix</b>") == 5
    assert "An image of a fox." in page or "An image of a cup." in page
    codec = json.loads((out / "index.json").read_text(encoding="utf-8"))["autoencoder_name"]
    assert codec in page
