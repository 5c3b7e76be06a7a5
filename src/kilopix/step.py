"""A training step's batch and its loss: where data, objective and network meet.

In: shards, a recipe, and the place of a batch in the run. Out: the share of it that is this process's, with
every random decision made, and the module that turns it into a loss. All decisions are drawn from the seed
and the place of the batch or of the image, so that they depend on no number of processes or micro-batches.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from kilopix.data.checked_batches import Fault, load_samples, moments_of
from kilopix.data.loader import SampleOrder, stack_windows
from kilopix.data.shards import Shards
from kilopix.data.text_storage import StoredText, pack, stack_stored, unpack, view
from kilopix.diffusion.objective import draw, loss_per_sample
from kilopix.network import Network, encode_text, own_keys, training_predictor
from kilopix.recipe import Recipe
from kilopix.runtime import torch_generator
from kilopix.training.parallel import Processes
from kilopix.training.speed import pick_precision
from kilopix.types import TextStates

KEYS = 128
"""Of what number of keys the attention to texts is a multiple on a GPU."""


@dataclass(frozen=True)
class BatchFacts:
    """What is told of a batch after its step; its tensors are not held for that."""

    position: int
    count: int
    paths: list[str]
    faults: list[Fault]


@dataclass(frozen=True)
class StepBatch:
    """This process's share of the batch that begins at image `position` of the order and has `count` images.

    `weights` are what each image's loss counts for: 1 / count; 0 for an image that only fills the share up;
    not a number for one that cannot be trained on, which makes every process leave the step out. `states`
    are as they are stored, int8 ones with a scale a token; `tokens` are the lengths of the texts. The images
    lie so that micro-batches are of texts of like length, and in each those that see the latents of a first
    pass come first.
    """

    position: int
    count: int
    latents: Float[Tensor, "B C H W"]
    noise: Float[Tensor, "B C H W"]
    t: Float[Tensor, " B"]
    states: Num[Tensor, "B N D"]
    scales: Float[Tensor, "B N"] | None
    mask: Bool[Tensor, "B N"]
    coherence: Float[Tensor, " B"]
    windows: Float[Tensor, "B 4"]
    weights: Float[Tensor, " B"]
    self_condition: Bool[Tensor, " B"]
    tokens: list[int]
    paths: list[str]
    faults: list[Fault]
    padding: "Padding | None" = None

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def facts(self) -> BatchFacts:
        """The batch without its tensors."""
        return BatchFacts(self.position, self.count, self.paths, self.faults)

    def moved_to(self, device: str) -> "StepBatch":
        """The batch on a device; `self_condition` stays, since to look at it there would be to wait."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> "StepBatch":
        """The batch in memory from which a GPU copies by itself."""
        return self._each(lambda x: x.pin_memory())

    def micro_batches(self, number: int) -> "Iterator[StepBatch]":
        """The batch in so many parts of nearly one size, none empty, each padded as its own texts need."""
        assert number <= len(self)
        for rows in parts_of(len(self), number):
            part = self._each(lambda x, rows=rows: x[rows], self.self_condition[rows])
            length = padded_length(max(self.tokens[rows]), self.padding)
            yield replace(
                part,
                states=part.states[:, :length],
                scales=None if part.scales is None else part.scales[:, :length],
                mask=part.mask[:, :length],
                tokens=self.tokens[rows],
            )

    def tensors(self) -> list[Tensor]:
        """The tensors that are on the device."""
        named = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return [x for name, x in named if isinstance(x, Tensor) and name != "self_condition"]

    def _each(self, change: Callable[[Tensor], Tensor], self_condition: Tensor | None = None) -> "StepBatch":
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "self_condition"}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        kept = self.self_condition if self_condition is None else self_condition
        return replace(self, **changed, self_condition=kept)


@dataclass(frozen=True)
class Padding:
    """Texts are padded until, with the network's `own` keys before them, they are a multiple of `multiple`.

    So a GPU meets few shapes, which its kernels are planned for, and none whose last tile is half full.
    """

    multiple: int
    own: int


def padding_of(recipe: Recipe, device_type: str) -> Padding | None:
    """How a network's texts are padded on a kind of device."""
    return Padding(KEYS, own_keys(recipe.model)) if device_type == "cuda" else None


