"""Putting the known pixels back, bit for bit, and making the seam beside them continuous."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import ndimage

from asyncpatch_jax import checks
from asyncpatch_jax.types import Image

_REACH = 3.0  # widths after which a Gaussian is cut off


def paste_back(x: Image, known: Image, mask: Float[Array, "_b _h _w 1"]) -> Image:
    """`x` where the mask is 1, `known` where it is 0: known pixels come back bit for bit.

    Raises:
        ValueError: no floating-point images, images or mask of different sizes, or a mask outside of 0 ... 1.
    """
    checks.images("x", x)
    checks.images("known", known)
    checks.mask("mask", mask)
    if x.shape != known.shape or mask.shape != (*x.shape[:3], 1):
        raise ValueError(f"expected images and mask of one size, got {x.shape}, {known.shape} and {mask.shape}")
    return jnp.where(mask > 0.5, x, known)


def stitch(
    base: Float[np.ndarray, "h w c"],
    made: Float[np.ndarray, "_h _w _c"],
    hole: Bool[np.ndarray, "_h _w 1"],
    known: Bool[np.ndarray, "_h _w 1"],
    feather: float,
) -> Float[np.ndarray, "h w c"]:
    """`made` in the hole, `base` elsewhere bit for bit; within the hole, the seam follows what is known beside it.

    A network that goes through an autoencoder or another resolution meets the known pixels a little too bright, too
    green, ... by `base - made` on the known side. Its Gaussian mean of `feather` pixels around is added inside the
    hole, in full at the seam and less and less up to three feathers away from it: there `made` is untouched. No pixel
    that is neither in the hole nor known has a part in anything.

    Args:
        hole: where `made` goes.
        known: the pixels to follow, none of them in the hole.
        feather: in pixels; 0 for a plain cut.

    Raises:
        ValueError: different sizes, a hole that counts as known, or a negative feather.
    """
    if base.shape != made.shape or hole.shape != (*base.shape[:2], 1) or known.shape != hole.shape:
        raise ValueError(
            f"expected two images, a hole and what is known of one size, got {base.shape}, {made.shape}, {hole.shape} "
            f"and {known.shape}"
        )
    if (hole & known).any():
        raise ValueError(f"expected a hole of which nothing is known, got {int((hole & known).sum())} known pixels")
    if not 0 <= feather < np.inf:
        raise ValueError(f"expected feather >= 0 pixels, got {feather}")
    if feather == 0 or not known.any():
        return np.where(hole, made, base)

    def blurred(values: Float[np.ndarray, "h w _c"]) -> Float[np.ndarray, "h w _c"]:
        return ndimage.gaussian_filter(values, (feather, feather, 0), mode="nearest", truncate=_REACH)

    near = blurred(known.astype(np.float32))
    off = blurred(np.where(known, base - made, 0).astype(np.float32))
    # off / near is the mean over known pixels; near is 1/2 at a straight seam, so twice of it begins there with 1
    gain = np.minimum(1 / np.maximum(near, 1e-6), 2)
    return np.where(hole, made + gain * off, base)
