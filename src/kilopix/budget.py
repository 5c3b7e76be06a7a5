"""What a run costs: parameters, FLOPs, bytes on disk and on a device, all before anything is made.

In: a recipe, and what its encoders give. Out: numbers. Activations are counted, not guessed: the network runs
forward on tensors without values, and what is kept for the backward pass is added up.
"""

import math
import time
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from kilopix.hardware import Device, Precision, peak_flops
from kilopix.models.dit import DiTConfig, TextContext
from kilopix.models.rin import RIN, RINContext
from kilopix.network import (
    Network,
    build_network,
    encode_text,
    flops_per_image,
    training_flops_per_image,
    training_predictor,
)
from kilopix.pretrained.autoencoder import DiffusersAutoencoderConfig, SDAutoencoderConfig
from kilopix.pretrained.patch_codec import PatchCodecConfig
from kilopix.pretrained.text_encoder import HubTextConfig, MiniLMConfig
from kilopix.recipe import Recipe
from kilopix.runtime import read_json, torch_generator
from kilopix.training.optim import build_optimizer
from kilopix.types import TextStates, UserError

IMAGENET = 1_281_167
TOKENS = {"aio": 8, "structured": 64, "given": 115, "model": 115, "server": 115}
"""Tokens of a caption by who wrote it: LLaVA's are 78 to 94 words, and T5 has 1.3 tokens a word."""
_TEXT_WIDTHS = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
_MINILM_WIDTH, _SD_CHANNELS = 384, 4
_TEXT_BYTES = {"float16": 2, "bfloat16": 2, "int8": 1}
_ROW = 700
"""Bytes of a row of shards beside latents and states: caption, path, class, offsets."""
_CONTEXT = 1.0e9
"""What a GPU's driver and libraries take."""
_AT_WORK = 1.25
"""Memory at the peak, over what is kept for the backward pass: the rest is in work just then. Measured on a
CPU for a DiT of six blocks: 1.23 from 8 to 16 images, 1.38 from 4 to 8."""
_USABLE = 0.92
"""Share of a device's memory that an allocator can fill."""


@dataclass(frozen=True)
class Encoded:
    """What the encoders make of a picture and its caption."""

    channels: int
    text_width: int
    tokens: int

    @classmethod
    def of(cls, recipe: Recipe, tokens: int | None = None) -> "Encoded":
        """Known of the recipe's encoders by their names, or from their folders."""
        count = min(tokens or TOKENS[recipe.data.captioner], recipe.text.max_tokens)
        return cls(_channels(recipe), _text_width(recipe), count)


def _channels(recipe: Recipe) -> int:
    config = recipe.autoencoder
    if isinstance(config, SDAutoencoderConfig):
        return _SD_CHANNELS
    if isinstance(config, DiffusersAutoencoderConfig):
        return _from_folder(config.name, config.subfolder, ("latent_channels",), "autoencoder")
    return config.channels


def _text_width(recipe: Recipe) -> int:
    config = recipe.text
    if isinstance(config, MiniLMConfig):
        return _MINILM_WIDTH
    size = config.name.rpartition("-")[2]
    known = not isinstance(config, HubTextConfig) and config.name.startswith("google/")
    if known and size in _TEXT_WIDTHS:
        return _TEXT_WIDTHS[size]
    return _from_folder(config.name, "", ("d_model", "hidden_size"), "text")


