"""Encoder and decoder of the localised autoencoder (`autoencoder.py`): a UNet's residual blocks, told a mask as times.

Between two levels a cell is made of its own four, or parts into them: a window of 2 x 2 that moves by 2. It widens no
cell's view, and it knows where in a cell something was, as a mean or a repetition does not.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from asyncpatch_jax import timefield
from asyncpatch_jax.models.convolution import Conv
from asyncpatch_jax.models.layers import Features, Norm, NormKind, Remat, rematerialised
from asyncpatch_jax.models.times import LevelTimes, TimeEmbedding
from asyncpatch_jax.models.unet import AttentionBlock, Changed, ResBlock
from asyncpatch_jax.sharding import constrain
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.types import FewTimes, Image


class Merge(nn.Module):
    """One cell out of each 2 x 2."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Features) -> Changed:
        x = Conv(self.features, (2, 2), (2, 2), "VALID", dtype=self.dtype, name="merge")(x)
        return constrain(x, "batch", None, None, None)


class Split(nn.Module):
    """2 x 2 cells out of each one."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Features) -> Changed:
        x = nn.Dense(4 * self.features, dtype=self.dtype, name="split")(x)
        b, h, w, d = x.shape
        x = x.reshape(b, h, w, 2, 2, d // 4).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, d // 4)
        return constrain(x, "batch", None, None, None)


class Coder(nn.Module):
    """What encoder and decoder share: residual blocks on each level, all of them told the mask.

    Attributes:
        widths: of the levels from full resolution on.
        windows: sides of the levels' convolutions.
        attend: attention over the coarsest level.
    """

    widths: tuple[int, ...]
    windows: tuple[int, ...]
    blocks: int
    norm: NormKind
    attend: bool
    head_dim: int
    dtype: Any
    remat: Remat

    def block(self, level: int, name: str) -> nn.Module:
        made = rematerialised(ResBlock, self.remat)
        return made(self.widths[level], "", self.norm, 0.0, self.dtype, self.windows[level], name=name)

    def attention(self, x: Features) -> Features:
        return AttentionBlock(self.head_dim, self.norm, self.dtype, name="attention")(x, None) if self.attend else x

    def times(self, mask: FewTimes, grid: Grid) -> list[LevelTimes]:
        """The mask as each level's blocks are told it; `grid` is that of the pixels."""
        grids = [(grid[0] >> level, grid[1] >> level) for level in range(len(self.widths))]
        return TimeEmbedding(4 * self.widths[0], self.dtype, name="time")(mask, None, grids)


class Encoder(Coder):
    """Images to vectors [b, h / factor, w / factor, out]."""

    out: int = 4

    @nn.compact
    def __call__(self, x: Image, mask: FewTimes) -> Changed:
        times = self.times(mask, timefield.grid_of(x))
        stem = (self.windows[0], self.windows[0])
        x = Conv(self.widths[0], stem, dtype=self.dtype, name="stem")(x.astype(self.dtype))
        for level, width in enumerate(self.widths):
            if level:
                x = Merge(width, self.dtype, name=f"down_{level}")(x)
            for i in range(self.blocks):
                x = self.block(level, f"level_{level}_{i}")(x, times[level], None)
        x = nn.silu(Norm(self.norm, self.dtype, name="norm_out")(self.attention(x)))
        # one cell each: a wider window would see a whole cell further
        return Conv(self.out, (1, 1), dtype=self.dtype, name="out")(x).astype(jnp.float32)


class Decoder(Coder):
    """Codes [b, gh, gw, z] to the features of pixels, of which a last convolution makes the image."""

    @nn.compact
    def __call__(self, z: Float[Array, "b gh gw z"], mask: FewTimes) -> Changed:
        last = len(self.widths) - 1
        grid = z.shape[1] << last, z.shape[2] << last
        times = self.times(mask, grid)
        x = Conv(self.widths[last], (3, 3), dtype=self.dtype, name="stem")(z.astype(self.dtype))
        x = self.block(last, "middle_in")(x, times[last], None)
        x = self.block(last, "middle_out")(self.attention(x), times[last], None)
        for level in reversed(range(len(self.widths))):
            for i in range(self.blocks):
                x = self.block(level, f"level_{level}_{i}")(x, times[level], None)
            if level:
                x = Split(self.widths[level - 1], self.dtype, name=f"up_{level}")(x)
        return nn.silu(Norm(self.norm, self.dtype, name="norm_out")(x))