def padded_length(tokens: int, padding: Padding | None) -> int:
    """The length to which texts of at most so many tokens are padded."""
    if padding is None:
        return tokens
    return -(-(tokens + padding.own) // padding.multiple) * padding.multiple - padding.own


def parts_of(count: int, number: int) -> list[slice]:
    """`count` rows in `number` parts of nearly one size."""
    return [slice(i * count // number, (i + 1) * count // number) for i in range(number)]


class StepLoader:
    """Makes the batches of one process."""

    def __init__(self, shards: Shards, recipe: Recipe, processes: Processes, micro_batch: int):
        self.shards = shards
        self.recipe = recipe
        self.processes = processes
        self.micro_batch = micro_batch
        self.padding = padding_of(recipe, processes.device_type)
        self._order = SampleOrder(len(shards), recipe.seed)

    def micro_batches(self, count: int) -> int:
        """Micro-batches of a batch of `count` images: as many in every process."""
        largest = -(-count // self.processes.count)
        return -(-largest // self.micro_batch)

    def load(self, place: tuple[int, int]) -> StepBatch:
        """The share of the batch at `place`: its first image's number, and how many there are."""
        position, count = place
        recipe = self.recipe
        decisions = draw(recipe.objective, count, torch_generator("step", recipe.seed, position))
        share = list(self.processes.share(count))
        filling = max(0, self.micro_batches(count) - len(share))
        offsets = share + [0] * filling
        samples, faults = load_samples(
            self.shards,
            self._order,
            position,
            offsets,
            decisions.augmented.tolist(),
            decisions.short.tolist(),
        )
        paths = [sample.path for sample in samples[: len(share)]]
        weights = torch.full((len(offsets),), 1 / count)
        weights[[fault.place for fault in faults]] = torch.nan
        weights[len(share) :] = 0
        dropped = decisions.drop_text[offsets].tolist()
        texts = [self._empty if drop else one.text for one, drop in zip(samples, dropped, strict=True)]
        rows = self._arranged(
            [len(text) for text in texts], decisions.self_condition[offsets].tolist(), count
        )
        offsets, texts = [offsets[i] for i in rows], [texts[i] for i in rows]
        tokens = [len(text) for text in texts]
        samples = [samples[i] for i in rows]
        text = stack_stored(texts, self.shards.index.text_storage, padded_length(max(tokens), self.padding))
        moments = moments_of(self.shards, samples)
        mean = moments.mean
        draws = torch.stack([self._noise(position + offset, mean.shape[1:]) for offset in offsets])
        made = StepBatch(
            position=position,
            count=count,
            latents=mean + moments.std * draws[:, 0],
            noise=draws[:, 1].contiguous(),
            t=decisions.t[offsets],
            states=text.values,
            scales=text.scales,
            mask=text.mask,
            coherence=(~decisions.drop_text[offsets]).float(),
            windows=stack_windows(samples),
            weights=weights[rows],
            self_condition=decisions.self_condition[offsets],
            tokens=tokens,
            paths=paths,
            faults=[fault for fault in faults if fault.place < len(share)],
            padding=self.padding,
        )
        return made.pinned() if self.processes.device_type == "cuda" else made

    def _arranged(self, tokens: list[int], self_condition: list[bool], count: int) -> list[int]:
        """The order in which the share lies: micro-batches by length, in each the self-conditioned first."""
        by_length = sorted(range(len(tokens)), key=tokens.__getitem__)
        parts = (by_length[rows] for rows in parts_of(len(tokens), self.micro_batches(count)))
        return [i for part in parts for i in sorted(part, key=lambda i: not self_condition[i])]

    def _noise(self, image: int, shape: torch.Size) -> Float[Tensor, "2 C H W"]:
        """For the image of this number: a draw of its latents, and the noise that is added to them."""
        return torch.randn((2, *shape), generator=torch_generator("image", self.recipe.seed, image))

    @cached_property
    def _empty(self) -> StoredText:
        """The empty text, as one of the captions."""
        empty, index = self.shards.empty_text, self.shards.index
        data = np.frombuffer(pack(empty.states[0, empty.mask[0]], index.text_storage), np.uint8)
        return view(data, index.text_storage, index.text_width)


def on_device(batches: Iterator[StepBatch], device: str) -> Generator[StepBatch, None, None]:
    """The batches on a device; on a GPU each is copied while the step before it is computed."""
    if torch.device(device).type != "cuda":
        for batch in batches:
            yield batch.moved_to(device)
        return
    copying = torch.cuda.Stream(device)
    ahead: tuple[StepBatch, torch.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            copied = batch.moved_to(device), copying.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = copied
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(batch: StepBatch, copied: torch.Event) -> StepBatch:
    """The batch, for use in the current stream."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for tensor in batch.tensors():
        tensor.record_stream(stream)
    return batch


class StepLoss(nn.Module):
    """The weighted sum of a batch's losses; everything of a step that has a gradient is inside `forward`."""

    def __init__(self, network: Network, recipe: Recipe, precision: torch.dtype):
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.precision = precision
        network.residual = pick_precision(recipe.training.residual, "cpu")

    def forward(self, batch: StepBatch) -> Float[Tensor, ""]:
        """The share of the whole batch's mean loss that these images bring."""
        objective = self.recipe.objective
        # The same tokens are routed in every micro-batch of a step.
        routing = torch_generator("routing", self.recipe.seed, batch.position)
        device, lower = batch.latents.device.type, self.precision != torch.float32
        # Without autocast's cache: what the first pass cast without gradients must not serve the second.
        with torch.autocast(device, self.precision, enabled=lower, cache_enabled=False):
            text = TextStates(unpack(batch.states, batch.scales, self.precision), batch.mask)
            context = encode_text(self.network, text, batch.coherence)
            predict = training_predictor(
                self.network, objective.path, context, batch.windows, batch.self_condition, routing
            )
            losses = loss_per_sample(objective, predict, batch.latents, batch.noise, batch.t)
        return (losses.float() * batch.weights).sum()


def synthetic_batch(
    recipe: Recipe, size: int, channels: int, text_width: int, tokens: int, dtype: torch.dtype, device: str
) -> StepBatch:
    """A batch that takes as much memory as any of this size does; int8 states have scales."""
    shape = size, channels, recipe.latent_side, recipe.latent_side
    return StepBatch(
        position=0,
        count=size,
        latents=torch.zeros(shape, device=device),
        noise=torch.ones(shape, device=device),
        t=torch.full((size,), 0.5, device=device),
        states=torch.zeros(size, tokens, text_width, dtype=dtype, device=device),
        scales=torch.ones(size, tokens, device=device) if dtype == torch.int8 else None,
        mask=torch.ones(size, tokens, dtype=torch.bool, device=device),
        coherence=torch.ones(size, device=device),
        windows=torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).repeat(size, 1),
        weights=torch.full((size,), 1 / size, device=device),
        self_condition=torch.ones(size, dtype=torch.bool),
        tokens=[tokens] * size,
        paths=[""] * size,
        faults=[],
    )
