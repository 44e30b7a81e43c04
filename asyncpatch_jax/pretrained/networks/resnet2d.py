"""Convolutions of UNets and autoencoders as diffusers has them: residual block, downsampling, upsampling."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from asyncpatch_jax import timefield
from asyncpatch_jax.models.convolution import Conv
from asyncpatch_jax.models.times import LevelTimes, modulation
from asyncpatch_jax.pretrained.networks.layers import GroupNorm
from asyncpatch_jax.sharding import constrain

Features = Float[Array, "b h w d"]
Changed = Float[Array, "b _h _w _d"]  # of another resolution or width


def conv(features: int, dtype: Any, name: str, *, size: int = 3) -> nn.Conv:
    """A convolution that keeps the resolution; a PyTorch one with padding (size - 1) / 2."""
    pad = (size - 1) // 2
    return Conv(features, (size, size), padding=((pad, pad), (pad, pad)), dtype=dtype, name=name)


class ResnetBlock(nn.Module):
    """norm, silu, conv, [+ time], norm, silu, conv, added to the (projected) input: diffusers' `ResnetBlock2D`.

    The only part of a UNet that is told the time: a projection of its embedding, added per pixel.
    """

    features: int
    groups: int
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, times: LevelTimes | None = None) -> Changed:
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm1")(x))
        h = conv(self.features, self.dtype, "conv1")(h)
        if times is not None:
            table = nn.Dense(self.features, dtype=self.dtype, name="time_emb_proj")(times.emb)
            (shift,) = modulation(table, times, 1, timefield.grid_of(h))
            h = h + shift
        h = constrain(h, "batch", None, None, None)
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm2")(h))
        h = conv(self.features, self.dtype, "conv2")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, self.dtype, "conv_shortcut", size=1)(x)
        return constrain(x + h, "batch", None, None, None)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded by `before` rows and columns at the start and by one at the end.

    UNets have one on either side, autoencoders none at the start.
    """

    before: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Changed:
        pad = (self.before, 1)
        return Conv(x.shape[-1], (3, 3), strides=(2, 2), padding=(pad, pad), dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Twice as many rows and columns, each the nearest of the old ones, and a 3x3 convolution."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Changed:
        return conv(x.shape[-1], self.dtype, "conv")(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
