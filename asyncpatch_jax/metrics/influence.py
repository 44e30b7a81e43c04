"""How much each image moves a distance between two sets: what makes an interval of a number that is no mean.

The influence function of a distance (Hampel 1974) is its derivative in the weight of one image. Distance plus influence
has the distance as its mean over the images, and to first order the spread of that mean is the distance's own (the
infinitesimal jackknife, Efron 1982); so `intervals.bootstrap` of it is an interval, also of two distances that images
are paired between. It is about which images were drawn, with the reference held fixed. The bias of a Fréchet distance
of few images, which is often larger, is not in it.
"""

import numpy as np
from jaxtyping import Float

_BLOCK = 2048  # rows of a kernel at a time


def frechet_influence(
    features: Float[np.ndarray, "n d"], mean: Float[np.ndarray, "d"], covariance: Float[np.ndarray, "d d"]
) -> Float[np.ndarray, "n"]:
    """Of each image on the Fréchet distance to a Gaussian; they sum to 0.

    With c an image's features less their mean m, and S their covariance: 2 (m - mean) c + c (I - T) c, less its mean. T
    carries the Gaussian of S to that of `covariance` (Bures 1969): S^-1/2 (S^1/2 covariance S^1/2)^1/2 S^-1/2.

    Raises:
        ValueError: fewer than two images.
    """
    if len(features) < 2:
        raise ValueError(f"expected at least 2 images, got {len(features)}")
    features = np.asarray(features, np.float64)
    centred = features - features.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / (len(features) - 1))
    # of fewer images than features, the others span nothing that an image lies in
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    root, basis = np.sqrt(values[kept]), vectors[:, kept]
    inner = root[:, None] * (basis.T @ covariance @ basis) * root
    stretches, directions = np.linalg.eigh(inner)
    carried = ((centred @ basis) / root) @ directions
    moved = 2 * centred @ (features.mean(0) - mean) + (centred**2).sum(1)
    moved -= carried**2 @ np.sqrt(np.maximum(stretches, 0))
    return moved - moved.mean()


def kernel_influence(features: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n"]:
    """Of each image on the squared maximum mean discrepancy (KID's, of the kernel (x y / d + 1)^3); they sum to 0.

    Raises:
        ValueError: fewer than two images, or no reference.
    """
    if len(features) < 2 or not len(reference):
        raise ValueError(f"expected at least 2 images and a reference, got {len(features)} and {len(reference)}")
    own = _mean_kernel(features, features)
    own = (own * len(features) - ((features**2).sum(1, dtype=np.float64) / features.shape[1] + 1) ** 3) / (
        len(features) - 1
    )
    moved = 2 * (own - _mean_kernel(features, reference))
    return moved - moved.mean()


def _mean_kernel(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n"]:
    total = np.zeros(len(a))
    for start in range(0, len(b), _BLOCK):
        kernel = (a @ b[start : start + _BLOCK].T).astype(np.float64) / a.shape[1] + 1
        total += (kernel**3).sum(1)
    return total / len(b)
