"""The transformer of Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206), told its time per token.

Module names are those of diffusers' `SD3Transformer2DModel`. Layers of one kind that follow each other are one loop.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float
from msgspec import Meta

from asyncpatch_jax import timefield
from asyncpatch_jax.models.convolution import Conv
from asyncpatch_jax.pretrained.networks.configuration import Channels, Count, Few, Side, Width, read
from asyncpatch_jax.pretrained.networks.joint import (
    JointBlock,
    Streams,
    along_batch,
    dense,
    last_modulation,
    mean_maps,
    no_maps,
)
from asyncpatch_jax.pretrained.networks.joint_inputs import check_condition, grid_of_tokens, told
from asyncpatch_jax.pretrained.networks.layers import stacked, wide
from asyncpatch_jax.schema import Settings
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.types import Condition, FewTimes, Image, TimeField

# which of 24 layers blur their queries, and as large a part of other depths: those that diffusers' guider recommends
# for Stable Diffusion 3.5 medium (SEG's own paper has a UNet's middle block)
_BLURRED, _OF_LAYERS = (7, 10), 24


class PatchEmbedding(nn.Module):
    """Patches as tokens, with positions cut from the centre of the checkpoint's table."""

    width: int
    patch: int
    table: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "b th tw d"]:
        side, patch = self.table, (self.patch, self.patch)
        x = Conv(self.width, patch, patch, padding="VALID", dtype=self.dtype, name="proj")(x)
        positions = self.param("pos_embed", nn.initializers.zeros, (1, side * side, self.width), jnp.float32)
        rows, cols = x.shape[1:3]
        top, left = (side - rows) // 2, (side - cols) // 2
        cut = positions.reshape(1, side, side, self.width)[:, top : top + rows, left : left + cols]
        return x + cut.astype(self.dtype)


