from pathlib import Path

import numpy as np
import pytest
import torch

from batches import load_batch
from kilopix.data.loader import SampleOrder, collate
from kilopix.data.manifest import Row
from kilopix.data.part_facts import LatentSums, save_text
from kilopix.data.parts import read_table, write_table
from kilopix.data.shards import EMPTY_TEXT, Sample, ShardIndex, Shards, to_shard, write_index
from kilopix.data.text_storage import StoredText, TextStorage
from kilopix.data.verify import check_shards_are_whole, verify
from kilopix.errors import UserError
from kilopix.runtime import sha256_of_file
from kilopix.types import LatentMoments, TextStates

COUNT, WIDTH = 10, 6


def write_shards(folder: Path, storage: TextStorage = "float16") -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Ten plain pictures in two files; all but the last have a crop whose latents are theirs plus 100."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(COUNT, 2, 4, 4, generator=generator)
    texts = [torch.randn(1 + i % 4, WIDTH, generator=generator) for i in range(COUNT)]
    short = torch.full((3, WIDTH), 9.0)
    std = torch.zeros_like(latents)
    std[0] = 0.5
    plain = [Row(f"fox/{i}.jpg", "fox", f"Fox {i}.") for i in range(COUNT)]
    crops = [
        Row(f"crop/fox/{i}.jpg", "fox", "Part.", kind="crop", base=f"fox/{i}.jpg", box=(0.0, 0.25, 0.75, 1.0))
        for i in range(COUNT - 1)
    ]
    for i, rows in enumerate((slice(0, 6), slice(6, 10))):
        moments = LatentMoments(latents[rows], std[rows])
        write_table(
            folder / f"plain-{i:05d}.arrow",
            to_shard(plain[rows], moments, texts[rows], [short] * len(plain[rows]), storage),
        )
    moments = LatentMoments(latents[:9] + 100, std[:9] * 0)
    write_table(folder / "augmented-00000.arrow", to_shard(crops, moments, texts[:9], texts[:9], storage))
    save_text(folder / EMPTY_TEXT, TextStates(torch.zeros(1, 2, WIDTH), torch.ones(1, 2, dtype=torch.bool)))
    names = ["plain-00000.arrow", "plain-00001.arrow", "augmented-00000.arrow", EMPTY_TEXT]
    index = ShardIndex(
        image_size=32,
        latent_shape=(2, 4, 4),
        text_width=WIDTH,
        text_encoder_name="test",
        text_encoder={"kind": "test"},
        text_fingerprint="t",
        autoencoder_name="test",
        autoencoder={"kind": "test"},
        autoencoder_fingerprint="a",
        text_storage=storage,
        latent_statistics=LatentSums.of(LatentMoments(latents, std)).statistics(),
        plain=COUNT,
        augmented=COUNT - 1,
        left_out=0,
        psnr_db=None,
        files={name: sha256_of_file(folder / name) for name in names},
    )
    write_index(folder, index)
    return latents, texts


def test_what_was_written_is_read(tmp_path: Path):
    latents, texts = write_shards(tmp_path)
    shards = Shards(tmp_path)
    assert len(shards) == COUNT
    for i in range(COUNT):
        sample = shards.plain(i)
        assert sample.path == f"fox/{i}.jpg"
        np.testing.assert_array_equal(sample.mean, latents[i].half().numpy())
        np.testing.assert_array_equal(sample.text.values.view(np.float16), texts[i].half().numpy())
        assert sample.window == (0, 0, 1, 1)
    assert shards.plain(0).std is not None
    assert shards.plain(1).std is None
    crop = shards.augmented(3)
    assert crop is not None
    assert crop.window == (0.0, 0.25, 0.75, 1.0)
    assert crop.path == "crop/fox/3.jpg"
    assert shards.augmented(COUNT - 1) is None


def test_a_batch_takes_the_augmented_version_only_where_asked(tmp_path: Path):
    write_shards(tmp_path)
    shards = Shards(tmp_path)
    order = SampleOrder(COUNT, seed=3)
    wanted = [True, False] * 5
    batch = load_batch(shards, order, 0, wanted, [False] * 10)
    for i, path in enumerate(batch.paths):
        has_one = path != f"fox/{COUNT - 1}.jpg"
        assert path.startswith("crop/") == (wanted[i] and has_one)
        assert (batch.moments.mean[i].mean() > 50) == path.startswith("crop/")


def test_short_captions_are_taken_where_asked(tmp_path: Path):
    write_shards(tmp_path)
    shards = Shards(tmp_path)
    short = [i % 3 == 0 for i in range(10)]
    batch = load_batch(shards, SampleOrder(COUNT, seed=3), 0, [False] * 10, short)
    plain = load_batch(shards, SampleOrder(COUNT, seed=3), 0, [False] * 10, [False] * 10)
    assert batch.paths == plain.paths
    assert ((batch.text.states == 9).any(dim=(1, 2))).tolist() == short
    torch.testing.assert_close(batch.moments.mean, plain.moments.mean)


def test_a_short_caption_that_is_the_caption_is_stored_once(tmp_path: Path):
    _, texts = write_shards(tmp_path)
    shards = Shards(tmp_path)
    augmented = read_table(tmp_path / "augmented-00000.arrow")
    assert set(augmented["short_text"].to_pylist()) == {b""}
    short = shards.augmented(3, short=True)
    assert short is not None
    np.testing.assert_array_equal(short.text.values.view(np.float16), texts[3].half().numpy())


def test_text_is_padded_and_masked():
    batch = collate([_sample(2, 1.0), _sample(5, 2.0)])
    assert batch.text.mask.sum(1).tolist() == [2, 5]
    assert batch.text.states[0, 2:].abs().sum() == 0
    assert batch.text.states[1].min() == 2.0


def _sample(tokens: int, value: float) -> Sample:
    text = StoredText(np.full((tokens, WIDTH), value, np.float16).view(np.int16), None)
    return Sample("x", np.zeros((2, 4, 4), np.float16), None, text, (0.0, 0.0, 1.0, 1.0))


def test_every_epoch_is_a_permutation_and_order_depends_on_the_number_alone():
    order = SampleOrder(COUNT, seed=1)
    seen = [order.at(i) for i in range(3 * COUNT)]
    epochs = [[i for i, e in seen if e == epoch] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = SampleOrder(COUNT, seed=1)
    assert [other.at(i) for i in reversed(range(3 * COUNT))] == seen[::-1]
    assert [SampleOrder(COUNT, seed=2).at(i) for i in range(COUNT)] != seen[:COUNT]


def test_damage_is_found(tmp_path: Path):
    write_shards(tmp_path)
    assert verify(tmp_path).rows == {"plain": COUNT, "augmented": COUNT - 1}
    check_shards_are_whole(tmp_path)
    path = tmp_path / "plain-00001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"1 fault: plain-00001\.arrow: damaged"):
        check_shards_are_whole(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"plain-00001\.arrow: missing"):
        Shards(tmp_path)


def test_a_folder_without_an_index_is_not_finished(tmp_path: Path):
    with pytest.raises(UserError, match="no finished shards"):
        Shards(tmp_path)
