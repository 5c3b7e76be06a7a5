"""Ways of training that kilopix itself does not have, for trials: what they bring, before they are built in.

In: the name of a way, and the shards that are trained on. Out: a context in which training goes that way;
what is trained is a network as any other, sampled as any other. See `trials.toml`, `benchmarks/log.md`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

import kilopix.engine
import kilopix.step
from kilopix.data.shards import Shards
from kilopix.diffusion.objective import ObjectiveConfig
from kilopix.diffusion.paths import expand
from kilopix.models.dit import DiT
from kilopix.network import Network
from kilopix.pretrained.autoencoder import load_autoencoder
from kilopix.pretrained.vision import load_efficientnet_lite0
from kilopix.recipe import Recipe
from kilopix.step import StepBatch, StepLoss

Method = Literal["usual", "aligned", "contrastive"]
STAGE = 10
"""The last block of EfficientNet-Lite0 at a sixteenth of the resolution, 112 wide."""


@contextmanager
def trained_by(method: Method, shards: Path) -> Iterator[None]:
    """Training goes this way within."""
    ways: dict[Method, Callable[[], Any]] = {
        "usual": nullcontext,
        "aligned": lambda: patch.object(kilopix.engine, "StepLoss", lambda *args: AlignedLoss(*args, shards)),
        "contrastive": lambda: patch.object(kilopix.step, "loss_per_sample", contrastive_loss),
    }
    with ways[method]():
        yield


def contrastive_loss(
    config: ObjectiveConfig,
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Float[Tensor, "B C H W"],
    noise: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    weight: float = 0.05,
) -> Float[Tensor, " B"]:
    """Contrastive flow matching (Stoica et al. 2025, arXiv 2506.05350): near its own target, and far from
    that of the next sample of the micro-batch.
    """
    point = config.path.at(expand(t))
    prediction = predict(point.mix(latents, noise), t)
    own, other = (
        (prediction - point.target(config.prediction, x, e)).square().mean(dim=(1, 2, 3))
        for x, e in ((latents, noise), (latents.roll(1, 0), noise.roll(1, 0)))
    )
    return own - weight * other


class AlignedLoss(StepLoss):
    """Alignment with frozen features (REPA; Yu et al. 2025, arXiv 2410.06940).

    Patch tokens after half of the blocks are led, through a small network that is thrown away, to what
    EfficientNet-Lite0 has for the clean picture at the same places, at twice the resolution. The small
    network has an optimizer of its own and is in no checkpoint: a run that goes on begins it anew.
    """

    def __init__(
        self, network: Network, recipe: Recipe, precision: torch.dtype, shards: Path, weight: float = 0.5
    ):
        super().__init__(network, recipe, precision)
        assert isinstance(network, DiT), "the trial aligns the tokens of a DiT"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            width = network.config.width
            projector = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 112))
        # In a list, so that it is none of the weights that are trained, averaged and kept.
        self._aside = [projector]
        self._optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-3)
        self._weight = weight
        self._features = _Features(shards, recipe)
        self._tokens: Tensor | None = None
        self._registers = network.config.registers
        network.blocks[len(network.blocks) // 2 - 1].register_forward_hook(self._keep)

    def forward(self, batch: StepBatch) -> Float[Tensor, ""]:
        """The loss of the batch, and how far its tokens are from the features."""
        self._optimizer.step()
        self._optimizer.zero_grad()
        loss = super().forward(batch)
        assert self._tokens is not None
        guess = self._aside[0](self._tokens)
        likeness = F.cosine_similarity(guess, self._features(batch.latents), dim=-1).mean(1)
        return loss + self._weight * ((1 - likeness) * batch.weights).sum()

    def _keep(self, block: nn.Module, inputs: Any, output: Tensor) -> None:
        self._tokens = output[:, self._registers :]


class _Features:
    """What a frozen network has for the pictures that latents stand for; of each picture computed once."""

    def __init__(self, shards: Path, recipe: Recipe):
        self._whitening = Shards(shards).whitening
        self._autoencoder = load_autoencoder(recipe.autoencoder, shards, "cpu")
        self._extractor = load_efficientnet_lite0("cpu", 2 * recipe.data.image_size)
        self._known: dict[bytes, Tensor] = {}
        self._seen: list[Tensor] = []
        block = self._extractor._model._blocks[STAGE]  # pyright: ignore[reportAttributeAccessIssue]
        block.register_forward_hook(lambda _, inputs, output: self._seen.append(output))

    @torch.no_grad()
    def __call__(self, latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T F"]:
        keys = [one.numpy().tobytes() for one in latents]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            for i, one in zip(new, self._compute(latents[new]), strict=True):
                self._known[keys[i]] = one.half()
        return torch.stack([self._known[key] for key in keys]).float()

    def _compute(self, latents: Tensor) -> Tensor:
        restored = self._whitening.restore(latents) if self._whitening else latents
        pictures = ((self._autoencoder.decode(restored).clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
        self._seen.clear()
        self._extractor.features(pictures)
        return rearrange(torch.cat(self._seen), "b f h w -> b (h w) f")
