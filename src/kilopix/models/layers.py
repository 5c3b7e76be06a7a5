"""Layers that the networks share: attention, gated MLP, rotary positions, time embedding, text trunk.

In: token sequences `B T D`. Out: token sequences of the same shape. Nothing here knows of latents.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn


def init_linear(layer: nn.Linear, gain: float = 1.0) -> nn.Linear:
    """Normal weights of variance gain^2 / fan_in, zero bias; gain 0 makes a block start as the identity."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def linear(inputs: int, outputs: int, gain: float = 1.0, bias: bool = False) -> nn.Linear:
    """A linear layer, initialised by `init_linear`."""
    return init_linear(nn.Linear(inputs, outputs, bias=bias), gain)


def added(x: Tensor, more: Tensor) -> Tensor:
    """x + more in the type of x, which is the type of the residual stream; rounded once."""
    return (x + more).to(x.dtype)


def in_float32(stream: Tensor) -> AbstractContextManager:
    """Inside, layers compute in float32 if the residual stream is kept in less; else as around it."""
    if stream.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(stream.device.type, enabled=False)


def sinusoid(t: Float[Tensor, " B"], width: int, scale: float = 1000.0) -> Float[Tensor, "B D"]:
    """Sines and cosines of t at geometric frequencies from 1 to 1/10,000 (Attention is all you need, 3.5)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angles = scale * t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """Time to a vector: sinusoid, then a two-layer MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.inputs = 256
        self.hidden = linear(self.inputs, width, bias=True)
        self.out = linear(width, width, bias=True)

    def forward(self, t: Float[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Embed t, which lies in [0, 1]."""
        return self.out(F.silu(self.hidden(sinusoid(t, self.inputs))))


class SwiGLU(nn.Module):
    """Gated MLP (Shazeer 2020, eq. 5); hidden width is 2/3 of `ratio` times the width, in eights."""

    def __init__(self, width: int, ratio: float = 4.0, out_gain: float = 1.0):
        super().__init__()
        hidden = max(8, round(width * ratio * 2 / 3 / 8) * 8)
        self.gate_and_value = linear(width, 2 * hidden)
        self.out = linear(hidden, width, out_gain)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Apply the MLP to every token."""
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class KeysValues(nn.Module):
    """Keys and values of a context; they depend on the context alone, so they can be kept."""

    varying = ((0, 1),)
    recomputed = False

    def __init__(self, context_width: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.project = linear(context_width, 2 * width)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)

    def forward(self, context: Float[Tensor, "B N D"]) -> tuple[Tensor, Tensor]:
        """Return keys and values, both `B heads N (width/heads)`; keys are normalised."""
        keys, values = rearrange(self.project(context), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return self.key_norm(keys), values


class CrossAttention(nn.Module):
    """Queries from the tokens, keys and values given; queries are normalised (QK-norm)."""

    def __init__(self, width: int, heads: int, out_gain: float = 1.0):
        super().__init__()
        self.heads = heads
        self.query = linear(width, width)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.out = linear(width, width, out_gain)

    def forward(
        self, x: Float[Tensor, "B T D"], keys: Tensor, values: Tensor, mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B T D"]:
        """Attend to the context tokens where the mask is true."""
        queries = self.query_norm(rearrange(self.query(x), "b t (h d) -> b h t d", h=self.heads))
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask[:, None, None, :])
        return self.out(rearrange(mixed, "b h t d -> b t (h d)"))


class SelfAttention(nn.Module):
    """Self-attention with QK-norm, and rotary positions where angles are given."""

    def __init__(self, width: int, heads: int, out_gain: float = 1.0):
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.out = linear(width, width, out_gain)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotary: tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Mix the tokens; keys where the mask is false are not seen."""
        queries, keys, values = rearrange(
            self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads
        )
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotary is not None:
            queries, keys = rotate(queries, rotary), rotate(keys, rotary)
        attention_mask = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attention_mask)
        return self.out(rearrange(mixed, "b h t d -> b t (h d)"))


def rotary_2d(
    positions: Float[Tensor, "B T 2"], head_width: int, base: float = 100.0
) -> tuple[Float[Tensor, "B 1 T D"], Float[Tensor, "B 1 T D"]]:
    """Cosines and sines of 2-D rotary positions; half of the frequencies turn with y, half with x.

    Positions are continuous, in units of a 16th of the whole image's side, so that a crop or another
    resolution is told where it lies. `head_width` must be a multiple of 4.
    """
    quarter = head_width // 4
    frequencies = base ** (-torch.arange(quarter, device=positions.device) / quarter)
    angles = rearrange(positions[..., None] * frequencies, "b t yx f -> b 1 t (yx f)")
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "B H T D"], rotary: tuple[Tensor, Tensor]) -> Float[Tensor, "B H T D"]:
    """Rotate pairs (i, i + D/2) of every head by its angles (RoFormer, eq. 34)."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class TextRefiner(nn.Module):
    """Frozen text states to context tokens: projection, normalisation, and a few self-attention layers."""

    varying = ((0, 1), (0, 1))
    recomputed = False

    def __init__(self, text_width: int, width: int, heads: int, depth: int):
        super().__init__()
        self.project = linear(text_width, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(2 * depth))
        self.attentions = nn.ModuleList(SelfAttention(width, heads, out_gain=0.0) for _ in range(depth))
        self.mlps = nn.ModuleList(SwiGLU(width, out_gain=0.0) for _ in range(depth))
        self.norm_in = nn.RMSNorm(text_width, eps=1e-6)
        self.norm_out = nn.RMSNorm(width, eps=1e-6)

    def forward(
        self, states: Float[Tensor, "B N F"], mask: Bool[Tensor, "B N"]
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B D"]]:
        """Refine the states, and return their mean, too, over the real tokens.

        Padded positions hold values that the mask must hide from readers.
        """
        x = self.project(self.norm_in(states))
        for attention, mlp, norm_a, norm_m in zip(
            self.attentions, self.mlps, self.norms[::2], self.norms[1::2], strict=True
        ):
            x = x + attention(norm_a(x), mask=mask)
            x = x + mlp(norm_m(x))
        tokens = self.norm_out(x)
        weights = mask.to(tokens.dtype)[:, :, None]
        return tokens, (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