def _from_folder(name: str, subfolder: str, keys: tuple[str, ...], section: str) -> int:
    record = Path(name).expanduser() / subfolder / "config.json"
    values = read_json(record) if record.is_file() else {}
    for key in keys:
        if isinstance(values.get(key), int):
            return values[key]
    raise UserError(
        f"{section}.name={name}: what it gives is not known here; plan with --shards FOLDER, which say it, "
        f"or set {section}.name to the folder that holds it."
    )


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a micro-batch is trained, everything in float32 but activations."""

    weights: float
    gradients: float
    optimizer: float
    averages: float
    casts: float
    per_image: float
    context: float

    def fixed(self, sharded_over: int = 1) -> float:
        """What does not grow with the micro-batch; weights and what belongs to them may be sharded."""
        shared = self.weights + self.gradients + self.optimizer + self.averages
        return shared / sharded_over + self.casts + self.context

    def peak(self, images: int, sharded_over: int = 1) -> float:
        """All of it, at a micro-batch."""
        return self.fixed(sharded_over) + images * _AT_WORK * self.per_image

    def largest(self, device_bytes: float, most: int) -> int:
        """The largest power of two of images, up to `most`, that fits; 0 if none does."""
        fits = [2**i for i in range(17) if self.peak(2**i) <= _USABLE * device_bytes and 2**i <= most]
        return max(fits, default=0)


@dataclass(frozen=True)
class Budget:
    """The costs of a recipe's run."""

    recipe: Recipe
    encoded: Encoded
    pictures: int = IMAGENET
    precision: Precision = "bfloat16"

    @cached_property
    def network(self) -> Network:
        """The network, without values."""
        with torch.device("meta"):
            return build_network(self.recipe, self.encoded.channels, self.encoded.text_width)

    @cached_property
    def parameters(self) -> int:
        """Weights of the network."""
        return sum(p.numel() for p in self.network.parameters())

    @cached_property
    def flops_per_image(self) -> float:
        """FLOPs of one picture trained, routed tokens left out."""
        given = self.encoded.channels, self.encoded.text_width, self.encoded.tokens
        return training_flops_per_image(self.recipe, *given) - 3 * self._routed()

    def _routed(self) -> float:
        """FLOPs of a forward pass that token routing saves."""
        model, data = self.recipe.model, self.recipe.data
        if not isinstance(model, DiTConfig) or not model.routing.share:
            return 0.0
        passed = max(0, model.depth - model.routing.first - model.routing.after)
        if (self.recipe.latent_side // model.patch) ** 2 < model.routing.min_tokens or not passed:
            return 0.0

        def blocks(tokens: int) -> float:
            """FLOPs of the blocks that are passed by, for a square number of tokens."""
            pixels = math.isqrt(tokens) * model.patch * self.recipe.downsampling
            sized = data.model_copy(update={"image_size": pixels})
            given = self.encoded.channels, self.encoded.text_width, self.encoded.tokens
            deep, flat = (
                flops_per_image(self.recipe.model_copy(update={"data": sized, "model": one}), *given)
                for one in (model.model_copy(update={"depth": d}) for d in (passed + 1, 1))
            )
            return deep - flat

        # A polynomial of second degree in the tokens, of which three values tell the rest.
        tokens = (self.recipe.latent_side // model.patch) ** 2
        kept = round(tokens * (1 - model.routing.share))
        at_1, at_4, at_9 = (blocks(count) for count in (1, 4, 9))
        curve = ((at_9 - at_4) / 5 - (at_4 - at_1) / 3) / 8
        slope = (at_4 - at_1) / 3 - 5 * curve
        return curve * (tokens**2 - kept**2) + slope * (tokens - kept)

    @property
    def flops(self) -> float:
        """FLOPs of the whole run."""
        return self.flops_per_image * self.recipe.training.images

    @property
    def rows(self) -> int:
        """Rows of the shards: every picture, and its augmented version if the recipe uses any."""
        return self.pictures * (2 if self.recipe.objective.augment_probability else 1)

    def row_bytes(self, augmented: bool = False) -> float:
        """Bytes of a row: latents (a patch codec's have no deviation) and the states of the captions."""
        data, most = self.recipe.data, self.recipe.text.max_tokens
        token = self.encoded.text_width * _TEXT_BYTES[data.text_storage]
        token += 4 if data.text_storage == "int8" else 0
        tokens = self.encoded.tokens
        if augmented:  # CutMix describes both pictures, Crop says which part it is
            tokens = min(most, 2 * tokens if data.augment.kind == "cutmix" else tokens + TOKENS["aio"])
        if not augmented and data.captioner != "aio":
            tokens += TOKENS["aio"]  # the short caption
        moments = 1 if isinstance(self.recipe.autoencoder, PatchCodecConfig) else 2
        latents = moments * 2 * self.encoded.channels * self.recipe.latent_side**2
        return float(latents + tokens * token + _ROW)

    @property
    def shard_bytes(self) -> float:
        """Bytes of all shards."""
        augmented = self.rows - self.pictures
        return self.pictures * self.row_bytes() + augmented * self.row_bytes(augmented=True)

    @property
    def checkpoint_bytes(self) -> float:
        """Bytes of one checkpoint: weights, averages, the optimizer's state."""
        memory = self._states
        return memory.weights + memory.averages + memory.optimizer

    @property
    def averages(self) -> int:
        """Averaged copies that are kept."""
        return len(getattr(self.recipe.training.average, "sigma_rel", (0,)))

    @cached_property
    def _states(self) -> Memory:
        one = 4.0 * self.parameters
        groups = build_optimizer(self.recipe.optimizer, self.network).param_groups
        kept = sum(p.numel() * (1 if group.get("muon") else 2) for group in groups for p in group["params"])
        return Memory(one, one, 4.0 * kept, self.averages * one, 0.0, 0.0, 0.0)

    @cached_property
    def memory(self) -> Memory:
        """Bytes on a device; activations as an uncompiled network keeps them."""
        once, twice = (kept_for_backward(self.recipe, self.encoded, n, self.precision) for n in (2, 4))
        per_image = (twice - once) / 2
        states = self._states
        return Memory(
            states.weights,
            states.gradients,
            states.optimizer,
            states.averages,
            max(0.0, once - 2 * per_image),
            per_image,
            _CONTEXT,
        )

    def device_hours(self, device: Device, utilisation: float) -> float:
        """Hours of the run on one device that does a share of its peak."""
        peak = device.peak(self.precision)
        if peak is None:
            raise UserError(f"device {device.name}: has no {self.precision}; plan with --precision float16.")
        return self.flops / (utilisation * peak) / 3600


def kept_for_backward(recipe: Recipe, encoded: Encoded, images: int, precision: Precision) -> float:
    """Bytes that a forward pass keeps for the backward one, weights in float32 left out.

    Copies of weights in another precision count: they are kept once, whatever the number of images.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        network = build_network(recipe, encoded.channels, encoded.text_width).train()
    with FakeTensorMode():  # tensors that have a device, as those of meta have not, but no values either
        for module in network.modules():
            for name, value in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(value.shape, dtype=value.dtype)))
            for name, value in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(value.shape, dtype=value.dtype))
        return kept_by(network, recipe, encoded, images, precision)


def kept_by(network: Network, recipe: Recipe, encoded: Encoded, images: int, precision: Precision) -> float:
    """The same of a network that is there."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its place is not given to another
        return value

    x, t, text, windows = sample_inputs(recipe, encoded, images)
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
        torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None),
        warnings.catch_warnings(action="ignore", category=UserWarning),  # that autocast is slow somewhere
    ):
        context = encode_text(network, text, torch.ones(images))
        if isinstance(network, RIN):  # the first pass keeps nothing
            assert isinstance(context, RINContext)
            config = network.config
            out, _ = network(x, t, context, torch.zeros(images, config.latents, config.latent_width))
        else:
            assert isinstance(context, TextContext)
            out = network(x, t, context, windows, torch.Generator())
        loss = out.float().square().mean()
    del loss
    return float(sum(storage.nbytes() for storage in kept.values()))


