"""The diffusion transformer of a kilopix model (DiT-I), for inference.

In: noisy latents `B C H W`, times `B`, and a text context computed once per text. Out: a prediction of the
latents' shape. Parameters have the names that kilopix gives them.
"""

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

POSITIONS_PER_SIDE = 16.0
POSITION_FREQUENCIES = 4


def heads_of(x, heads):
    """`B T (heads D)` as `B heads T D`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class TimeEmbedding(nn.Module):
    """Time to a vector: sinusoid of 1000 t, then a two-layer MLP."""

    def __init__(self, width):
        super().__init__()
        self.hidden = nn.Linear(256, width)
        self.out = nn.Linear(width, width)

    def forward(self, t):
        """Embed the times, in float32 up to the first layer."""
        frequencies = torch.exp(-math.log(10_000) * torch.arange(128, device=t.device) / 128)
        angles = 1000.0 * t[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.out(F.silu(self.hidden(waves.to(self.hidden.weight.dtype))))


class SwiGLU(nn.Module):
    """Gated MLP."""

    def __init__(self, width, ratio=4.0):
        super().__init__()
        hidden = max(8, round(width * ratio * 2 / 3 / 8) * 8)
        self.gate_and_value = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        """Apply the MLP to every token."""
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class KeysValues(nn.Module):
    """Keys and values of a context."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 2 * width, bias=False)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)

    def forward(self, context):
        """Keys, which are normalised, and values."""
        keys, values = self.project(context).chunk(2, dim=-1)
        return self.key_norm(heads_of(keys, self.heads)), heads_of(values, self.heads)


