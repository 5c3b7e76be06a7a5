"""DiT-I: a text-conditioned diffusion transformer over latent patches.

In: noisy latents `B C H W`, times, and a text context computed once per text. Out: a prediction of the
latents' shape. Choices: rotary 2-D positions in continuous coordinates, and where each token lies added to
it; RMSNorm, QK-norm, SwiGLU; one shared time modulation with an offset per block; text by cross-attention
and (pooled) in the modulation; register tokens. Blocks and output start at zero, so that a new network is
the identity inside. For large pictures tokens can be routed past the middle blocks in training.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from kilopix.config import Config
from kilopix.models.layers import (
    CrossAttention,
    KeysValues,
    SelfAttention,
    SwiGLU,
    TextRefiner,
    TimeEmbedding,
    added,
    in_float32,
    linear,
    rotary_2d,
)
from kilopix.types import TextStates

_POSITIONS_PER_SIDE = 16.0
_POSITION_FREQUENCIES = 4


class RoutingConfig(Config):
    """Token routing in training (TREAD; Krause et al. 2025): a random share of the patch tokens passes by the
    blocks from `first` up to the last `after` ones, and joins again. Off below `min_tokens`, where it hurts.
    """

    share: float = Field(default=0.0, ge=0, lt=1)
    first: int = Field(default=2, ge=0, le=512)
    after: int = Field(default=2, ge=0, le=512)
    min_tokens: int = Field(default=1_000, ge=1)


class DiTConfig(Config):
    """Shape of a DiT; latent channels and text width come from the encoders."""

    kind: Literal["dit"] = "dit"
    width: int = Field(default=256, ge=32, le=16384)
    depth: int = Field(default=6, ge=1, le=512)
    heads: int = Field(default=4, ge=1, le=512)
    patch: int = Field(default=1, ge=1, le=64)
    mlp_ratio: float = Field(default=4.0, gt=0, le=32)
    text_layers: int = Field(default=1, ge=0, le=64)
    registers: int = Field(default=4, ge=0, le=1024)
    routing: RoutingConfig = RoutingConfig()

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(f"width {self.width} over heads {self.heads} must be a multiple of 4")
        return self


DIT_SIZES = {
    "S": DiTConfig(width=384, depth=12, heads=6, patch=2, text_layers=2),
    "B": DiTConfig(width=768, depth=12, heads=12, patch=2, text_layers=2),
    "L": DiTConfig(width=1024, depth=21, heads=16, patch=2, text_layers=2),
}
"""For latents of 32 positions a side; L has 390M parameters over Flan-T5-XL."""


@dataclass(frozen=True)
class TextContext:
    """What the network keeps of a text: keys and values of every block, mask, and a pooled vector."""

    keys_values: list[tuple[Tensor, Tensor]]
    mask: Bool[Tensor, "B N"]
    pooled: Float[Tensor, "B D"]

    def rows(self, index: Tensor | slice) -> "TextContext":
        """The context of some of the samples."""
        pairs = [(keys[index], values[index]) for keys, values in self.keys_values]
        return TextContext(pairs, self.mask[index], self.pooled[index])


class DiTBlock(nn.Module):
    """Self-attention, cross-attention to the text, MLP; each normalised, modulated, gated."""

    varying = ((0,), (0,), (0,), (0, 2), (0, 1))
    """The dimensions of the arguments that differ from call to call: batch and length of the text."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width, heads = config.width, config.heads
        self.norm_self = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.norm_cross = nn.RMSNorm(width, eps=1e-6)
        self.norm_mlp = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = SelfAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads, out_gain=0.0)
        self.text_keys_values = KeysValues(width, width, heads)
        self.mlp = SwiGLU(width, config.mlp_ratio)
        self.modulation_offset = nn.Parameter(torch.zeros(6, width))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        modulation: Float[Tensor, "B 6 D"],
        rotary: tuple[Tensor, Tensor],
        keys_values: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "B N"],
    ) -> Float[Tensor, "B T D"]:
        """One block; `modulation` is shared by all blocks (PixArt-alpha, section 2.3)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            (modulation + self.modulation_offset).unsqueeze(2).unbind(dim=1)
        )
        mixed = self.attention(self.norm_self(x.float()) * (1 + scale_a) + shift_a, rotary)
        x = added(x, gate_a * mixed)
        x = added(x, self.cross_attention(self.norm_cross(x.float()), *keys_values, mask))
        return added(x, gate_m * self.mlp(self.norm_mlp(x.float()) * (1 + scale_m) + shift_m))


class DiT(nn.Module):
    """The whole network; `encode_text` runs once per text, `forward` once per step."""

    def __init__(self, config: DiTConfig, channels: int, text_width: int):
        super().__init__()
        self.config = config
        self.residual = torch.float32
        width = config.width
        values_per_patch = channels * config.patch**2
        self.patch_in = linear(values_per_patch, width, bias=True)
        self.position_in = linear(4 * _POSITION_FREQUENCIES, width)
        self.registers = nn.Parameter(torch.randn(config.registers, width))
        self.time = TimeEmbedding(width)
        self.text = TextRefiner(text_width, width, config.heads, config.text_layers)
        self.pooled_text = linear(width, width, bias=True)
        self.modulation = linear(width, 6 * width, gain=0.0, bias=True)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.norm_out = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation_out = linear(width, 2 * width, gain=0.0, bias=True)
        self.patch_out = linear(width, values_per_patch, gain=0.0, bias=True)

    def encode_text(self, text: TextStates) -> TextContext:
        """Everything of the network that depends on the text alone."""
        tokens, mean = self.text(text.states, text.mask)
        keys_values: list[tuple[Tensor, Tensor]] = [
            block.get_submodule("text_keys_values")(tokens) for block in self.blocks
        ]
        return TextContext(keys_values, text.mask, self.pooled_text(mean))

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        t: Float[Tensor, " B"],
        context: TextContext,
        window: Float[Tensor, "B 4"] | None = None,
        routing: torch.Generator | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """Predict; `window` (x0, y0, x1, y1 in fractions of the whole image) says which part x shows.

        With a generator as `routing`, tokens are routed as the config says; without one, none are.
        """
        patch = self.config.patch
        height, width = x.shape[2] // patch, x.shape[3] // patch
        tokens = self.patch_in(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch))
        if window is None:  # the whole, filled in where x is: copied there it would be waited for
            window = torch.cat([x.new_zeros(1, 2), x.new_ones(1, 2)], dim=1)
        positions = token_positions(height, width, window)
        tokens = tokens + self.position_in(fourier_features(positions, _POSITION_FREQUENCIES))
        tokens = torch.cat([self.registers.expand(len(x), -1, -1), tokens], dim=1)
        # Registers lie at the origin.
        positions = torch.nn.functional.pad(positions, (0, 0, self.config.registers, 0))
        rotary = rotary_2d(_POSITIONS_PER_SIDE * positions, self.config.width // self.config.heads)
        condition = torch.nn.functional.silu(self.time(t) + context.pooled)
        modulation = rearrange(self.modulation(condition), "b (six d) -> b six d", six=6)
        tokens = self._through_blocks(tokens.to(self.residual), modulation, rotary, context, routing)
        shift, scale = self.modulation_out(condition)[:, None].chunk(2, dim=-1)
        with in_float32(tokens):
            tokens = self.norm_out(tokens[:, self.config.registers :].float()) * (1 + scale) + shift
            out = self.patch_out(tokens)
        return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=height, w=width, p=patch, q=patch)

    def _through_blocks(
        self,
        tokens: Tensor,
        modulation: Tensor,
        rotary: tuple[Tensor, Tensor],
        context: TextContext,
        routing: torch.Generator | None,
    ) -> Tensor:
        """All blocks in turn; the tokens that are routed wait beside the middle ones."""
        config, registers = self.config.routing, self.config.registers
        patches = tokens.shape[1] - registers
        begin, end = config.first, len(self.blocks) - config.after
        routed = routing is not None and config.share > 0 and patches >= config.min_tokens and begin < end
        waiting, whole, kept = tokens, rotary, None
        for i, (block, keys_values) in enumerate(zip(self.blocks, context.keys_values, strict=True)):
            if routed and i == begin:
                order = torch.randperm(patches, generator=routing)[: round(patches * (1 - config.share))]
                kept = torch.cat([torch.arange(registers), registers + order.sort().values]).to(tokens.device)
                waiting, tokens = tokens, tokens[:, kept]
                rotary = whole[0][:, :, kept], whole[1][:, :, kept]
            if routed and i == end:
                assert kept is not None
                tokens, rotary = waiting.index_copy(1, kept, tokens), whole
            tokens = block(tokens, modulation, rotary, keys_values, context.mask)
        if routed and end == len(self.blocks):
            assert kept is not None
            tokens = waiting.index_copy(1, kept, tokens)
        return tokens


def token_positions(height: int, width: int, window: Float[Tensor, "B 4"]) -> Float[Tensor, "B T 2"]:
    """Centres (y, x) of a grid of tokens, in fractions of the whole image, of which `window` is seen."""
    x0, y0, x1, y1 = window.unbind(dim=1)
    down = (torch.arange(height, device=window.device) + 0.5) / height
    across = (torch.arange(width, device=window.device) + 0.5) / width
    ys = y0[:, None] + (y1 - y0)[:, None] * down
    xs = x0[:, None] + (x1 - x0)[:, None] * across
    grid = [ys[:, :, None].expand(-1, -1, width), xs[:, None, :].expand(-1, height, -1)]
    return rearrange(torch.stack(grid, dim=-1), "b h w yx -> b (h w) yx")


def fourier_features(positions: Float[Tensor, "B T 2"], frequencies: int) -> Float[Tensor, "B T F"]:
    """Sines and cosines of each coordinate at 1/2, 1, 2, ... turns per image (Tancik et al. 2020, eq. 5).

    Rotary positions tell two tokens only how they lie to one another; these tell where each one lies.
    """
    turns = torch.pi * 2.0 ** torch.arange(frequencies, device=positions.device)
    angles = rearrange(positions[..., None] * turns, "b t yx f -> b t (yx f)")
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def flops_per_image(config: DiTConfig, latent_side: int, channels: int, text_tokens: int) -> float:
    """Multiply-adds times two of one forward pass; attention scores included, norms left out."""
    width, tokens = config.width, (latent_side // config.patch) ** 2 + config.registers
    hidden = max(8, round(width * config.mlp_ratio * 2 / 3 / 8) * 8)
    dense_image = 4 * width**2 + 2 * width**2 + 3 * width * hidden
    block = tokens * dense_image + text_tokens * 2 * width**2
    block += 2 * tokens * tokens * width + 2 * tokens * text_tokens * width
    refiner = text_tokens * (4 * width**2 + 8 * width**2) + 2 * text_tokens**2 * width
    patches = 2 * tokens * channels * config.patch**2 * width
    return 2.0 * (config.depth * block + config.text_layers * refiner + patches + 9 * width**2)
