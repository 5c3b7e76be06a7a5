"""The blocks of a RIN: pre-norm attention and MLP with biases, LayerNorm and GELU.

In: token sequences `B T D`, or rows `M D` of the tokens that a mask keeps. Out: the same shape. The
attributes' names (`processer_sa`, `initial_to_ln`, ...) are those of the published checkpoints, whose
weights load by name.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from kilopix.models.layers import added

EPS = 1e-6


@dataclass(frozen=True)
class Packing:
    """Which rows of a padded batch are real; the layers multiply those alone.

    `rows` is None where nothing is to be gained, and then packed and padded are the same tensor.
    """

    mask: Bool[Tensor, "B T"]
    rows: Int[Tensor, " M"] | None

    @classmethod
    def of(cls, mask: Bool[Tensor, "B T"]) -> "Packing":
        """Pack on a CPU; elsewhere the number of rows would have to be waited for."""
        worthwhile = can_look(mask) and not bool(mask.all())
        return cls(mask, mask.flatten().nonzero().squeeze(1) if worthwhile else None)

    def pack(self, x: Float[Tensor, "B T D"]) -> Tensor:
        """The real rows, `M D`."""
        return x if self.rows is None else x.flatten(0, 1).index_select(0, self.rows)

    def unpack(self, x: Tensor) -> Float[Tensor, "B T D"]:
        """Real rows back in their places, zeros elsewhere."""
        if self.rows is None:
            return x
        padded = x.new_zeros(self.mask.numel(), x.shape[-1]).index_copy(0, self.rows, x)
        return padded.view(*self.mask.shape, -1)


def can_look(mask: Tensor) -> bool:
    """Whether the values of a mask can be had without waiting: on a CPU, and not of tensors without any,
    with which `kilopix plan` counts memory."""
    return mask.device.type == "cpu" and not isinstance(mask, FakeTensor)


def mlp(width: int, ratio: int) -> nn.Sequential:
    """Two linear layers; the third place was a dropout when the released weights were named."""
    return nn.Sequential(
        nn.Linear(width, ratio * width), nn.GELU(), nn.Identity(), nn.Linear(ratio * width, width)
    )


def split_heads(x: Float[Tensor, "B T D"], heads: int) -> Float[Tensor, "B H T E"]:
    """Divide the width among heads."""
    return rearrange(x, "b t (h e) -> b h t e", h=heads)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Bool[Tensor, "B T"] | None = None) -> Tensor:
    """Attention of `B H T E` tensors, heads joined again; keys where the mask is false are not seen.

    A mask of the keys alone, and none where all are real, leaves the fast kernels open.
    """
    keys_seen = None if mask is None else mask[:, None, None, :]
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=keys_seen)
    return rearrange(mixed, "b h t e -> b t (h e)")


class SelfAttention(nn.Module):
    """Queries, keys and values from one projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, packing: Packing | None) -> Tensor:
        """Mix the tokens of each sample."""
        qkv = self.qkv(x)
        qkv = qkv if packing is None else packing.unpack(qkv)
        queries, keys, values = (split_heads(part, self.heads) for part in qkv.chunk(3, dim=-1))
        mixed = attend(queries, keys, values, None if packing is None else packing.mask)
        return self.out(mixed if packing is None else packing.pack(mixed))


class SelfAttentionBlock(nn.Module):
    """x + attention(x), then x + MLP(x); each scaled by a learned vector where `layer_scale` starts it."""

    varying = ((0, 1), (0, 1))

    def __init__(self, width: int, heads: int, mlp_ratio: int, layer_scale: float | None = None):
        super().__init__()
        self.initial_ln = nn.LayerNorm(width, EPS)
        self.sa = SelfAttention(width, heads)
        self.middle_ln = nn.LayerNorm(width, EPS)
        self.ffn = mlp(width, mlp_ratio)
        scaled = layer_scale is not None
        self.layer_scale_1 = nn.Parameter(torch.full((width,), layer_scale)) if scaled else None
        self.layer_scale_2 = nn.Parameter(torch.full((width,), layer_scale)) if scaled else None

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """`x` is `B T D`, or its packed rows."""
        mixed = self.sa(self.initial_ln(x.float()), packing)
        x = added(x, mixed if self.layer_scale_1 is None else self.layer_scale_1 * mixed)
        out = self.ffn(self.middle_ln(x.float()))
        return added(x, out if self.layer_scale_2 is None else self.layer_scale_2 * out)


