"""The order of the samples, shares of ranks, whitening, and loading ahead."""

import threading
import time
from pathlib import Path

import pytest
import torch
from test_shards import COUNT, write_shards

from batches import load_batch
from kilopix.data.loader import Batch, SampleOrder, prefetch
from kilopix.data.shards import Shards, read_index, write_index


@pytest.mark.parametrize(("count", "block", "window"), [(1, 4, 2), (10, 4, 2), (103, 8, 3), (64, 8, 100)])
def test_every_epoch_is_a_permutation(count: int, block: int, window: int):
    order = SampleOrder(count, 3, block, window)
    epochs = [[order.at(e * count + i) for i in range(count)] for e in range(3)]
    assert all(sorted(i for i, _ in epoch) == list(range(count)) for epoch in epochs)
    assert [{e for _, e in epoch} for epoch in epochs] == [{0}, {1}, {2}]
    assert count == 1 or [i for i, _ in epochs[0]] != [i for i, _ in epochs[1]]


def test_any_image_is_found_from_its_number_alone():
    order, other = SampleOrder(103, 1, 8, 3), SampleOrder(103, 1, 8, 3)
    seen = [order.at(i) for i in range(309)]
    assert [other.at(i) for i in reversed(range(309))] == seen[::-1]
    assert [SampleOrder(103, 2, 8, 3).at(i) for i in range(103)] != seen[:103]


def test_a_window_reads_whole_blocks_and_mixes_them():
    order = SampleOrder(1000, 0, block=10, window=5)
    seen = [order.at(i)[0] for i in range(1000)]
    for start in range(0, 1000, 50):
        window = seen[start : start + 50]
        assert len({i // 10 for i in window}) == 5
        assert window != sorted(window)
    assert len({i // 10 for i in seen[:10]}) > 2, "samples of several blocks are mixed"
    assert len({i // 100 for i in seen[:50]}) > 2, "the blocks of a window come from everywhere"


def test_ranks_share_a_batch(tmp_path: Path):
    write_shards(tmp_path)
    shards = Shards(tmp_path)
    augmented, short = [True, False, False] * 3, [False, True, False] * 3
    whole = load_batch(shards, SampleOrder(COUNT, 4), 20, augmented, short)
    for ranks in (1, 2, 4, 9):
        order = SampleOrder(COUNT, 4)
        shares = [load_batch(shards, order, 20, augmented, short, rank, ranks) for rank in range(ranks)]
        assert [path for share in shares for path in share.paths] == whole.paths
        assert torch.equal(torch.cat([share.moments.mean for share in shares]), whole.moments.mean)


def test_latents_are_whitened_where_the_shards_say_so(tmp_path: Path):
    write_shards(tmp_path)
    raw = load_batch(Shards(tmp_path), SampleOrder(COUNT, 0), 0, [False] * COUNT, [False] * COUNT)
    index = read_index(tmp_path)
    write_index(tmp_path, index.model_copy(update={"autoencoder": {"kind": "test", "whiten": True}}))
    shards = Shards(tmp_path)
    batch = load_batch(shards, SampleOrder(COUNT, 0), 0, [False] * COUNT, [False] * COUNT)
    assert batch.moments.mean.mean((0, 2, 3)).abs().max() < 1e-3
    power = (batch.moments.mean.square() + batch.moments.std.square()).mean((0, 2, 3))
    torch.testing.assert_close(power, torch.ones(2), atol=1e-3, rtol=0)
    assert shards.whitening is not None
    torch.testing.assert_close(shards.whitening.restore(batch.moments.mean), raw.moments.mean)


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8"])
def test_the_storage_of_text_changes_only_its_precision(tmp_path: Path, storage):
    _, texts = write_shards(tmp_path, storage)
    batch = load_batch(Shards(tmp_path), SampleOrder(COUNT, 0), 0, [False] * COUNT, [False] * COUNT)
    for row, path in enumerate(batch.paths):
        expected = texts[int(path.split("/")[1].split(".")[0])]
        assert batch.text.mask[row].sum() == len(expected)
        error = (batch.text.states[row, : len(expected)] - expected).abs().max()
        assert error <= expected.abs().max() / 100


def test_batches_are_loaded_ahead_and_in_order():
    loaded, threads = [], set()

    def load(key: int) -> Batch:
        time.sleep(0.02 * (key % 3))
        loaded.append(key)
        threads.add(threading.current_thread().name)
        if key == 9:
            raise ValueError("no such batch")
        return key  # pyright: ignore[reportReturnType]

    batches = prefetch(load, range(20), depth=3, workers=2)
    assert next(batches) == 0
    time.sleep(0.3)
    assert sorted(loaded) == [0, 1, 2, 3]
    assert [next(batches) for _ in range(8)] == list(range(1, 9))
    with pytest.raises(ValueError, match="no such batch"):
        next(batches)
    assert all(name.startswith("kilopix-loader") for name in threads)
    assert not any(t.name.startswith("kilopix-loader") for t in threading.enumerate())
