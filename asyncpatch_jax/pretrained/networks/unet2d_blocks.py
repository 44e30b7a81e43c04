"""The levels of a pretrained UNet: residual blocks, transformers between them, and the change of resolution."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from asyncpatch_jax.models.times import LevelTimes
from asyncpatch_jax.pretrained.networks.resnet2d import Changed, Downsample, Features, ResnetBlock, Upsample
from asyncpatch_jax.pretrained.networks.transformer2d import Maps, Reading, Transformer2D


class Level(NamedTuple):
    """One level, on its way down or up.

    width: channels.
    layers: residual blocks on the way down; one more on the way up.
    depth: layers of the transformer after each residual block; 0: there is none.
    heads: of these.
    """

    width: int
    layers: int
    depth: int
    heads: int


class Layers(NamedTuple):
    """What all levels' layers share: groups and epsilon of group norms, projections of transformers, compute type."""

    groups: int
    eps: float
    linear: bool
    dtype: Any

    def resnet(self, width: int, number: int) -> ResnetBlock:
        return ResnetBlock(width, self.groups, self.eps, self.dtype, name=f"resnets.{number}")

    def transformer(self, level: Level, number: int) -> Transformer2D:
        return Transformer2D(
            level.depth, level.heads, self.groups, self.linear, self.dtype, name=f"attentions.{number}"
        )


class DownBlock(nn.Module):
    """`DownBlock2D` and `CrossAttnDownBlock2D`: the skips that the way up takes are returned too."""

    level: Level
    shared: Layers
    last: bool

    @nn.compact
    def __call__(
        self, x: Features, times: LevelTimes, reading: Reading, maps: Maps | None
    ) -> tuple[Changed, list[jax.Array], Maps | None]:
        skips = []
        for i in range(self.level.layers):
            x = self.shared.resnet(self.level.width, i)(x, times)
            if self.level.depth:
                x, maps = self.shared.transformer(self.level, i)(x, reading, maps)
            skips.append(x)
        if not self.last:
            x = Downsample(1, self.shared.dtype, name="downsamplers.0")(x)
            skips.append(x)
        return x, skips, maps


class MidBlock(nn.Module):
    """`UNetMidBlock2DCrossAttn`; where queries of self-attention are blurred, if `reading` says so."""

    level: Level
    shared: Layers

    @nn.compact
    def __call__(
        self, x: Features, times: LevelTimes, reading: Reading, maps: Maps | None
    ) -> tuple[Features, Maps | None]:
        x = self.shared.resnet(self.level.width, 0)(x, times)
        x, maps = self.shared.transformer(self.level, 0)(x, reading, maps)
        return self.shared.resnet(self.level.width, 1)(x, times), maps


class UpBlock(nn.Module):
    """`UpBlock2D` and `CrossAttnUpBlock2D`: takes its skips from the end of the list."""

    level: Level
    shared: Layers
    last: bool

    @nn.compact
    def __call__(
        self, x: Features, skips: list[jax.Array], times: LevelTimes, reading: Reading, maps: Maps | None
    ) -> tuple[Changed, Maps | None]:
        for i in range(self.level.layers + 1):
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = self.shared.resnet(self.level.width, i)(x, times)
            if self.level.depth:
                x, maps = self.shared.transformer(self.level, i)(x, reading, maps)
        if not self.last:
            x = Upsample(self.shared.dtype, name="upsamplers.0")(x)
        return x, maps