class KeysValues(nn.Linear):
    """Keys and values of a context, from one projection."""

    varying = ((0, 1), (0, 1))
    recomputed = False

    def __init__(self, context_width: int, width: int, heads: int):
        super().__init__(context_width, 2 * width)
        self.heads = heads

    def forward(self, context: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor]:
        """`B H T E` each; a context is `B T D`, or its packed rows."""
        both = super().forward(context.float())
        keys, values = (both if packing is None else packing.unpack(both)).chunk(2, dim=-1)
        return split_heads(keys, self.heads), split_heads(values, self.heads)


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another; as wide as the narrower of the two."""

    def __init__(self, width: int, context_width: int, heads: int):
        super().__init__()
        self.heads = heads
        inner = min(width, context_width)
        self.q = nn.Linear(width, inner)
        self.kv = KeysValues(context_width, inner, heads)
        self.out = nn.Linear(inner, width)


class CrossAttentionBlock(nn.Module):
    """x + attention from x to a context, then x + MLP(x)."""

    def __init__(self, width: int, context_width: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.initial_to_ln = nn.LayerNorm(width, EPS)
        self.ca = CrossAttention(width, context_width, heads)
        self.middle_ln = nn.LayerNorm(width, EPS)
        self.ffn = mlp(width, mlp_ratio)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        keys: Float[Tensor, "B H N E"],
        values: Float[Tensor, "B H N E"],
        mask: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Attend to the keys where the mask is true."""
        queries = split_heads(self.ca.q(self.initial_to_ln(x.float())), self.ca.heads)
        x = added(x, self.ca.out(attend(queries, keys, values, mask)))
        return added(x, self.ffn(self.middle_ln(x.float())))


class RINBlock(nn.Module):
    """Latents read the text, read the data, think, and write to the data (RIN, section 3.2)."""

    varying = ((0,), (0,), (0, 2), (0, 2), (0, 1))
    compiled_parts = ("read_and_write", "read")
    """What is compiled, each by itself: a flag inside would be a graph of its own for each value."""

    def __init__(
        self,
        token_width: int,
        latent_width: int,
        layers: int,
        heads: int,
        compute_heads: int,
        ratio: int,
        token_ratio: int,
    ):
        super().__init__()
        self.retriever_ca = CrossAttentionBlock(latent_width, token_width, heads, ratio)
        self.processer_sa = nn.ModuleList(
            SelfAttentionBlock(latent_width, compute_heads, ratio) for _ in range(layers)
        )
        self.writer_ca = CrossAttentionBlock(token_width, latent_width, heads, token_ratio)
        self.retrieve_cond = CrossAttentionBlock(latent_width, latent_width, heads, ratio)

    def forward(
        self,
        data: Float[Tensor, "B T D"],
        latents: Float[Tensor, "B L W"],
        keys: Float[Tensor, "B H N E"],
        values: Float[Tensor, "B H N E"],
        mask: Bool[Tensor, "B N"] | None,
        write: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Data and latents after the block; with `write` false the data are left as they are."""
        if write:
            return self.read_and_write(data, latents, keys, values, mask)
        return data, self.read(data, latents, keys, values, mask)

    def read(
        self, data: Tensor, latents: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The latents after they have read and thought."""
        return self._thought(data, latents, keys, values, mask)

    def read_and_write(
        self, data: Tensor, latents: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Data and latents, of which the data are written to last."""
        latents = self._thought(data, latents, keys, values, mask)
        return self.writer_ca(data, *self.writer_ca.ca.kv(latents)), latents

    def _thought(
        self, data: Tensor, latents: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        latents = self.retrieve_cond(latents, keys, values, mask)
        latents = self.retriever_ca(latents, *self.retriever_ca.ca.kv(data))
        for block in self.processer_sa:
            latents = block(latents)
        return latents
