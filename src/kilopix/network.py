"""Where networks meet paths: a recipe's network, and the predictors that training and sampling call.

In: a recipe, or a network with its texts. Out: callables from noisy latents and times to predictions. A DiT
is told t itself, a RIN the signal level gamma at t; a RIN also sees its own latents of a pass before.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kilopix.behind import to_device
from kilopix.compiled_step import CompiledStep
from kilopix.diffusion.guidance import Predict, guided
from kilopix.diffusion.objective import ObjectiveConfig
from kilopix.diffusion.paths import PathConfig
from kilopix.diffusion.samplers import OnStep
from kilopix.diffusion.sampling import SamplingConfig, sample
from kilopix.models import dit, rin
from kilopix.models.dit import DiT, DiTConfig, TextContext
from kilopix.models.rin import RIN, LevelEmbedder, RINConfig, RINContext
from kilopix.recipe import Recipe
from kilopix.runtime import torch_generator
from kilopix.types import Prediction, TextStates

Network = DiT | RIN
Context = TextContext | RINContext
Run = Callable[..., Any]
"""A network, or what stands for it: its arguments to its answer."""


def build_network(recipe: Recipe, channels: int, text_width: int) -> Network:
    """A new network of a recipe, with weights drawn from its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if isinstance(recipe.model, DiTConfig):
            return DiT(recipe.model, channels, text_width)
        return RIN(recipe.model, channels, text_width, recipe.latent_side)


def blocks_of(network: Network) -> list[nn.Module]:
    """The blocks that make up most of a network: what is compiled, and whose activations can be dropped."""
    if isinstance(network, DiT):
        return list(network.blocks)
    return [*network.transformers_blocks, *network.rin_blocks]


def compiled_of(network: Network) -> list[nn.Module]:
    """What is compiled, each by itself: the blocks, and what makes keys and values for them of a text."""
    refiner = [network.text] if isinstance(network, DiT) else []
    return [*blocks_of(network), *refiner, *_text_keys_values(network)]


def shards_of(network: Network) -> list[list[nn.Module]]:
    """What processes that share a network gather at once; the text's keys and values are asked for outside
    their blocks, and so are a group of their own."""
    return [_text_keys_values(network), *([block] for block in blocks_of(network))]


def _text_keys_values(network: Network) -> list[nn.Module]:
    if isinstance(network, DiT):
        return [block.get_submodule("text_keys_values") for block in network.blocks]
    return [block.get_submodule("retrieve_cond.ca.kv") for block in network.rin_blocks]


def repeat_one_block(network: Network) -> None:
    """Put the first block of each kind in the place of all: as many activations, one block's weights."""
    lists = (
        [network.blocks] if isinstance(network, DiT) else [network.transformers_blocks, network.rin_blocks]
    )
    for blocks in lists:
        for i in range(1, len(blocks)):
            blocks[i] = blocks[0]


def empty_network(recipe: Recipe, channels: int, text_width: int) -> Network:
    """A recipe's network whose weights take no memory yet, for `load_state_dict(..., assign=True)`."""
    with torch.device("meta"):
        network = build_network(recipe, channels, text_width)
    for module in network.modules():
        if isinstance(module, LevelEmbedder):
            module.fill_constants()
    return network


def inputs_of(network: Network) -> tuple[int, int]:
    """The channels of the latents and the width of the text states that a network takes."""
    if isinstance(network, RIN):
        return network.patch_extractor.in_channels, network.map_text_tokens.in_features
    return network.patch_in.in_features // network.config.patch**2, network.text.project.in_features


def flops_per_image(recipe: Recipe, channels: int, text_width: int, text_tokens: int) -> float:
    """Multiply-adds times two of one forward pass of a recipe's network, text trunk included."""
    if isinstance(recipe.model, DiTConfig):
        return dit.flops_per_image(recipe.model, recipe.latent_side, channels, text_tokens)
    return sum(rin.flops_per_image(recipe.model, recipe.latent_side, channels, text_width, text_tokens))


def training_flops_per_image(recipe: Recipe, channels: int, text_width: int, text_tokens: int) -> float:
    """FLOPs that training needs for one image: backward is twice forward, and a network that conditions on
    its own latents first runs forward for its share of the samples. What is computed anew is not counted.
    """
    forward = flops_per_image(recipe, channels, text_width, text_tokens)
    again = 0.0 if isinstance(recipe.model, DiTConfig) else recipe.objective.self_conditioning
    return (3 + again) * forward


