"""Noise that is left in an image, or detail that it lacks: its energy at high spatial frequencies, beside real images'.

Rewards hardly see it: a policy that is trained on them may leave high-frequency residue in the images that they like
(AsyncDiff, arXiv 2512.18675, names it as what its rewards miss).
"""

import numpy as np
from jaxtyping import Float, UInt8


def high_frequency_energy(images: UInt8[np.ndarray, "b h w c"], cutoff: float = 0.5) -> Float[np.ndarray, "b"]:
    """Mean square of each image above a spatial frequency, in units of a range of 2 (pixels in [-1, 1]).

    By the cosine transform (DCT-II), which unlike Fourier's sees no edge where an image ends: the coefficients whose
    larger frequency, along rows or columns, is more than `cutoff` times half the sampling rate; channels are averaged.
    The transform is orthogonal: energies above and below add up to the mean square of the image.

    Args:
        cutoff: 0 is everything but the mean, 1 nothing.

    Raises:
        ValueError: images that are not of 8 bits, or a cut-off outside of [0, 1].
    """
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"expected images [b, h, w, c] of uint8, got {images.dtype}{list(images.shape)}")
    if not 0 <= cutoff <= 1:
        raise ValueError(f"expected a cut-off in [0, 1], a share of half the sampling rate, got {cutoff}")
    from scipy.fft import dctn

    _, height, width, _ = images.shape
    coefficients = dctn(images / 127.5 - 1, axes=(1, 2), norm="ortho")
    rows, columns = (np.arange(size) / size for size in (height, width))
    above = np.maximum(rows[:, None], columns[None]) > cutoff
    return (coefficients**2 * above[None, :, :, None]).sum((1, 2)).mean(-1) / (height * width)


def residual(
    images: UInt8[np.ndarray, "b h w c"], real: UInt8[np.ndarray, "_n _h _w _c"], cutoff: float = 0.5
) -> Float[np.ndarray, "b"]:
    """High-frequency energy of each image over the mean of real images': 1 is as they have, more is residue.

    Raises:
        ValueError: as `high_frequency_energy`; images of other shapes; or real images without such energy.
    """
    if images.shape[1:] != real.shape[1:]:
        raise ValueError(f"expected real images of shape {images.shape[1:]}, got {real.shape[1:]}")
    usual = high_frequency_energy(real, cutoff).mean()
    if not usual > 0:
        raise ValueError(f"expected real images with energy above the cut-off {cutoff}, got none")
    return high_frequency_energy(images, cutoff) / usual
