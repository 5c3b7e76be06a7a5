"""Batches as training takes them, for tests that look at what shards hold."""

from collections.abc import Sequence

import torch

from kilopix.data.checked_batches import load_samples, moments_of
from kilopix.data.loader import Batch, SampleOrder, collate
from kilopix.data.shards import Shards
from kilopix.training.parallel import Processes


def load_batch(
    shards: Shards,
    order: SampleOrder,
    first: int,
    augmented: Sequence[bool],
    short: Sequence[bool],
    rank: int = 0,
    ranks: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """The batch that begins at image number `first`, or the share of it that is rank's of `ranks`."""
    offsets = Processes(rank, ranks).share(len(short))
    samples, faults = load_samples(shards, order, first, offsets, augmented, short)
    assert faults == []
    batch = collate(samples, shards.index.text_storage, dtype)
    return Batch(moments_of(shards, samples), batch.text, batch.window, batch.paths)
