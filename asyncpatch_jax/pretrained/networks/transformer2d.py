"""Attention over the pixels of a UNet's level and to the text: diffusers' `Transformer2DModel`.

No part of it is told the time.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from asyncpatch_jax.models.attention import attend, attend_columns, mean_weights
from asyncpatch_jax.pretrained.networks.blur import blurred
from asyncpatch_jax.pretrained.networks.layers import GroupNorm, LayerNorm, stacked
from asyncpatch_jax.pretrained.networks.resnet2d import Features, conv
from asyncpatch_jax.sharding import constrain
from asyncpatch_jax.timefield import Grid

Tokens = Float[Array, "b n d"]
# of every Transformer2DModel and its layers, in no config.json
NORM_EPS = 1e-6
LAYER_EPS = 1e-5


class Reading(NamedTuple):
    """What transformers are given beside the image.

    tokens: of the text [b, l, e].
    mask: which tokens count [b, l]; None: all.
    blur: standard deviation that blurs the queries of self-attention, in cells [b]; None: not here.
    """

    tokens: Float[Array, "b l e"]
    mask: Bool[Array, "b l"] | None = None
    blur: Float[Array, "b"] | None = None


class Maps(NamedTuple):
    """Sums, over the layers so far, of attention weights averaged over heads.

    columns: positions of the text tokens whose weights are asked for [b, m]; None: none are.
    cross: weights of these tokens [b, n, m].
    own: weights of all cells in self-attention [b, n, n]. XLA computes none of it unless somebody reads it.
    """

    columns: Int[Array, "b m"] | None
    cross: Float[Array, "b n m"] | None
    own: Float[Array, "b n n"]


class Attention(nn.Module):
    """Multi-head attention, over cells or to the text; queries, keys and values have no bias."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Tokens, reading: Reading, maps: Maps | None, grid: Grid | None) -> tuple[Tokens, Maps | None]:
        """Self-attention over the cells of `grid`, or attention to the text if that is None.

        Returns:
            The answer, and `maps` with this layer's weights added.
        """
        b, n, d = x.shape
        source = x if grid is not None else reading.tokens.astype(self.dtype)
        q, k, v = (
            nn.Dense(d, use_bias=False, dtype=self.dtype, name=name)(x if name == "to_q" else source)
            for name in ("to_q", "to_k", "to_v")
        )
        if grid is not None and reading.blur is not None:
            q = blurred(q, reading.blur, grid)
        q, k, v = (
            constrain(part.reshape(b, -1, self.heads, d // self.heads), "batch", None, "heads", None)
            for part in (q, k, v)
        )
        if grid is not None:
            h = attend(q, k, v)
            if maps is not None:
                maps = maps._replace(own=maps.own + mean_weights(q, k))
        else:
            mask = None if reading.mask is None else reading.mask[:, None, None, :]
            if maps is None or maps.columns is None or maps.cross is None:
                h = attend(q, k, v, mask)
            else:
                h, shares = attend_columns(q, k, v, maps.columns, mask)
                maps = maps._replace(cross=maps.cross + shares)
        return nn.Dense(d, dtype=self.dtype, name="to_out.0")(h.reshape(b, n, d)), maps


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, GEGLU (Shazeer 2020); returns (carry, None) for `stacked`."""

    heads: int
    grid: Grid
    dtype: Any

    @nn.compact
    def __call__(self, carry: tuple[Tokens, Maps | None], reading: Reading) -> tuple[tuple[Tokens, Maps | None], None]:
        x, maps = carry

        def norm(name: str, x: Tokens) -> Tokens:
            return LayerNorm(LAYER_EPS, dtype=self.dtype, name=name)(x)

        for norm_name, name, grid in (("norm1", "attn1", self.grid), ("norm2", "attn2", None)):
            h, maps = Attention(self.heads, self.dtype, name=name)(norm(norm_name, x), reading, maps, grid)
            x = x + h
        width = x.shape[-1]
        h = nn.Dense(8 * width, dtype=self.dtype, name="ff.net.0.proj")(norm("norm3", x))
        h, gate = jnp.split(constrain(h, "batch", None, "hidden"), 2, axis=-1)
        h = nn.Dense(width, dtype=self.dtype, name="ff.net.2")(h * nn.gelu(gate, approximate=False))
        return (x + h, maps), None


class Transformer2D(nn.Module):
    """norm, projection, layers, projection, added to the input.

    Attributes:
        depth: layers.
        linear: projections are linear layers, not 1x1 convolutions: the same numbers, kept in another layout.
    """

    depth: int
    heads: int
    groups: int
    linear: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, reading: Reading, maps: Maps | None) -> tuple[Features, Maps | None]:
        b, height, width, d = x.shape
        if d % self.heads:
            raise ValueError(f"expected a width that {self.heads} heads divide, got {d}")

        def project(name: str, h: Features) -> Features:
            if self.linear:
                return nn.Dense(d, dtype=self.dtype, name=name)(h)
            return conv(d, self.dtype, name, size=1)(h)

        h = project("proj_in", GroupNorm(self.groups, NORM_EPS, self.dtype, name="norm")(x))
        settings = {"heads": self.heads, "grid": (height, width), "dtype": self.dtype}
        carry = (h.reshape(b, height * width, d), maps)
        h, maps = stacked(TransformerBlock, settings, self.depth, "transformer_blocks", carry, reading)
        h = constrain(h.reshape(x.shape), "batch", None, None, None)
        return x + project("proj_out", h), maps
