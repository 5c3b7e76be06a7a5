"""A training step's batch and its loss: where data, objective and network meet.

In: shards, a recipe, and the place of a batch in the run. Out: the share of it that is this process's, with
every random decision made, and the module that turns it into a loss. All decisions are drawn from the seed
and the place of the batch or of the image, so that they depend on no number of processes or micro-batches.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kilopix.data.checked_batches import Fault, load_checked
from kilopix.data.loader import SampleOrder
from kilopix.data.shards import Shards
from kilopix.diffusion.objective import draw, drop_text, loss_per_sample
from kilopix.network import Network, encode_text, training_predictor
from kilopix.recipe import Recipe
from kilopix.runtime import torch_generator
from kilopix.training.parallel import Processes
from kilopix.types import TextStates


@dataclass(frozen=True)
class StepBatch:
    """This process's share of the batch that begins at image `position` of the order and has `count` images.

    `weights` are what each image's loss counts for: 1 / count; 0 for an image that only fills the share up;
    not a number for one that cannot be trained on, which makes every process leave the step out.
    """

    position: int
    count: int
    latents: Float[Tensor, "B C H W"]
    noise: Float[Tensor, "B C H W"]
    t: Float[Tensor, " B"]
    states: Float[Tensor, "B N D"]
    mask: Bool[Tensor, "B N"]
    coherence: Float[Tensor, " B"]
    windows: Float[Tensor, "B 4"]
    weights: Float[Tensor, " B"]
    self_condition: Bool[Tensor, " B"]
    paths: list[str]
    faults: list[Fault]

    def __len__(self) -> int:
        return len(self.latents)

    def moved_to(self, device: str) -> "StepBatch":
        """The batch on a device; `self_condition` stays, since to look at it there would be to wait."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> "StepBatch":
        """The batch in memory from which a GPU copies by itself."""
        return self._each(lambda x: x.pin_memory())

    def micro_batches(self, number: int) -> "Iterator[StepBatch]":
        """The batch in so many parts of nearly one size, none empty."""
        assert number <= len(self)
        for i in range(number):
            rows = slice(i * len(self) // number, (i + 1) * len(self) // number)
            yield self._each(lambda x, rows=rows: x[rows], self.self_condition[rows])

    def tensors(self) -> list[Tensor]:
        """The tensors that are on the device."""
        named = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return [x for name, x in named if isinstance(x, Tensor) and name != "self_condition"]

    def _each(self, change: Callable[[Tensor], Tensor], self_condition: Tensor | None = None) -> "StepBatch":
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "self_condition"}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        kept = self.self_condition if self_condition is None else self_condition
        return replace(self, **changed, self_condition=kept)


class StepLoader:
    """Makes the batches of one process."""

    def __init__(self, shards: Shards, recipe: Recipe, processes: Processes, micro_batch: int):
        self.shards = shards
        self.recipe = recipe
        self.processes = processes
        self.micro_batch = micro_batch
        self.text_dtype = torch.float32
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
        batch, faults = load_checked(
            self.shards,
            self._order,
            position,
            offsets,
            decisions.augmented.tolist(),
            decisions.short.tolist(),
            self.text_dtype,
        )
        weights = torch.full((len(offsets),), 1 / count)
        weights[[fault.place for fault in faults]] = torch.nan
        weights[len(share) :] = 0
        mean = batch.moments.mean
        draws = torch.stack([self._noise(position + offset, mean.shape[1:]) for offset in offsets])
        dropped = decisions.drop_text[offsets]
        text = drop_text(batch.text, self._empty_text(), dropped)
        made = StepBatch(
            position=position,
            count=count,
            latents=mean + batch.moments.std * draws[:, 0],
            noise=draws[:, 1].contiguous(),
            t=decisions.t[offsets],
            states=text.states,
            mask=text.mask,
            coherence=(~dropped).float(),
            windows=batch.window,
            weights=weights,
            self_condition=decisions.self_condition[offsets],
            paths=batch.paths[: len(share)],
            faults=[fault for fault in faults if fault.place < len(share)],
        )
        return made.pinned() if self.processes.device_type == "cuda" else made

    def _noise(self, image: int, shape: torch.Size) -> Float[Tensor, "2 C H W"]:
        """For the image of this number: a draw of its latents, and the noise that is added to them."""
        return torch.randn((2, *shape), generator=torch_generator("image", self.recipe.seed, image))

    def _empty_text(self) -> TextStates:
        empty = self.shards.empty_text
        return TextStates(empty.states.to(self.text_dtype), empty.mask)


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

    def forward(self, batch: StepBatch) -> Float[Tensor, ""]:
        """The share of the whole batch's mean loss that these images bring."""
        objective = self.recipe.objective
        # The same tokens are routed in every micro-batch of a step.
        routing = torch_generator("routing", self.recipe.seed, batch.position)
        lower = self.precision != torch.float32
        with torch.autocast(batch.latents.device.type, self.precision, enabled=lower):
            context = encode_text(self.network, TextStates(batch.states, batch.mask), batch.coherence)
            predict = training_predictor(
                self.network, objective.path, context, batch.windows, batch.self_condition, routing
            )
            losses = loss_per_sample(objective, predict, batch.latents, batch.noise, batch.t)
        return (losses.float() * batch.weights).sum()


def synthetic_batch(
    recipe: Recipe, size: int, channels: int, text_width: int, tokens: int, dtype: torch.dtype, device: str
) -> StepBatch:
    """A batch that takes as much memory as any of this size does."""
    shape = size, channels, recipe.latent_side, recipe.latent_side
    return StepBatch(
        position=0,
        count=size,
        latents=torch.zeros(shape, device=device),
        noise=torch.ones(shape, device=device),
        t=torch.full((size,), 0.5, device=device),
        states=torch.zeros(size, tokens, text_width, dtype=dtype, device=device),
        mask=torch.ones(size, tokens, dtype=torch.bool, device=device),
        coherence=torch.ones(size, device=device),
        windows=torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).repeat(size, 1),
        weights=torch.full((size,), 1 / size, device=device),
        self_condition=torch.ones(size, dtype=torch.bool),
        paths=[""] * size,
        faults=[],
    )
