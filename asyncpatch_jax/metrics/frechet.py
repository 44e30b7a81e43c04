"""Fréchet distance between two sets of features: the FID formula, with whatever features one trusts."""

import numpy as np
from jaxtyping import Float


def _root(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The symmetric square root of a positive semi-definite matrix; rounding below 0 counts as 0."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def frechet(a: Float[np.ndarray, "_n d"], b: Float[np.ndarray, "_m d"]) -> float:
    """`|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2))` with the covariances A and B (Heusel et al. 2017).

    Say next to the number which features these are and how many samples it is from: the estimate is biased upwards, the
    more so the fewer samples there are.

    Raises:
        ValueError: fewer than two samples, or values that are not finite.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"expected at least 2 samples of each, got {len(a)} and {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("expected finite features, got some that are not")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    cov_a, cov_b = np.cov(a.T).reshape(a.shape[1], -1), np.cov(b.T).reshape(b.shape[1], -1)
    return between(a.mean(0), cov_a, b.mean(0), cov_b)


def between(
    mean_a: Float[np.ndarray, "d"],
    cov_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, "d"],
    cov_b: Float[np.ndarray, "d d"],
) -> float:
    """The same of two Gaussians, whose covariances have no negative eigenvalues but for rounding."""
    # tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2), whose argument is symmetric
    root = _root(cov_a)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0.0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross)