class CrossAttention(nn.Module):
    """Queries from the tokens, keys and values given."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x, keys, values, mask):
        """Attend where the mask is true."""
        queries = self.query_norm(heads_of(self.query(x), self.heads))
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask[:, None, None, :])
        return self.out(mixed.transpose(1, 2).flatten(2))


class SelfAttention(nn.Module):
    """Self-attention with normalised queries and keys, and rotary positions where given."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x, rotary=None, mask=None):
        """Mix the tokens; keys where the mask is false are not seen."""
        queries, keys, values = (heads_of(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotary is not None:
            queries, keys = rotate(queries, *rotary), rotate(keys, *rotary)
        attention_mask = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attention_mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


def rotate(x, cos, sin):
    """Turn pairs (i, i + D/2) of every head by their angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class TextRefiner(nn.Module):
    """Frozen text states to context tokens."""

    def __init__(self, text_width, width, heads, depth):
        super().__init__()
        self.project = nn.Linear(text_width, width, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(2 * depth))
        self.attentions = nn.ModuleList(SelfAttention(width, heads) for _ in range(depth))
        self.mlps = nn.ModuleList(SwiGLU(width) for _ in range(depth))
        self.norm_in = nn.RMSNorm(text_width, eps=1e-6)
        self.norm_out = nn.RMSNorm(width, eps=1e-6)

    def forward(self, states, mask):
        """Refine the states; what padding holds the mask hides from readers."""
        x = self.project(self.norm_in(states))
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * i](x), mask=mask)
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.norm_out(x)


class Block(nn.Module):
    """Self-attention, cross-attention to the text, MLP; each normalised, modulated, gated."""

    def __init__(self, width, heads, mlp_ratio):
        super().__init__()
        self.norm_self = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.norm_cross = nn.RMSNorm(width, eps=1e-6)
        self.norm_mlp = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = SelfAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads)
        self.text_keys_values = KeysValues(width, heads)
        self.mlp = SwiGLU(width, mlp_ratio)
        self.modulation_offset = nn.Parameter(torch.zeros(6, width))

    def forward(self, x, modulation, rotary, keys_values, mask):
        """One block; `modulation` is shared by all blocks."""
        parts = (modulation + self.modulation_offset).unsqueeze(2).unbind(dim=1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        x = x + gate_a * self.attention(self.norm_self(x) * (1 + scale_a) + shift_a, rotary)
        x = x + self.cross_attention(self.norm_cross(x), *keys_values, mask)
        return x + gate_m * self.mlp(self.norm_mlp(x) * (1 + scale_m) + shift_m)


class KilopixDiT(ModelMixin, ConfigMixin):
    """The whole network; `encode_text` runs once per text, `forward` once per step.

    `register_tokens` is how many tokens of its own join the patches'; `latent_mean` and `latent_std` lead
    from its latents to the autoencoder's.
    """

    @register_to_config
    def __init__(
        self,
        channels: int,
        text_width: int,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        mlp_ratio: float,
        text_layers: int,
        register_tokens: int,
        latent_mean: list[float],
        latent_std: list[float],
    ):
        super().__init__()
        values = channels * patch**2
        self.patch_in = nn.Linear(values, width)
        self.position_in = nn.Linear(4 * POSITION_FREQUENCIES, width, bias=False)
        self.registers = nn.Parameter(torch.zeros(register_tokens, width))
        self.time = TimeEmbedding(width)
        self.text = TextRefiner(text_width, width, heads, text_layers)
        self.pooled_text = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm_out = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, values)

    def encode_text(self, states, mask):
        """Keys and values of every block, the mask, and a pooled vector."""
        tokens = self.text(states, mask)
        weights = mask.to(tokens.dtype)[:, :, None]
        pooled = self.pooled_text((tokens * weights).sum(1) / weights.sum(1).clamp(min=1))
        return [block.text_keys_values(tokens) for block in self.blocks], mask, pooled

    def forward(self, x, t, context):
        """A prediction for latents at times in [0, 1], 1 being noise."""
        keys_values, mask, pooled = context
        batch, channels, height, width = x.shape
        patch, registers = self.config.patch, self.config.register_tokens
        rows, columns = height // patch, width // patch
        patches = x.reshape(batch, channels, rows, patch, columns, patch)
        tokens = self.patch_in(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        positions = grid_of(rows, columns, x.device)
        tokens = tokens + self.position_in(waves_of(positions).to(tokens.dtype))
        tokens = torch.cat([self.registers.expand(batch, -1, -1), tokens], dim=1)
        positions = F.pad(positions, (0, 0, registers, 0))  # registers lie at the origin
        rotary = rotary_of(POSITIONS_PER_SIDE * positions, self.config.width // self.config.heads)
        condition = F.silu(self.time(t) + pooled)
        modulation = self.modulation(condition).unflatten(1, (6, -1))
        for block, pair in zip(self.blocks, keys_values, strict=True):
            tokens = block(tokens, modulation, rotary, pair, mask)
        shift, scale = self.modulation_out(condition)[:, None].chunk(2, dim=-1)
        out = self.patch_out(self.norm_out(tokens[:, registers:]) * (1 + scale) + shift)
        out = out.reshape(batch, rows, columns, channels, patch, patch)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def grid_of(rows, columns, device):
    """Centres (y, x) of the tokens, in fractions of the image: `1 T 2`."""
    ys = (torch.arange(rows, device=device) + 0.5) / rows
    xs = (torch.arange(columns, device=device) + 0.5) / columns
    return torch.stack(torch.meshgrid(ys, xs, indexing="ij"), dim=-1).flatten(0, 1)[None]


def waves_of(positions):
    """Sines and cosines of each coordinate at 1/2, 1, 2, 4 turns per image."""
    turns = torch.pi * 2.0 ** torch.arange(POSITION_FREQUENCIES, device=positions.device)
    angles = (positions[..., None] * turns).flatten(2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def rotary_of(positions, head_width, base=100.0):
    """Cosines and sines of rotary positions: half of the frequencies turn with y, half with x."""
    quarter = head_width // 4
    frequencies = base ** (-torch.arange(quarter, device=positions.device) / quarter)
    angles = (positions[..., None] * frequencies).flatten(2)[:, None]
    return angles.cos(), angles.sin()
