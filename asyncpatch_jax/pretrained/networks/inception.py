"""The Inception-v3 of FID: TensorFlow's graph of 2015-12-05 (Szegedy et al. 2015, arXiv 1512.00567), up to `pool3`.

The network that pytorch-fid, torch-fidelity and clean-fid evaluate, not torchvision's: its mean pools do not count the
padding, and the pool of its very last block takes the maximum. Names of parameters are those of the published file.
Batch norms apply what they have learned; nothing here trains.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from msgspec import Meta

from asyncpatch_jax.models.convolution import Conv
from asyncpatch_jax.pretrained.networks.configuration import TRANSFORMERS, read
from asyncpatch_jax.pretrained.networks.layers import wide
from asyncpatch_jax.schema import Settings

_EPS = 1e-3
_SMALLEST = 75  # pixels of a side that leave one cell at the end


class BatchNorm(nn.Module):
    """Batch norm by the statistics of the training images (Ioffe & Szegedy 2015)."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        zeros, ones, shape = nn.initializers.zeros, nn.initializers.ones, (x.shape[-1],)
        scale, bias = self.param("scale", ones, shape, jnp.float32), self.param("bias", zeros, shape, jnp.float32)
        mean = self.param("running_mean", zeros, shape, jnp.float32)
        variance = self.param("running_var", ones, shape, jnp.float32)
        factor = scale * jax.lax.rsqrt(variance + _EPS)
        shift = bias - mean * factor
        return x * factor.astype(x.dtype).reshape(1, 1, 1, -1) + shift.astype(x.dtype).reshape(1, 1, 1, -1)


class BasicConv(nn.Module):
    """A convolution without a bias, its batch norm, and ReLU."""

    width: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w {self.width}"]:
        x = Conv(
            self.width,
            self.window,
            self.stride,
            self.padding,
            use_bias=False,
            dtype=self.dtype,
            precision="highest",  # what an accelerator would round to fewer bits moves the distances
            name="conv",
        )(x)
        return nn.relu(BatchNorm(name="bn")(x))