class SD3Transformer(nn.Module):
    """SD3's transformer `(x, t, cond) -> (out, aux)`: latents [b, h, w, c] at times in 0 ... 1000 to a velocity.

    It needs `cond.tokens` and `cond.pooled`. With `cond.spans`, `aux["maps"]` [b, h / patch, w / patch, k] is the mean
    attention of image tokens to each object over all layers and heads, and `aux["self_maps"]` [b, n, n] that to each
    other, as shares of what goes to the image. `cond.blur` acts on the queries of image tokens in middle layers, after
    their norm, where they meet the keys.

    Attributes:
        heads, head_width: of attention; their product is the width.
        depth: number of layers.
        dual: which of them attend a second time, to the image alone (MMDiT-X).
        qk_norm: RMS norms of queries and keys.
        channels_in, channels_out, patch: of the latents.
        table: side of the table of positions, in patches.
        context_width, pooled_width: of the text.
        dtype: compute type; norms, softmax and times are float32.
    """

    heads: int
    head_width: int
    depth: int
    dual: tuple[int, ...]
    qk_norm: bool
    channels_in: int
    channels_out: int
    patch: int
    table: int
    context_width: int
    pooled_width: int
    dtype: Any = jnp.float32

    @property
    def multiple(self) -> int:
        """Height and width of latents must be multiples of this."""
        return self.patch

    @nn.compact
    def __call__(
        self, x: Image, t: TimeField | FewTimes, cond: Condition | None, *, train: bool = False
    ) -> tuple[Image, dict[str, jax.Array]]:
        """Predict from x [b, h, w, c] at field t, in 0 ... 1000.

        Args:
            train: as all networks take it; there is no dropout.

        Raises:
            ValueError: latents that are no whole patches, or larger than the table of positions; a field or a condition
                that does not fit.
        """
        b, grid, width = x.shape[0], self._grid(x), self.heads * self.head_width
        timefield.check(t, b)
        needed = {"tokens": self.context_width, "pooled": self.pooled_width}
        cond = check_condition(cond, b, needed, {"text_time", "spans", "blur"})
        times, text_times, text = told(t, cond, grid, width, self.dtype)

        image = PatchEmbedding(width, self.patch, self.table, self.dtype, name="pos_embed")(x.astype(self.dtype))
        layer = None if cond.blur is None else jnp.int32(0)
        streams = Streams(along_batch(image), along_batch(text), no_maps(cond, b, grid, own=True), layer)
        inputs = (times, text_times, None, cond.spans, self._blurs(cond))
        shared = {"heads": self.heads, "qk_norm": self.qk_norm, "dtype": self.dtype}
        for dual, layers in groupby(range(self.depth - 1), lambda layer: layer in self.dual):
            first, *rest = layers
            settings = {**shared, "dual": dual}
            streams = stacked(JointBlock, settings, 1 + len(rest), "transformer_blocks", streams, *inputs, start=first)
        last = self.depth - 1
        block = JointBlock(dual=last in self.dual, last=True, **shared, name=f"transformer_blocks.{last}")
        streams, _ = block(streams, *inputs)

        image = last_modulation(streams.image, times, self.dtype)
        out = dense(self.patch**2 * self.channels_out, "proj_out", self.dtype)(image)
        out = rearrange(out, "b h w (p q c) -> b (h p) (w q) c", p=self.patch, q=self.patch)
        out = out.astype(wide(self.dtype))
        return out, mean_maps(streams.maps, self.depth, grid)

    def _blurs(self, cond: Condition) -> Float[Array, "layers b"] | None:
        if cond.blur is None:
            return None
        first, stop = (bound * self.depth // _OF_LAYERS for bound in _BLURRED)
        chosen = np.isin(np.arange(self.depth), range(first, max(stop, first + 1)))
        return jnp.where(chosen[:, None], cond.blur[None], 0.0)

    def _grid(self, x: Image) -> Grid:
        grid = grid_of_tokens(x, self.channels_in, self.patch)
        if max(grid) > self.table:
            raise ValueError(f"expected at most {self.table} x {self.table} patches, got {grid[0]} x {grid[1]}")
        return grid


class Config(Settings, frozen=True):
    """The config.json of a `SD3Transformer2DModel`. Defaults are diffusers'."""

    patch_size: Few = 2
    in_channels: Channels = 16
    num_layers: Count = 18
    attention_head_dim: Width = 64
    num_attention_heads: Count = 18
    joint_attention_dim: Width = 4096
    caption_projection_dim: Width = 1152
    pooled_projection_dim: Width = 2048
    out_channels: Channels | None = 16
    pos_embed_max_size: Annotated[int, Meta(ge=1, le=4096)] = 96
    dual_attention_layers: Annotated[tuple[Annotated[int, Meta(ge=0, le=512)], ...], Meta(max_length=512)] = ()
    qk_norm: Literal["rms_norm"] | None = None
    sample_size: Side | None = 128


def from_config(config: Mapping[str, Any], dtype: Any = jnp.float32) -> SD3Transformer:
    """The module of a `SD3Transformer2DModel`'s config.json.

    Raises:
        ValueError: a setting that is not implemented.
    """
    given = read(config, Config, "SD3Transformer2DModel")
    width = given.num_attention_heads * given.attention_head_dim
    if given.caption_projection_dim != width:
        raise ValueError(
            f"expected caption_projection_dim = {width}, heads times their width, got {given.caption_projection_dim}"
        )
    if given.out_channels not in (None, given.in_channels):
        raise ValueError(f"expected out_channels = in_channels = {given.in_channels}, got {given.out_channels}")
    if max(given.dual_attention_layers, default=0) >= given.num_layers:
        raise ValueError(
            f"expected dual_attention_layers below num_layers = {given.num_layers}, got "
            f"{max(given.dual_attention_layers)}"
        )
    return SD3Transformer(
        heads=given.num_attention_heads,
        head_width=given.attention_head_dim,
        depth=given.num_layers,
        dual=given.dual_attention_layers,
        qk_norm=given.qk_norm is not None,
        channels_in=given.in_channels,
        channels_out=given.out_channels or given.in_channels,
        patch=given.patch_size,
        table=given.pos_embed_max_size,
        context_width=given.joint_attention_dim,
        pooled_width=given.pooled_projection_dim,
        dtype=dtype,
    )


def example(module: SD3Transformer) -> tuple[np.ndarray, np.ndarray, Condition]:
    """Inputs of the smallest legal size, for shapes."""
    cond = Condition(tokens=jnp.zeros((1, 2, module.context_width)), pooled=jnp.zeros((1, module.pooled_width)))
    side = module.patch
    return np.zeros((1, side, side, module.channels_in), np.float32), np.zeros((1, 1, 1, 1), np.float32), cond
