"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): how different two images look, by what classifiers of ImageNet see.

Three trunks of torchvision's: AlexNet, VGG16 and SqueezeNet 1.1, by torchvision's names of their parameters; the linear
heads have those of the authors' package `lpips`. Inputs are images in [-1, 1]; the first layer's input is normalised
here.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from asyncpatch_jax.models.convolution import Conv as FastConv
from asyncpatch_jax.pretrained.networks.configuration import TRANSFORMERS, read
from asyncpatch_jax.pretrained.networks.layers import wide
from asyncpatch_jax.schema import Settings

# of the package: ImageNet's mean and deviation for images in [-1, 1], rounded
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10  # of the package's normalised vectors


class Conv(NamedTuple):
    """A convolution and its ReLU; `number` is torchvision's, in `features`."""

    number: int
    width: int
    size: int = 3
    stride: int = 1
    padding: int = 1


class Pool(NamedTuple):
    """The maximum over squares. `ceil`: a square that reaches over the end counts, as far as it lies inside."""

    size: int = 3
    ceil: bool = False


class Fire(NamedTuple):
    """SqueezeNet's block: few channels of one pixel, then two convolutions beside each other; each with its ReLU."""

    number: int
    squeeze: int
    expand: int


class Tap(NamedTuple):
    """What LPIPS compares."""


_TAP, _CEIL, _TWO = Tap(), Pool(ceil=True), Pool(size=2)
TRUNKS: dict[str, tuple[Conv | Pool | Fire | Tap, ...]] = {
    "alex": (
        *(Conv(0, 64, 11, 4, 2), _TAP, Pool()),
        *(Conv(3, 192, 5, 1, 2), _TAP, Pool()),
        *(Conv(6, 384), _TAP, Conv(8, 256), _TAP, Conv(10, 256), _TAP),
    ),
    "vgg": (
        *(Conv(0, 64), Conv(2, 64), _TAP, _TWO),
        *(Conv(5, 128), Conv(7, 128), _TAP, _TWO),
        *(Conv(10, 256), Conv(12, 256), Conv(14, 256), _TAP, _TWO),
        *(Conv(17, 512), Conv(19, 512), Conv(21, 512), _TAP, _TWO),
        *(Conv(24, 512), Conv(26, 512), Conv(28, 512), _TAP),
    ),
    "squeeze": (
        *(Conv(0, 64, 3, 2, 0), _TAP, _CEIL),
        *(Fire(3, 16, 64), Fire(4, 16, 64), _TAP, _CEIL),
        *(Fire(6, 32, 128), Fire(7, 32, 128), _TAP, _CEIL),
        *(Fire(9, 48, 192), _TAP, Fire(10, 48, 192), _TAP, Fire(11, 64, 256), _TAP, Fire(12, 64, 256), _TAP),
    ),
}
# the sides of the smallest images: of smaller ones a maximum would be of nothing, which PyTorch refuses too
LEAST = {"alex": 31, "vgg": 16, "squeeze": 17}


class Trunk(nn.Module):
    """Images in [-1, 1] to a classifier's activations, from the fine ones to the coarse ones."""

    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b _h _w _c"]]:
        if min(images.shape[1:3]) < LEAST[self.kind]:
            got = f"{images.shape[1]} x {images.shape[2]}"
            raise ValueError(f"expected images of {LEAST[self.kind]} pixels a side or more for {self.kind}, got {got}")
        shift, scale = (jnp.array(values, jnp.float32).reshape(1, 1, 1, 3) for values in (SHIFT, SCALE))
        x = ((images - shift) / scale).astype(self.dtype)
        taps = []
        for step in TRUNKS[self.kind]:
            match step:
                case Conv(number, width, size, stride, padding):
                    x = self._convolved(x, f"{number}", width, size, stride, padding)
                case Pool():
                    x = _pooled(x, step)
                case Fire(number, squeeze, expand):
                    x = self._convolved(x, f"{number}.squeeze", squeeze, 1, 1, 0)
                    sides = (self._convolved(x, f"{number}.expand{n}x{n}", expand, n, 1, n // 2) for n in (1, 3))
                    x = jnp.concatenate([*sides], -1)
                case Tap():
                    taps.append(x)
        return taps

    def _convolved(self, x: jax.Array, name: str, width: int, size: int, stride: int, padding: int) -> jax.Array:
        settings: Any = {"strides": (stride, stride), "padding": padding, "dtype": self.dtype, "name": name}
        # what a TPU rounds to bfloat16 otherwise moves a distance by more than a thousandth
        return nn.relu(FastConv(width, (size, size), precision="highest", **settings)(x))


def _pooled(x: Float[Array, "b h w c"], pool: Pool) -> Float[Array, "b _h _w c"]:
    over = [(0, (pool.size - length) % 2 if pool.ceil else 0) for length in x.shape[1:3]]
    return nn.max_pool(x, (pool.size, pool.size), (2, 2), over)


class LPIPS(nn.Module):
    """Pairs of images in [-1, 1] to their distances [b]: 0 for equal ones, about .1 to .8 for what people tell apart.

    trunk: "alex", "vgg" or "squeeze".
    heads: False: all channels count alike, which the package calls its baseline. For a trunk whose channels are other
        than those the heads were trained on.
    """

    trunk: str
    heads: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        others: Float[Array, "b h w 3"],
        where: Float[Array, "b h w 1"] | None = None,
    ) -> Float[Array, "b"]:
        """
        Args:
            where: weights of the pixels, such as 1 in a hole. A tap's distances are resized to the image's pixels
                (linearly, as in the package's spatial maps) and averaged with them. None: the mean of each tap as it
                is.
        """
        trunk = Trunk(self.trunk, self.dtype, name="features")
        total = jnp.zeros(len(images), wide(self.dtype))
        for k, (a, b) in enumerate(zip(trunk(images), trunk(others), strict=True)):
            apart = (_normalised(a.astype(wide(self.dtype))) - _normalised(b.astype(wide(self.dtype)))) ** 2
            if self.heads:
                kernel: Any = {"use_bias": False, "dtype": apart.dtype, "precision": "highest"}
                apart = FastConv(1, (1, 1), name=f"lin{k}.model.1", **kernel)(apart)
            else:
                apart = apart.sum(-1, keepdims=True)
            total = total + (apart.mean((1, 2, 3)) if where is None else _mean_where(apart, where))
        return total


def _normalised(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return x / (jnp.sqrt((x * x).sum(-1, keepdims=True)) + _EPS)


def _mean_where(map_: Float[Array, "b _h _w 1"], where: Float[Array, "b h w 1"]) -> Float[Array, "b"]:
    fine = jax.image.resize(map_, where.shape, "linear", antialias=False, precision="highest")
    return (fine * where).sum((1, 2, 3)) / where.sum((1, 2, 3))


class Config(Settings, frozen=True):
    """The config.json that `launch.convert_metric` writes."""

    trunk: Literal["alex", "vgg", "squeeze"]
    heads: bool = True

    ignored: ClassVar[frozenset[str]] = TRANSFORMERS


def from_config(config: Mapping[str, Any], dtype: Any = jnp.float32) -> LPIPS:
    """The module that a config.json describes.

    Raises:
        ValueError: a setting that is missing or not implemented.
    """
    given = read(config, Config, "LPIPS")
    return LPIPS(given.trunk, given.heads, dtype)


def example(module: LPIPS) -> tuple[Array, ...]:
    """The smallest arguments that `module.init` takes, for the shapes of its parameters."""
    images = jnp.zeros((1, LEAST[module.trunk], LEAST[module.trunk], 3))
    return images, images