def sample_inputs(
    recipe: Recipe, encoded: Encoded, images: int, device: str = "cpu"
) -> tuple[Tensor, Tensor, TextStates, Tensor]:
    """Noise in place of latents, times, states of captions, and windows."""
    side = recipe.latent_side
    text = torch.randn(images, encoded.tokens, encoded.text_width, device=device)
    states = TextStates(text, torch.ones(images, encoded.tokens, dtype=torch.bool, device=device))
    windows = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device).expand(images, 4)
    latents = torch.randn(images, encoded.channels, side, side, device=device)
    return latents, torch.rand(images, device=device), states, windows


@dataclass(frozen=True)
class Speed:
    """What was measured on a device: seconds of a step, and the share of its peak that they are."""

    images: int
    seconds: float
    utilisation: float | None


def measured_speed(budget: Budget, device: str, images: int, steps: int = 3) -> Speed:
    """Train a new network on noise for a few steps, the first of which is not counted."""
    recipe, encoded = budget.recipe, budget.encoded
    network = build_network(recipe, encoded.channels, encoded.text_width).to(device).train()
    optimizer = build_optimizer(recipe.optimizer, network)
    x, t, text, windows = sample_inputs(recipe, encoded, images, device)
    keep = torch.arange(images) < round(recipe.objective.self_conditioning * images)
    kind = torch.device(device).type
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(budget.precision)
    best = float("inf")
    for step in range(steps + 1):
        _wait(kind)
        started = time.perf_counter()
        with torch.autocast(kind, half or torch.bfloat16, enabled=half is not None):
            context = encode_text(network, text, torch.ones(images, device=device))
            routing = torch_generator("plan")
            predict = training_predictor(network, recipe.objective.path, context, windows, keep, routing)
            out = predict(x, t)
        out.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(kind)
        if step:
            best = min(best, time.perf_counter() - started)
    peak = peak_flops(device, budget.precision)
    return Speed(images, best, budget.flops_per_image * images / best / peak if peak else None)


def _wait(kind: str) -> None:
    """Let the device finish what it was given."""
    if kind == "cuda":
        torch.cuda.synchronize()
    if kind == "mps":
        torch.mps.synchronize()
