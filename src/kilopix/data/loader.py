"""The loader: batches in an order that is a pure function of (seed, images seen).

In: shards and, for every sample, whether its augmented version is wanted. Out: batches of tensors. So a
run resumes from one number, any number of devices sees the same order, and only what is used is read.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kilopix.data.shards import Sample, Shards
from kilopix.data.text_storage import TextStorage, empty, stack
from kilopix.runtime import seed_from
from kilopix.types import LatentMoments, TextStates

BLOCK = 16
"""Samples that lie and are read together; with Flan-T5-XL's states some ten megabytes."""
WINDOW = 4096
"""Blocks among whose samples the next is drawn: 65,536 samples, of any class."""

Key = TypeVar("Key")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Batch:
    """Latents and text of a batch, the window of the whole picture that each shows, and their ids."""

    moments: LatentMoments
    text: TextStates
    window: Float[Tensor, "B 4"]
    paths: list[str]


class SampleOrder:
    """Which sample is seen when: every epoch is a new permutation, drawn from (seed, epoch).

    Blocks of consecutive samples are shuffled, then the samples within a window of blocks, so that a disk
    that is slow to seek, or a file system far away, reads whole blocks.
    """

    def __init__(self, count: int, seed: int, block: int = BLOCK, window: int = WINDOW):
        self.count = count
        self.seed = seed
        self.block = block
        self.window = window
        self._epoch = self._number = -1
        self._blocks = self._starts = self._samples = np.empty(0, np.int64)

    def at(self, image: int) -> tuple[int, int]:
        """The sample, and the epoch, of the image with this number since the start of training."""
        epoch, place = divmod(image, self.count)
        if epoch != self._epoch:
            self._begin_epoch(epoch)
        number = int(np.searchsorted(self._starts, place, "right")) - 1
        if number != self._number:
            self._begin_window(epoch, number)
        return int(self._samples[place - self._starts[number]]), epoch

    def caption(self, sample: int, epoch: int) -> int:
        """The number that chooses among several captions of a sample in an epoch."""
        return seed_from("caption", self.seed, sample, epoch)

    def _begin_epoch(self, epoch: int) -> None:
        rng = np.random.default_rng(seed_from("order", self.seed, epoch))
        self._blocks = rng.permutation(-(-self.count // self.block))
        lengths = np.minimum(self.block, self.count - self._blocks * self.block)  # the last may be short
        ends = np.concatenate([[0], np.cumsum(lengths)])
        self._starts = ends[: -1 : self.window]
        self._epoch, self._number = epoch, -1

    def _begin_window(self, epoch: int, number: int) -> None:
        blocks = self._blocks[number * self.window : (number + 1) * self.window]
        samples = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
        rng = np.random.default_rng(seed_from("window", self.seed, epoch, number))
        self._number, self._samples = number, rng.permutation(samples[samples < self.count])


def read_sample(shards: Shards, order: SampleOrder, image: int, augmented: bool, short: bool) -> Sample:
    """The sample of the image with this number since the start of training."""
    i, epoch = order.at(image)
    sample = shards.augmented(i, epoch, short) if augmented else None
    return sample or shards.plain(i, short, order.caption(i, epoch))


def collate(
    samples: Sequence[Sample],
    storage: TextStorage = "float16",
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Stack samples, text padded to the longest of the batch; here the mapped bytes are first copied."""
    text = stack([s.text for s in samples], storage, dtype)
    return Batch(stack_latents(samples), text, stack_windows(samples), [s.path for s in samples])


def stack_windows(samples: Sequence[Sample]) -> Float[Tensor, "B 4"]:
    """The windows of samples."""
    return torch.tensor([s.window for s in samples], dtype=torch.float32)


def stack_latents(samples: Sequence[Sample]) -> LatentMoments:
    """The latents of samples."""
    shape = len(samples), *samples[0].mean.shape
    mean, std = empty(*shape, dtype=torch.float32), empty(*shape, dtype=torch.float32)
    for i, sample in enumerate(samples):
        mean[i].copy_(torch.from_numpy(sample.mean))
        if sample.std is None:
            std[i].zero_()
        else:
            std[i].copy_(torch.from_numpy(sample.std))
    return LatentMoments(mean, std)


def prefetch(
    load: Callable[[Key], Loaded], keys: Iterable[Key], depth: int = 2, workers: int = 1
) -> Iterator[Loaded]:
    """Load the batches of `keys` in threads, up to `depth` ahead of the one in use, in the order of the keys.

    What loading raises is raised here, in its turn. With several workers, `load` must be safe to call from
    several threads.
    """
    waiting: deque[Future[Loaded]] = deque()
    pool = ThreadPoolExecutor(workers, "kilopix-loader")
    try:
        for key in keys:
            waiting.append(pool.submit(load, key))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
