"""How far images are from what they should have been, pixel by pixel: PSNR, SSIM, and the error in a hole.

    PSNR(images, references)  SSIM(images, references)  HOLE_RMSE(images, references, holes)      each -> [b]

See `paired.Paired` for what they take. None of them knows what a picture is: a blurred hole often beats a sharp one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from asyncpatch_jax.metrics.paired import Paired

_RANGE = 2.0  # of images in [-1, 1]
# Wang et al. 2004: a Gaussian of 1.5 pixels in a window of 11
SIDE, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def _squares(
    images: Float[Array, "b h w c"], references: Float[Array, "b h w c"], where: Float[Array, "b h w 1"] | None
) -> Float[Array, "b"]:
    """The mean of the squared differences, in the hole or everywhere."""
    squares = ((images - references) ** 2).mean(-1, keepdims=True)
    if where is None:
        return squares.mean((1, 2, 3))
    # whatever lies outside of the hole, even NaN, has no say
    return jnp.where(where > 0, squares, 0.0).sum((1, 2, 3)) / where.sum((1, 2, 3))


def _psnr(params: Any, images: Array, references: Array, where: Array | None) -> Float[Array, "b"]:
    return 10 * jnp.log10(_RANGE**2 / _squares(images, references, where))


def _rmse(params: Any, images: Array, references: Array, where: Array | None) -> Float[Array, "b"]:
    return jnp.sqrt(_squares(images, references, where))


def _ssim(params: Any, images: Array, references: Array, where: Array | None) -> Float[Array, "b"]:
    if min(images.shape[1:3]) < SIDE:
        got = f"{images.shape[1]} x {images.shape[2]}"
        raise ValueError(f"expected images of {SIDE} pixels a side or more for SSIM, got {got}")
    # means enter the formula themselves, so that the range must begin at 0
    x, y = (images + 1) / _RANGE, (references + 1) / _RANGE
    mean_x, mean_y, xx, yy, xy = jnp.split(_blurred(jnp.concatenate([x, y, x * x, y * y, x * y], -1)), 5, -1)
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (light * (2 * cov + c2) / (var_x + var_y + c2)).mean((1, 2, 3))


def _blurred(x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w c"]:
    """Means under the Gaussian window, of the windows that lie wholly inside."""
    place = np.arange(SIDE) - SIDE // 2
    window = np.exp(-0.5 * (place / _SIGMA) ** 2)
    window /= window.sum()
    for axis in (1, 2):
        length = x.shape[axis] - SIDE + 1
        parts = (float(w) * jax.lax.slice_in_dim(x, k, k + length, axis=axis) for k, w in enumerate(window))
        x = sum(parts, start=jnp.zeros((), x.dtype))
    return x


# peak signal-to-noise ratio in dB: 10 log10(range^2 / mean squared error); infinite for equal images
PSNR = Paired("PSNR", _psnr, higher_is_better=True, holes="optional")
# structural similarity (Wang et al. 2004) of each colour, averaged over colours and pixels, at most 1: the settings of
# scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`. The authors'
# program reads grey images, and halves large ones first
SSIM = Paired("SSIM", _ssim, higher_is_better=True)
# root mean square of the differences in the hole, over its pixels and colours, of images in [-1, 1]
HOLE_RMSE = Paired("hole RMSE", _rmse, higher_is_better=False, holes="needed")
