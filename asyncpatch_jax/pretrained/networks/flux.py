"""FLUX.1's transformer (Black Forest Labs 2024), also Kontext's (arXiv 2506.15742), told its time per token.

Module names are those of diffusers' `FluxTransformer2DModel`. Blocks of two streams and then blocks of one, each kind a
single loop.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Shaped
from msgspec import Meta

from asyncpatch_jax import timefield
from asyncpatch_jax.models.times import LevelTimes, modulation
from asyncpatch_jax.pretrained.networks.configuration import Channels, Count, Width, read
from asyncpatch_jax.pretrained.networks.joint import (
    JointBlock,
    Stream,
    Streams,
    along_batch,
    attention,
    dense,
    gated,
    gelu,
    heads_of,
    last_modulation,
    mean_maps,
    modulated,
    no_maps,
    norm,
)
from asyncpatch_jax.pretrained.networks.joint_inputs import check_condition, grid_of_tokens, told
from asyncpatch_jax.pretrained.networks.layers import stacked, wide
from asyncpatch_jax.pretrained.networks.rotary import Rotation, rotation
from asyncpatch_jax.schema import Settings
from asyncpatch_jax.sharding import constrain
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.types import Condition, FewTimes, Image, Spans, TimeField

# latents of a token, along rows and columns
_PACK = 2
# channels of a head that turn in pairs
_Turning = Annotated[int, Meta(ge=2, le=2**17, multiple_of=2)]


class SingleBlock(nn.Module):
    """A block whose attention and MLP act side by side on one sequence of text and image, as a step of `nn.scan`.

    Attributes:
        heads: number of them.
        length: of the text.
    """

    heads: int
    length: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        carry: tuple[Stream, Any],
        times: LevelTimes,
        text_times: LevelTimes,
        rotation: Rotation,
        spans: Spans | None,
    ) -> tuple[tuple[Stream, Any], None]:
        x, maps = carry
        width = x.shape[-1]
        shift, scale, gate = self._modulations(dense(3 * width, "norm.linear", self.dtype), times, text_times, x)
        h = modulated(norm(x, self.dtype), shift, scale, self.dtype)[:, 0]
        q, k, v = heads_of(h, self.heads, "attn.to_{}", "attn.norm_{}", self.dtype)
        attended, maps = attention(q, k, v, rotation, spans, maps, at_image=self.length, at_text=0)
        inner = gelu(constrain(dense(4 * width, "proj_mlp", self.dtype)(h), "batch", None, "hidden"))
        out = dense(width, "proj_out", self.dtype)(jnp.concatenate([attended, inner], axis=-1))
        return (along_batch(gated(x, gate, out[:, None], times)), maps), None

    def _modulations(
        self, layer: nn.Dense, times: LevelTimes, text_times: LevelTimes, x: Stream
    ) -> list[Float[Array, "b 1 _n d"]]:
        """Maps of the whole sequence; of `times` (see `_after_text`), its text is told others."""
        rows = constrain(layer(jnp.concatenate([text_times.emb, times.emb], axis=1)), "batch", None, None)
        is_text = (jnp.arange(x.shape[2]) < self.length).reshape(1, 1, -1, 1)
        texts = jnp.split(rows[:, None, :1], 3, axis=-1)
        cells = x.shape[2] if times.grid is None or times.grid == (1, 1) else x.shape[2] - self.length
        images = modulation(rows[:, 1:], times, 3, (1, cells))
        if cells < x.shape[2]:
            images = [jnp.pad(image, ((0, 0), (0, 0), (self.length, 0), (0, 0))) for image in images]
        return [jnp.where(is_text, text, image) for text, image in zip(texts, images, strict=True)]


class FluxTransformer(nn.Module):
    """FLUX's transformer `(x, t, cond) -> (out, aux)`: latents [b, h, w, c] at times in 0 ... 1000 to a velocity.

    It needs `cond.tokens`, `cond.pooled`, and `cond.guidance` if it is `guided`. An image to edit, `cond.reference`
    [b, h2, w2, c], lies after the latents in the sequence: its tokens are told the times of the latents at their place
    and are no part of the output. With `cond.spans`, `aux["maps"]` [b, h / 2, w / 2, k] is the mean attention of the
    latents' tokens to each object over all layers and heads.

    Attributes:
        heads, head_width: of attention; their product is the width.
        depth, depth_single: numbers of layers of two streams and of one.
        channels: of latents, of which 2 x 2 are a token.
        axes: channels of a head that turn with the image's index, the row, and the column.
        guided: whether it is told a guidance scale.
        context_width, pooled_width: of the text.
        dtype: compute type; norms, softmax, times and rotations are float32.
    """

    heads: int
    head_width: int
    depth: int
    depth_single: int
    channels: int
    axes: tuple[int, int, int]
    guided: bool
    context_width: int
    pooled_width: int
    dtype: Any = jnp.float32

    @property
    def multiple(self) -> int:
        """Height and width of latents must be multiples of this."""
        return _PACK

    @nn.compact
    def __call__(
        self, x: Image, t: TimeField | FewTimes, cond: Condition | None, *, train: bool = False
    ) -> tuple[Image, dict[str, jax.Array]]:
        """Predict from x [b, h, w, c] at field t, in 0 ... 1000.

        Args:
            train: as all networks take it; there is no dropout.

        Raises:
            ValueError: latents or a reference that are no whole tokens; a field or a condition that does not fit.
        """
        b, grid, width = x.shape[0], grid_of_tokens(x, self.channels, _PACK), self.heads * self.head_width
        timefield.check(t, b)
        needed = {"tokens": self.context_width, "pooled": self.pooled_width} | ({"guidance": 0} if self.guided else {})
        cond = check_condition(cond, b, needed, {"text_time", "spans", "reference"})
        times, text_times, text = told(t, cond, grid, width, self.dtype)

        embedder, length = dense(width, "x_embedder", self.dtype), grid[0] * grid[1]
        image, grids = embedder(_packed(x.astype(self.dtype))), [grid]
        if cond.reference is not None:
            grids.append(grid_of_tokens(cond.reference, self.channels, _PACK, "a reference"))
            times = _mirrored(times, grid, grids[1])
            parts = [image, embedder(_packed(cond.reference.astype(self.dtype)))]
            image = jnp.concatenate([part.reshape(b, 1, -1, width) for part in parts], axis=2)
        streams = Streams(along_batch(image), along_batch(text), no_maps(cond, b, grid))
        inputs = (times, text_times, rotation(text.shape[2], grids, self.axes), cond.spans)
        settings = {"heads": self.heads, "dtype": self.dtype}
        double = {**settings, "text_first": True}
        streams = stacked(JointBlock, double, self.depth, "transformer_blocks", streams, *inputs)

        times, texts = _in_a_row(times, timefield.grid_of(streams.image)), text.shape[2]
        both = [part.reshape(b, 1, -1, width) for part in (streams.text, streams.image)]
        carry = along_batch(jnp.concatenate(both, axis=2)), streams.maps
        inputs = (_after_text(times, texts), *inputs[1:])
        single = {**settings, "length": texts}
        x, maps = stacked(SingleBlock, single, self.depth_single, "single_transformer_blocks", carry, *inputs)
        image = last_modulation(x[:, :, texts:], times, self.dtype)[:, 0, :length]
        out = dense(_PACK**2 * self.channels, "proj_out", self.dtype)(image).reshape(b, *grid, -1)
        out = rearrange(out, "b h w (c p q) -> b (h p) (w q) c", p=_PACK, q=_PACK)
        out = out.astype(wide(self.dtype))
        return out, mean_maps(maps, self.depth + self.depth_single, grid)


def _in_a_row(times: LevelTimes, grid: Grid) -> LevelTimes:
    """Times of the tokens of `grid`, row after row."""
    if times.grid == (1, 1):
        return times
    cells = times.position if times.position is not None else times.emb.reshape(len(times.emb), *times.cells, -1)
    full = jnp.broadcast_to(timefield.resize(cells, grid), (len(cells), *grid, cells.shape[-1]))
    row = full.reshape(len(full), 1, -1, full.shape[-1])
    if times.position is not None:
        return dataclasses.replace(times, position=row)
    return LevelTimes(row[:, 0], grid=timefield.grid_of(row))


def _after_text(times: LevelTimes, length: int) -> LevelTimes:
    """Chosen times of a row of tokens, with any of them for a text of that length before."""
    if times.position is None:
        return times
    return dataclasses.replace(times, position=jnp.pad(times.position, ((0, 0), (0, 0), (length, 0), (0, 0))))


def _packed(x: Image) -> Float[Array, "b th tw d"]:
    return rearrange(x, "b (h p) (w q) c -> b h w (c p q)", p=_PACK, q=_PACK)


def _mirrored(times: LevelTimes, grid: Grid, reference: Grid) -> LevelTimes:
    """Times of the tokens of `grid` and, after them in one row, of a reference's: those of the nearest of `grid`."""

    def both(cells: Shaped[Array, "b gh gw d"]) -> Shaped[Array, "b 1 n d"]:
        batch, width = cells.shape[0], cells.shape[-1]
        cells = jnp.broadcast_to(timefield.resize(cells, grid), (batch, *grid, width))
        rows, cols = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(grid, reference, strict=True))
        parts = [part.reshape(batch, 1, -1, width) for part in (cells, cells[:, rows][:, :, cols])]
        return jnp.concatenate(parts, axis=2)

    if times.position is not None:
        return dataclasses.replace(times, position=both(times.position))
    if times.grid == (1, 1):
        return times
    emb = both(times.emb.reshape(times.emb.shape[0], *times.cells, -1))
    return LevelTimes(emb[:, 0], grid=timefield.grid_of(emb))


