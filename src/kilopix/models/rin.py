"""CAD-I: a recurrent interface network (Jabri et al. 2023) conditioned on text, with a coherence token
(Dufour et al. 2024).

In: noisy latents `B C H W`, the signal level gamma, a text context computed once per text, and the
network's own latents of the step before. Out: a prediction of the latents' shape, and the new latents.
What depends on the text alone (trunk, keys and values of every block) is not computed again at every
pass or step.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from kilopix.config import Config
from kilopix.models.layers import in_float32
from kilopix.models.rin_blocks import (
    EPS,
    Packing,
    RINBlock,
    SelfAttentionBlock,
    can_look,
    mlp,
)
from kilopix.types import TextStates

_LAYER_SCALE = 0.1


class RINConfig(Config):
    """Shape of a RIN; latent side and channels, and text width come from the encoders."""

    kind: Literal["rin"] = "rin"
    latents: int = Field(default=128, ge=1, le=16384, description="number of latent tokens")
    latent_width: int = Field(default=768, ge=16, le=16384)
    token_width: int = Field(default=256, ge=16, le=16384, description="width of a patch token")
    blocks: int = Field(default=4, ge=1, le=128)
    layers: int = Field(default=4, ge=0, le=128, description="self-attention layers in a block")
    patch: int = Field(default=2, ge=1, le=64)
    read_write_heads: int = Field(default=16, ge=1, le=512)
    compute_heads: int = Field(default=12, ge=1, le=512)
    text_heads: int = Field(default=16, ge=1, le=512)
    text_layers: int = Field(default=2, ge=0, le=64)
    registers: int = Field(default=16, ge=0, le=1024)
    mlp_ratio: int = Field(default=4, ge=1, le=32, description="of the latents' MLPs")
    token_mlp_ratio: int = Field(default=4, ge=1, le=32, description="of the patch tokens' MLPs")
    coherence: bool = True

    @model_validator(mode="after")
    def _heads_divide(self):
        for name, heads, width in (
            ("read_write_heads", self.read_write_heads, math.gcd(self.latent_width, self.token_width)),
            ("compute_heads", self.compute_heads, self.latent_width),
            ("text_heads", self.text_heads, self.latent_width),
        ):
            if width % heads:
                raise ValueError(
                    f"{name} {heads} must divide latent_width {self.latent_width}"
                    + (f" and token_width {self.token_width}" if name == "read_write_heads" else "")
                )
        if self.latent_width % 8:
            raise ValueError(f"latent_width {self.latent_width} must be a multiple of 8")
        return self


RIN_SIZES = {
    "base": RINConfig(),
    "L": RINConfig(latents=256, latent_width=1024, compute_heads=16),
}
"""The published sizes: 4 blocks of 4 layers; L has 330M parameters, 332M with coherence."""


@dataclass(frozen=True)
class RINContext:
    """What the network keeps of a text: keys and values of every block, and which of them are real.

    A mask of None says that all are. There is one key for each of: coherence, registers, text tokens.
    """

    keys_values: list[tuple[Float[Tensor, "B H N E"], Float[Tensor, "B H N E"]]]
    mask: Bool[Tensor, "B N"] | None

    def rows(self, index: Tensor | slice) -> "RINContext":
        """The context of some of the samples."""
        pairs = [(keys[index], values[index]) for keys, values in self.keys_values]
        return RINContext(pairs, None if self.mask is None else self.mask[index])


class LevelEmbedder(nn.Module):
    """A level in [0, 1] to a vector: sinusoid of 1000 times it, standardised, through an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.inputs = width // 4
        self.frequencies: Tensor
        self.register_buffer("frequencies", embedding_frequencies(self.inputs), persistent=False)
        self.map_time = nn.Sequential(nn.Linear(self.inputs, width), nn.SiLU(), nn.Linear(width, width))

    def fill_constants(self) -> None:
        """Compute what no weights file holds, for a network that was built on the meta device."""
        self.frequencies = embedding_frequencies(self.inputs)

    def forward(self, level: Float[Tensor, " B"]) -> Float[Tensor, "B W"]:
        """Embed the levels."""
        angles = torch.outer(1000.0 * level, self.frequencies)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        mean, std = waves.mean(dim=1, keepdim=True), waves.std(dim=1, keepdim=True)
        return self.map_time((waves - mean) / std)