def _mean(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _maximum(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def _halved(x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w c"]:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


class Block(nn.Module):
    """Branches side by side; what the blocks of all kinds share."""

    shrink: int
    dtype: Any

    def conv(self, name: str, width: int, *window: int, **settings: Any) -> BasicConv:
        shape = (window[0], window[-1]) if window else (1, 1)
        return BasicConv(width // self.shrink, shape, dtype=self.dtype, name=name, **settings)

    def smaller(self, name: str, width: int) -> BasicConv:
        return self.conv(name, width, 3, stride=2, padding="VALID")


class BlockA(Block):
    """Of 35x35 cells; torchvision's InceptionA."""

    pooled: int  # channels of the pool's branch

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        five = self.conv("branch5x5_2", 64, 5)(self.conv("branch5x5_1", 48)(x))
        three = self.conv("branch3x3dbl_2", 96, 3)(self.conv("branch3x3dbl_1", 64)(x))
        three = self.conv("branch3x3dbl_3", 96, 3)(three)
        pool = self.conv("branch_pool", self.pooled)(_mean(x))
        return jnp.concatenate([self.conv("branch1x1", 64)(x), five, three, pool], -1)


class BlockB(Block):
    """From 35x35 to 17x17 cells; torchvision's InceptionB."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w d"]:
        double = self.conv("branch3x3dbl_2", 96, 3)(self.conv("branch3x3dbl_1", 64)(x))
        double = self.smaller("branch3x3dbl_3", 96)(double)
        return jnp.concatenate([self.smaller("branch3x3", 384)(x), double, _halved(x)], -1)


class BlockC(Block):
    """Of 17x17 cells, with windows of seven in a row; torchvision's InceptionC."""

    inner: int  # channels within the long branches

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        seven = self.conv("branch7x7_2", self.inner, 1, 7)(self.conv("branch7x7_1", self.inner)(x))
        seven = self.conv("branch7x7_3", 192, 7, 1)(seven)
        double = self.conv("branch7x7dbl_1", self.inner)(x)
        for i, (width, window) in enumerate([(self.inner, (7, 1)), (self.inner, (1, 7)), (self.inner, (7, 1))]):
            double = self.conv(f"branch7x7dbl_{i + 2}", width, *window)(double)
        double = self.conv("branch7x7dbl_5", 192, 1, 7)(double)
        pool = self.conv("branch_pool", 192)(_mean(x))
        return jnp.concatenate([self.conv("branch1x1", 192)(x), seven, double, pool], -1)


class BlockD(Block):
    """From 17x17 to 8x8 cells; torchvision's InceptionD."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w d"]:
        three = self.smaller("branch3x3_2", 320)(self.conv("branch3x3_1", 192)(x))
        seven = self.conv("branch7x7x3_2", 192, 1, 7)(self.conv("branch7x7x3_1", 192)(x))
        seven = self.smaller("branch7x7x3_4", 192)(self.conv("branch7x7x3_3", 192, 7, 1)(seven))
        return jnp.concatenate([three, seven, _halved(x)], -1)


class BlockE(Block):
    """Of 8x8 cells; torchvision's InceptionE."""

    last: bool  # whether the pool takes the maximum

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        three = self.conv("branch3x3_1", 384)(x)
        double = self.conv("branch3x3dbl_2", 384, 3)(self.conv("branch3x3dbl_1", 448)(x))
        pool = self.conv("branch_pool", 192)(_maximum(x) if self.last else _mean(x))
        parts = [
            self.conv("branch1x1", 320)(x),
            self.conv("branch3x3_2a", 384, 1, 3)(three),
            self.conv("branch3x3_2b", 384, 3, 1)(three),
            self.conv("branch3x3dbl_3a", 384, 1, 3)(double),
            self.conv("branch3x3dbl_3b", 384, 3, 1)(double),
            pool,
        ]
        return jnp.concatenate(parts, -1)


class InceptionV3(Block):
    """Pixels [b, h, w, 3] in -1 ... 1 to features [b, 2048 / shrink]; published statistics are of 299 x 299 pixels.

    Args:
        shrink: every width is divided by it; 1 is the published network.
    """

    @property
    def width(self) -> int:
        """Of the features."""
        return 2048 // self.shrink

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b {self.width}"]:
        x = self.conv("Conv2d_1a_3x3", 32, 3, stride=2, padding="VALID")(pixels.astype(self.dtype))
        x = self.conv("Conv2d_2a_3x3", 32, 3, padding="VALID")(x)
        x = _halved(self.conv("Conv2d_2b_3x3", 64, 3)(x))
        x = self.conv("Conv2d_4a_3x3", 192, 3, padding="VALID")(self.conv("Conv2d_3b_1x1", 80)(x))
        both = self.shrink, self.dtype
        blocks: list[Callable[[jax.Array], jax.Array]] = [
            BlockA(*both, 32, name="Mixed_5b"),
            BlockA(*both, 64, name="Mixed_5c"),
            BlockA(*both, 64, name="Mixed_5d"),
            BlockB(*both, name="Mixed_6a"),
            BlockC(*both, 128, name="Mixed_6b"),
            BlockC(*both, 160, name="Mixed_6c"),
            BlockC(*both, 160, name="Mixed_6d"),
            BlockC(*both, 192, name="Mixed_6e"),
            BlockD(*both, name="Mixed_7a"),
            BlockE(*both, False, name="Mixed_7b"),
            BlockE(*both, True, name="Mixed_7c"),
        ]
        x = _halved(x)
        for block in blocks:
            x = block(x)
        return x.astype(wide(self.dtype)).mean((1, 2))


class Config(Settings, frozen=True):
    """The config.json that `launch.convert_metric` writes."""

    shrink: Annotated[int, Meta(ge=1, le=16)] = 1

    ignored: ClassVar[frozenset[str]] = TRANSFORMERS


def from_config(config: Mapping[str, Any], dtype: Any = jnp.float32) -> InceptionV3:
    """The module that a config.json describes.

    Raises:
        ValueError: a setting that is not implemented.
    """
    return InceptionV3(read(config, Config, "FIDInceptionV3").shrink, dtype)


def example(module: InceptionV3) -> tuple[Array, ...]:
    """The smallest arguments that `module.init` takes, for the shapes of its parameters."""
    return (jnp.zeros((1, _SMALLEST, _SMALLEST, 3)),)