class Config(Settings, frozen=True):
    """The config.json of a `FluxTransformer2DModel`. Defaults are diffusers'."""

    in_channels: Channels = 64
    num_layers: Count = 19
    num_single_layers: Count = 38
    attention_head_dim: Width = 128
    num_attention_heads: Count = 24
    joint_attention_dim: Width = 4096
    pooled_projection_dim: Width = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[_Turning, _Turning, _Turning] = (16, 56, 56)
    out_channels: Channels | None = None

    fixed: ClassVar[Mapping[str, Any]] = {"patch_size": 1}


def from_config(config: Mapping[str, Any], dtype: Any = jnp.float32) -> FluxTransformer:
    """The module of a `FluxTransformer2DModel`'s config.json.

    Raises:
        ValueError: a setting that is not implemented.
    """
    given = read(config, Config, "FluxTransformer2DModel")
    channels, axes = given.in_channels, given.axes_dims_rope
    if given.out_channels not in (None, channels) or channels % _PACK**2:
        raise ValueError(
            f"expected in_channels that are a multiple of {_PACK**2} and as many out_channels, got {channels} and "
            f"{given.out_channels}: networks of FLUX's tools, such as Fill, are not implemented"
        )
    if sum(axes) != given.attention_head_dim:
        raise ValueError(f"expected axes_dims_rope of 3 that add up to {given.attention_head_dim}, got {axes}")
    return FluxTransformer(
        heads=given.num_attention_heads,
        head_width=given.attention_head_dim,
        depth=given.num_layers,
        depth_single=given.num_single_layers,
        channels=channels // _PACK**2,
        axes=axes,
        guided=given.guidance_embeds,
        context_width=given.joint_attention_dim,
        pooled_width=given.pooled_projection_dim,
        dtype=dtype,
    )


def example(module: FluxTransformer) -> tuple[np.ndarray, np.ndarray, Condition]:
    """Inputs of the smallest legal size, for shapes."""
    cond = Condition(
        tokens=jnp.zeros((1, 2, module.context_width), jnp.float32),
        pooled=jnp.zeros((1, module.pooled_width), jnp.float32),
        guidance=jnp.ones(1, jnp.float32) if module.guided else None,
    )
    return np.zeros((1, _PACK, _PACK, module.channels), np.float32), np.zeros((1, 1, 1, 1), np.float32), cond
