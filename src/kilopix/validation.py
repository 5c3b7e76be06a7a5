"""The loss on fixed samples, with fixed noise at fixed times: what the training loss is too noisy to show.

In: shards, and networks in the midst of training. Out: one loss for every noise level, the same on every
call with the same weights, however the samples are batched, and without touching any random state that
training draws from. A gap between training and held-out samples that grows is overfitting.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kilopix.data.checked_batches import readable
from kilopix.data.loader import Batch, collate
from kilopix.data.shards import INDEX, Shards
from kilopix.diffusion.objective import ObjectiveConfig, loss_per_sample
from kilopix.models.rin import RIN
from kilopix.network import Network, encode_text, training_predictor
from kilopix.recipe import Recipe, check_shards
from kilopix.runtime import sha256_of_file, torch_generator
from kilopix.training.watching import ValidationConfig
from kilopix.types import LatentStatistics, UserError

RECORD = "validation.jsonl"


@dataclass(frozen=True)
class FixedSet:
    """Samples of shards, spread evenly over them, whitened as the training set is."""

    shards: Shards
    numbers: list[int]
    whitening: LatentStatistics | None

    @classmethod
    def of(cls, shards: Shards, count: int, whitening: LatentStatistics | None) -> "FixedSet":
        """At most `count` samples, of those that can be read."""
        return cls(shards, readable(shards, count), whitening)

    def batch(self, numbers: list[int]) -> Batch:
        """The plain pictures with these numbers, with their long captions."""
        batch = collate([self.shards.plain(i) for i in numbers], self.shards.index.text_storage)
        if self.whitening is None:
            return batch
        return Batch(self.whitening.whiten(batch.moments), batch.text, batch.window, batch.paths)


def held_out_set(folder: Path, training: Shards, recipe: Recipe) -> FixedSet:
    """The held-out samples, once it is sure that they were encoded as the training samples were."""
    shards = Shards(folder)
    ours, theirs = training.index, shards.index
    check_shards(recipe, folder, theirs.text_encoder, theirs.autoencoder, theirs.image_size)
    if sha256_of_file(folder / INDEX) == sha256_of_file(training.folder / INDEX):
        raise UserError(f"{folder}: these are the training shards; give shards of held-out pictures.")
    if theirs.text_fingerprint != ours.text_fingerprint:
        raise UserError(
            f"{folder}: another text encoder than the training shards'; encode them with the same."
        )
    if theirs.autoencoder_fingerprint != ours.autoencoder_fingerprint:
        raise UserError(
            f"{folder}: another autoencoder than the training shards'; encode the held-out pictures with "
            f"`kilopix encode HELD_OUT.parquet OUT --codec {training.folder}`."
        )
    return FixedSet.of(shards, recipe.validation.samples, training.whitening)


def level_times(config: ValidationConfig) -> Float[Tensor, " levels"]:
    """The times: the middles of equal parts of [0, 1]."""
    return (torch.arange(config.levels) + 0.5) / config.levels


@torch.no_grad()
def level_losses(
    network: Network,
    samples: FixedSet,
    objective: ObjectiveConfig,
    config: ValidationConfig,
    device: str,
    share: range | None = None,
    precision: torch.dtype = torch.float32,
) -> Float[Tensor, " levels"]:
    """Sum of the loss at each level over a share of the samples (all, if none is given), in float64.

    Networks that condition on their own latents always do, as in sampling.
    """
    sums = torch.zeros(config.levels, dtype=torch.float64)
    times = level_times(config)
    mine = samples.numbers if share is None else [samples.numbers[i] for i in share]
    lower = precision != torch.float32
    with evaluating(network), torch.autocast(torch.device(device).type, precision, enabled=lower):
        for start in range(0, len(mine), config.batch_size):
            numbers = mine[start : start + config.batch_size]
            batch = samples.batch(numbers)
            draws = [_draws(batch.moments.mean.shape[1:], i, config.levels) for i in numbers]
            noise = torch.stack(draws, dim=1)  # of the latents, then one for each level
            latents = (batch.moments.mean + batch.moments.std * noise[0]).to(device)
            count, windows = len(numbers), batch.window.to(device)
            context = encode_text(network, batch.text.to(device), torch.ones(count, device=device))
            again = torch.full((count,), isinstance(network, RIN) and objective.self_conditioning > 0)
            predict = training_predictor(network, objective.path, context, windows, again)
            for level, t in enumerate(times.tolist()):
                at = torch.full((count,), t, device=device)
                losses = loss_per_sample(objective, predict, latents, noise[level + 1].to(device), at)
                sums[level] += losses.float().sum().cpu().double()
    return sums


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, a network is in evaluation mode; afterwards in the mode that it was in."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _draws(shape: torch.Size, number: int, levels: int) -> Float[Tensor, "draws C H W"]:
    """The noise of one sample: for its latents, and for every level."""
    return torch.randn(levels + 1, *shape, generator=torch_generator("validation", number))
