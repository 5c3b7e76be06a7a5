"""The loader: batches in an order that is a pure function of (seed, images seen).

In: shards and, for every sample, whether its augmented version is wanted. Out: batches of tensors. So a
run resumes from one number, and only what is used is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kilopix.data.shards import Sample, Shards
from kilopix.runtime import seed_from
from kilopix.types import LatentMoments, TextStates


@dataclass(frozen=True)
class Batch:
    """Latents and text of a batch, the window of the whole picture that each shows, and their ids."""

    moments: LatentMoments
    text: TextStates
    window: Float[Tensor, "B 4"]
    paths: list[str]


class SampleOrder:
    """Which sample is seen when: every epoch is a new permutation, drawn from (seed, epoch)."""

    def __init__(self, count: int, seed: int):
        self.count = count
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)

    def at(self, image: int) -> tuple[int, int]:
        """The sample, and the epoch, of the image with this number since the start of training."""
        epoch, place = divmod(image, self.count)
        if epoch != self._epoch:
            rng = np.random.default_rng(seed_from("order", self.seed, epoch))
            self._epoch, self._permutation = epoch, rng.permutation(self.count)
        return int(self._permutation[place]), epoch


def load_batch(
    shards: Shards, order: SampleOrder, first: int, augmented: Sequence[bool], short: Sequence[bool]
) -> Batch:
    """The batch that starts at image number `first`.

    Where `augmented`, the augmented version is taken, if there is one; where `short`, the short caption.
    """
    samples = []
    for offset, (wants_augmented, wants_short) in enumerate(zip(augmented, short, strict=True)):
        i, epoch = order.at(first + offset)
        sample = (shards.augmented(i, epoch) if wants_augmented else None) or shards.plain(i)
        samples.append(replace(sample, text=sample.short_text) if wants_short else sample)
    return collate(samples)


def collate(samples: list[Sample]) -> Batch:
    """Stack samples; text is padded to the longest of the batch."""
    means = torch.from_numpy(np.stack([s.mean for s in samples]).astype(np.float32))
    stds = torch.zeros_like(means)
    for i, sample in enumerate(samples):
        if sample.std is not None:
            stds[i] = torch.from_numpy(sample.std.astype(np.float32))
    longest = max(len(s.text) for s in samples)
    states = torch.zeros(len(samples), longest, samples[0].text.shape[1])
    mask = torch.zeros(len(samples), longest, dtype=torch.bool)
    for i, sample in enumerate(samples):
        states[i, : len(sample.text)] = torch.from_numpy(sample.text.astype(np.float32))
        mask[i, : len(sample.text)] = True
    window = torch.tensor([s.window for s in samples], dtype=torch.float32)
    return Batch(LatentMoments(means, stds), TextStates(states, mask), window, [s.path for s in samples])
