"""Putting the known pixels back."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from asyncpatch_jax import checks
from asyncpatch_jax.types import Image


def paste_back(x: Image, known: Image, mask: Float[Array, "_b _h _w 1"], feather: float = 0.0) -> Image:
    """`x` where the mask is 1, `known` where it is 0: known pixels come back bit for bit.

    With `feather` > 0 the known side of the seam blends into `x` by a Gaussian of that width in pixels; known pixels
    more than three widths away stay exact, and pixels to be generated never mix with what `known` holds there.

    Raises:
        ValueError: no floating-point images, images or mask of different sizes, a mask outside of 0 ... 1, or a
            negative feather.
    """
    checks.images("x", x)
    checks.images("known", known)
    checks.mask("mask", mask)
    checks.number("feather", feather, 0)
    if x.shape != known.shape or mask.shape != (*x.shape[:3], 1):
        raise ValueError(f"expected images and mask of one size, got {x.shape}, {known.shape} and {mask.shape}")
    hard = mask > 0.5
    if feather == 0:
        return jnp.where(hard, x, known)
    blurred = _blur(_blur(hard.astype(x.dtype), 1, feather), 2, feather)
    # at a straight seam the blurred mask is 1/2, so twice of it goes on from the 1 of the generated side
    weight = jnp.minimum(2.0 * blurred, 1.0)
    return jnp.where(hard, x, jnp.where(weight > 0, known + weight * (x - known), known))


def _blur(mask: Float[Array, "b h w 1"], axis: int, width: float) -> Float[Array, "b h w 1"]:
    radius = math.ceil(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / width) ** 2)
    pad = [(0, 0)] * 4
    pad[axis] = (radius, radius)
    padded = jnp.pad(mask, pad, mode="edge")
    size = mask.shape[axis]
    shifts = [
        weight * jnp.take(padded, jnp.arange(k, k + size), axis) for k, weight in enumerate(kernel / kernel.sum())
    ]
    return sum(shifts).astype(mask.dtype)