def attention_shapes(recipe: Recipe, batch: int) -> dict[str, tuple[tuple[int, int, int, int], int, bool]]:
    """The shapes of a network's attention: queries `B H T E`, keys, and whether a mask hides some."""
    config, text = recipe.model, recipe.text.max_tokens
    if isinstance(config, DiTConfig):
        tokens = (recipe.latent_side // config.patch) ** 2 + config.registers
        queries = (batch, config.heads, tokens, config.width // config.heads)
        return {"images": (queries, tokens, False), "texts": (queries, text, True)}
    latents, width = config.latents, config.latent_width
    images = (batch, config.compute_heads, latents, width // config.compute_heads)
    texts = (batch, config.read_write_heads, latents, width // config.read_write_heads)
    return {"images": (images, latents, False), "texts": (texts, text + own_keys(config), True)}


def own_keys(config: DiTConfig | RINConfig) -> int:
    """The keys that a network's blocks attend to beside those of a text's tokens."""
    return 0 if isinstance(config, DiTConfig) else 1 + config.coherence + config.registers


def encode_text(network: Network, text: TextStates, coherence: Float[Tensor, " B"]) -> Context:
    """What a network keeps of texts; networks without a coherence token pass it over."""
    return network.encode_text(text, coherence) if isinstance(network, RIN) else network.encode_text(text)


def training_predictor(
    network: Network,
    path: PathConfig,
    context: Context,
    windows: Float[Tensor, "B 4"],
    self_condition: Bool[Tensor, " B"],
    routing: torch.Generator | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The predictor of a training step: noisy latents `B C H W` and times `B` to predictions.

    `routing` draws which tokens a DiT routes past its middle blocks, where its config says so.
    """

    def predict(x: Tensor, t: Tensor) -> Tensor:
        if isinstance(network, RIN):
            assert isinstance(context, RINContext)
            return network.self_conditioned(x, path.at(t).gamma, context, self_condition)
        assert isinstance(context, TextContext)
        return network(x, t, context, windows, routing)

    return predict


def sampling_predictor(
    network: Network,
    path: PathConfig,
    prediction: Prediction,
    text: TextStates,
    without: TextStates,
    config: SamplingConfig,
    run: Run | None = None,
) -> Predict:
    """A guided predictor for one walk; texts are encoded once, `without` stands for no text.

    `run` is called in place of the network, such as a `CompiledStep` of it. Where guidance is off, the
    latents of the conditional pass go on for both branches, as published.
    """
    count = len(text.states)
    coherence = torch.tensor([config.coherence, config.coherence_without_text]).to(text.states)
    unit = run.text_unit if isinstance(run, CompiledStep) else 1
    joint = encode_text(network, _joined(text, without, unit), coherence.repeat_interleave(count))
    alone = joint.rows(slice(count))
    memory = _Memory(network, run or network, path, config.carry_latents)

    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return memory.step(x, t, alone)

    def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with_text, without_text = memory.step(torch.cat([x, x]), t, joint).chunk(2)
        return with_text, without_text

    return guided(conditional, both, config.guidance, path, prediction)


def sample_latents(
    network: Network,
    objective: ObjectiveConfig,
    sampling: SamplingConfig,
    text: TextStates,
    without: TextStates,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    on_step: OnStep | None = None,
    precision: Callable[[], AbstractContextManager] = nullcontext,
    run: Run | None = None,
) -> Float[Tensor, "B C H W"]:
    """Latents of `shape` for every row of `text` and its seed; a sample is the same in whatever batch.

    The network computes inside `precision`, the sampler in float32. Between the steps nothing is waited for:
    the host begins step after step, and a GPU follows. For `run` see `sampling_predictor`.
    """
    device = text.states.device

    def drawn(purpose: str) -> Callable[[], Tensor]:
        """Noise of which each sample's part comes from its own seed."""
        generators = [torch_generator(purpose, seed) for seed in seeds]
        return lambda: to_device(torch.stack([torch.randn(shape, generator=g) for g in generators]), device)

    path, prediction = objective.path, objective.prediction
    with precision():
        guided_predict = sampling_predictor(network, path, prediction, text, without, sampling, run)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        with precision():
            return guided_predict(x, t).float()

    return sample(predict, drawn("noise")(), sampling, path, prediction, drawn("step noise"), on_step)


@dataclass
class _Memory:
    """A network whose latents, where it has any, are carried from step to step.

    What it is told of the time is filled in on its device: a number that is copied there would be waited for.
    """

    network: Network
    run: Run
    path: PathConfig
    carry: bool
    latents: Tensor | None = None

    def step(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """The prediction for the samples of x, of which the first come again where guidance is on."""
        batch = len(x)
        if isinstance(self.network, DiT):
            assert isinstance(context, TextContext)
            return self.run(x, x.new_full((batch,), float(t)), context)
        assert isinstance(context, RINContext)
        before = self.latents
        if before is not None and len(before) != batch:  # guidance went on or off
            before = before[:batch] if len(before) > batch else torch.cat([before, before])
        gamma = x.new_full((batch,), float(self.path.at(t).gamma))
        prediction, latents = self.run(x, gamma, context, before)
        self.latents = latents if self.carry else None
        return prediction


def _joined(text: TextStates, other: TextStates, unit: int) -> TextStates:
    """The texts, followed by the other ones (one for all, or one each), padded to one length, in `unit`s."""
    count, length, width = text.states.shape
    longest = -(-max(length, other.states.shape[1]) // unit) * unit
    states = text.states.new_zeros(2 * count, longest, width)
    mask = text.mask.new_zeros(2 * count, longest)
    states[:count, :length], mask[:count, :length] = text.states, text.mask
    extra = other.states.shape[1]
    states[count:, :extra], mask[count:, :extra] = other.states, other.mask
    return TextStates(states, mask)