def embedding_frequencies(width: int) -> Float[Tensor, " F"]:
    """Geometric frequencies from 1 towards 1/10,000, one for each pair of cosine and sine."""
    return (1 / 10_000) ** (2 * torch.arange(width // 2, dtype=torch.float32) / width)


class RIN(nn.Module):
    """The whole network; `encode_text` runs once per text, `forward` once per step."""

    def __init__(self, config: RINConfig, channels: int, text_width: int, latent_side: int):
        super().__init__()
        if latent_side % config.patch:
            raise ValueError(f"latents of side {latent_side} are no whole patches of {config.patch}")
        self.config = config
        self.residual = torch.float32
        self.always_first_pass = False
        width, tokens = config.latent_width, (latent_side // config.patch) ** 2
        self.patch_extractor = nn.Conv2d(channels, config.token_width, config.patch, config.patch)
        self.data_pos_embedding = nn.Parameter(torch.empty(tokens, config.token_width))
        self.data_ln = nn.LayerNorm(config.token_width, EPS)
        self.latents = nn.Parameter(torch.empty(config.latents, width))
        self.time_embedder = LevelEmbedder(width)
        if config.coherence:
            self.coherence_embedder = LevelEmbedder(width)
            self.coherence_positional_embedding = nn.Parameter(torch.empty(width))
        self.map_text_tokens = nn.Linear(text_width, width)
        self.text_registers = nn.Parameter(torch.empty(config.registers, width))
        self.transformers_blocks = nn.ModuleList(
            SelfAttentionBlock(width, config.text_heads, 4, _LAYER_SCALE) for _ in range(config.text_layers)
        )
        self.linear_previous = nn.Sequential(nn.LayerNorm(width, EPS), mlp(width, config.mlp_ratio))
        self.ln_previous = nn.LayerNorm(width, EPS)
        self.rin_blocks = nn.ModuleList(
            RINBlock(
                config.token_width,
                width,
                config.layers,
                config.read_write_heads,
                config.compute_heads,
                config.mlp_ratio,
                config.token_mlp_ratio,
            )
            for _ in range(config.blocks)
        )
        self.map_tokens_to_patches = nn.Sequential(
            nn.LayerNorm(config.token_width, EPS), nn.Linear(config.token_width, channels * config.patch**2)
        )
        self._initialise()

    def _initialise(self) -> None:
        """Xavier weights, zero biases, learned tokens of deviation 0.02; previous latents start unseen."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        learned = [self.data_pos_embedding, self.latents, self.text_registers]
        if self.config.coherence:
            learned.append(self.coherence_positional_embedding)
        for tokens in learned:
            nn.init.trunc_normal_(tokens, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(self.ln_previous.weight)
        nn.init.zeros_(self.ln_previous.bias)

    def encode_text(self, text: TextStates, coherence: Float[Tensor, " B"] | None = None) -> RINContext:
        """Everything of the network that depends on text and coherence alone.

        `coherence` in [0, 1] says how well the text describes the picture: by default 1, wholly.
        """
        batch = len(text.states)
        own = self.text_registers.expand(batch, -1, -1)
        if self.config.coherence:
            level = text.states.new_ones(batch) if coherence is None else coherence
            token = self.coherence_embedder(level) + self.coherence_positional_embedding
            own = torch.cat([token[:, None], own], dim=1)
        mask = torch.cat([text.mask.new_ones(batch, own.shape[1]), text.mask], dim=1)
        packing, words = Packing.of(mask), Packing.of(text.mask)
        mapped = words.unpack(self.map_text_tokens(words.pack(text.states)))
        x = packing.pack(torch.cat([own, mapped], dim=1)).to(self.residual)
        for block in self.transformers_blocks:
            x = block(x, packing)
        keys_values = [_text_keys_values(block)(x, packing) for block in self.rin_blocks]
        return RINContext(keys_values, mask if packing.rows is not None else _unless_all(mask))

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        gamma: Float[Tensor, " B"],
        context: RINContext,
        previous: Float[Tensor, "B L D"] | None = None,
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B L D"]]:
        """Prediction and latents; `gamma` is the signal level (1 is clean), `previous` the last latents."""
        data, latents = self._read(x, gamma, context, previous)
        return self._to_image(data, x), latents

    def self_conditioned(
        self,
        x: Float[Tensor, "B C H W"],
        gamma: Float[Tensor, " B"],
        context: RINContext,
        keep: Bool[Tensor, " B"],
    ) -> Float[Tensor, "B C H W"]:
        """Prediction from the latents of a first pass where `keep` (on the CPU) is true, from none elsewhere.

        The first pass builds no graph, runs for the samples that keep it, and writes no picture (RIN,
        section 3.3). Gradients are those of the second pass alone, however many batches are accumulated.
        Where those that keep it are the first of the batch, as training puts them, nothing is copied to a
        device and waited for. With `always_first_pass` it runs for one sample that does not keep it where
        none does: processes that share a network must all ask for its blocks.
        """
        previous = None
        chosen = [i for i, kept in enumerate(keep.tolist()) if kept]
        count = len(chosen)
        if count or self.always_first_pass:
            of_all = slice(max(count, 1))
            kept = of_all if not count or chosen[-1] < count else torch.tensor(chosen, device=x.device)
            with torch.no_grad():
                previous = self._read(x[kept], gamma[kept], context.rows(kept), None, write_last=False)[1]
            if not count:
                previous = None
            elif not isinstance(kept, slice):
                previous = _scatter(previous, kept, len(x))
            elif count < len(x):
                previous = torch.cat([previous, previous.new_zeros(len(x) - count, *previous.shape[1:])])
        return self(x, gamma, context, previous)[0]

    def _read(
        self,
        x: Tensor,
        gamma: Tensor,
        context: RINContext,
        previous: Tensor | None,
        write_last: bool = True,
    ) -> tuple[Tensor, Tensor]:
        data = rearrange(self.patch_extractor(x), "b d h w -> b (h w) d")
        data = self.data_ln(data) + self.data_pos_embedding
        level = self.time_embedder(gamma)[:, None]
        if previous is None:  # the answer to zeros, which is the same for every token
            previous = x.new_zeros(1, 1, self.config.latent_width)
        previous = previous.float()
        latents = self.latents + level + self.ln_previous(previous + self.linear_previous(previous))
        data, latents = data.to(self.residual), latents.to(self.residual)
        seen = None
        if context.mask is not None:
            seen = torch.cat([context.mask.new_ones(len(x), 1), context.mask], dim=1)
        last = len(self.rin_blocks) - 1
        for i, (block, kept) in enumerate(zip(self.rin_blocks, context.keys_values, strict=True)):
            own = _text_keys_values(block)(level)
            keys, values = (torch.cat(pair, dim=2) for pair in zip(own, kept, strict=True))
            data, latents = block(data, latents, keys, values, seen, write=write_last or i < last)
        return data, latents

    def _to_image(self, data: Tensor, x: Tensor) -> Tensor:
        patch, height = self.config.patch, x.shape[2] // self.config.patch
        with in_float32(data):
            patches = self.map_tokens_to_patches(data.float())
        return rearrange(
            patches,
            "b (h w) (p q c) -> b c (h p) (w q)",
            p=patch,
            q=patch,
            h=height,
        )


def flops_per_image(
    config: RINConfig, latent_side: int, channels: int, text_width: int, text_tokens: int
) -> tuple[float, float]:
    """Multiply-adds times two of one sample: of what depends on the text alone, and of one pass.

    Attention scores included; norms, and the time token's own key and value, left out.
    """
    wide, narrow, ratio = config.latent_width, config.token_width, config.mlp_ratio
    latents, data = config.latents, (latent_side // config.patch) ** 2
    context = text_tokens + config.registers + config.coherence
    inner = min(wide, narrow)
    trunk = config.text_layers * (12 * context * wide**2 + 2 * context**2 * wide)
    text = text_tokens * text_width * wide + trunk + config.blocks * 2 * context * wide**2
    cond = latents * (2 + 2 * ratio) * wide**2 + 2 * latents * context * wide
    read = latents * (2 * wide * inner + 2 * ratio * wide**2) + 2 * data * narrow * inner
    think = config.layers * (latents * (4 + 2 * ratio) * wide**2 + 2 * latents**2 * wide)
    write = data * (2 * narrow * inner + 2 * config.token_mlp_ratio * narrow**2) + 2 * latents * wide * inner
    block = cond + read + think + write + 4 * data * latents * inner
    ends = 2 * data * channels * config.patch**2 * narrow + latents * 2 * ratio * wide**2
    return 2.0 * text, 2.0 * (config.blocks * block + ends)


def _text_keys_values(block: nn.Module) -> nn.Module:
    return block.get_submodule("retrieve_cond.ca.kv")


def _unless_all(mask: Tensor) -> Tensor | None:
    """No mask where all is real; on a GPU the mask stays, since to look would be to wait."""
    return None if can_look(mask) and bool(mask.all()) else mask


def _scatter(x: Tensor, index: Tensor, batch: int) -> Tensor:
    """Rows in their places among zeros."""
    return x.new_zeros(batch, *x.shape[1:]).index_copy(0, index, x)
