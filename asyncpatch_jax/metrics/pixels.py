"""Images as public networks read them: resized as by Pillow, cut or filled up to a square, with normalised colours."""

import math
from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

# of CLIP's training images; OpenCLIP's weights and ImageReward's have them too
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# (images of 8 bits [b, h, w, 3], size) -> normalised [b, size, size, 3]
Pixels = Callable[[jax.Array, int], jax.Array]


def preprocess(
    images: UInt8[Array, "b h w 3"], size: int, offset: Callable[[float], int] = math.floor
) -> Float[Array, "b {size} {size} 3"]:
    """Images as CLIP was trained on them: the shorter side to `size`, the centre square, normalised colours.

    Args:
        offset: rounds the first row or column of the square: `math.floor` as in transformers, or `round`, to even
            numbers, as in torchvision.
    """
    height, width = images.shape[1:3]
    short = min(height, width)
    new = (size * height // short, size * width // short)
    top, left = (offset((length - size) / 2) for length in new)
    return _normalised(resize(images, *new)[:, top : top + size, left : left + size])


def letterbox(images: UInt8[Array, "b h w 3"], size: int) -> Float[Array, "b {size} {size} 3"]:
    """Whole images as HPSv2's code reads them: the longer side to `size`, black beside the shorter one, normalised.

    Its code resizes tensors, which torchvision antialiases by default from 0.17 on (and did not before): so here.
    """
    height, width = images.shape[1:3]
    scale = size / max(height, width)
    new = (round(height * scale), round(width * scale))
    before = [(size - length) // 2 for length in new]
    rows, columns = ((first, size - length - first) for first, length in zip(before, new, strict=True))
    return _normalised(jnp.pad(resize(images, *new, whole=False), ((0, 0), rows, columns, (0, 0))))


def resize(
    images: UInt8[Array, "b _h _w 3"], height: int, width: int, *, whole: bool = True
) -> Float[Array, "b {height} {width} 3"]:
    """Images in another size, 0 ... 255: bicubic and antialiased.

    Args:
        whole: as the Pillow of the time of CLIP's training: along rows before along columns, each rounded to 8 bits.
            (Pillow 13 begins with the columns of tall images: where values overshoot 8 bits, it differs.) False: as
            PyTorch's `interpolate` of floats, which rounds nothing.
    """
    finish = _rounded if whole else lambda pixels: pixels
    pixels = images.astype(jnp.float32)
    pixels = finish(jnp.einsum("bhwc,ow->bhoc", pixels, bicubic(pixels.shape[2], width), precision="highest"))
    return finish(jnp.einsum("bhwc,oh->bowc", pixels, bicubic(pixels.shape[1], height), precision="highest"))


def _normalised(pixels: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    mean, std = (jnp.array(values, jnp.float32).reshape(1, 1, 1, 3) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


def _rounded(pixels: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.clip(jnp.floor(pixels + 0.5), 0, 255)


@lru_cache(maxsize=32)
def bicubic(before: int, after: int) -> Float[np.ndarray, "{after} {before}"]:
    """The matrix that resizes a line of pixels as Pillow's BICUBIC.

    Keys' kernel with a = -1/2, stretched to the pixels of the coarser line; what reaches over the edge is left out.
    """
    step = before / after
    stretch = max(step, 1.0)
    centre = (np.arange(after)[:, None] + 0.5) * step
    place = np.arange(before)[None, :]
    x = np.abs((place + 0.5 - centre) / stretch)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    # Pillow keeps whole pixels between these bounds
    low, high = np.trunc(centre - 2 * stretch + 0.5), np.trunc(centre + 2 * stretch + 0.5)
    weights = np.where((place >= low) & (place < high), weights, 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
