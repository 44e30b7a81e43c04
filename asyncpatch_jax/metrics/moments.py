"""Mean and covariance of features that stream by, in float64, over any number of processes.

Parts are merged by Chan et al. 1979 ("Updating Formulae and a Pairwise Algorithm for Computing Sample Variances"): it
loses nothing to cancellation, so that how images were dealt out to batches and processes shows in the last digits only.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Shaped

_BYTES = 2**26  # that a gathering holds at once of each process


class Moments(NamedTuple):
    """Of features of dimension d, all in float64.

    count: of images.
    mean: [d]; zeros while there are none.
    scatter: sum of (x - mean) (x - mean)^T, [d, d].
    """

    count: int  # type: ignore[assignment]  # hides tuple.count
    mean: Float[np.ndarray, "d"]
    scatter: Float[np.ndarray, "d d"]

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """The unbiased one, as `np.cov` has it.

        Raises:
            ValueError: fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"expected at least 2 images for a covariance, got {self.count}")
        return self.scatter / (self.count - 1)


def moments(features: Float[np.ndarray, "n d"]) -> Moments:
    """Of a batch, which may be empty.

    Raises:
        ValueError: features that are not finite.
    """
    x = np.asarray(features, np.float64)
    if not np.isfinite(x).all():
        wrong = np.flatnonzero(~np.isfinite(x).all(1))
        raise ValueError(f"expected finite features, got others of {len(wrong)} images of {len(x)}, first {wrong[0]}")
    mean = x.sum(0) / max(len(x), 1)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """Of the images of both.

    Raises:
        ValueError: features of two dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"expected moments of features of one dimension, got {len(a.mean)} and {len(b.mean)}")
    count = a.count + b.count
    delta = b.mean - a.mean
    share = b.count / max(count, 1)
    return Moments(
        count, a.mean + share * delta, a.scatter + b.scatter + (a.count * share) * (delta[:, None] * delta[None, :])
    )


def gather(mine: Moments) -> Moments:
    """Of the images of all processes, bit for bit the same on each. All must call it, once each has seen its images."""
    if jax.process_count() == 1:
        return mine
    counts = _all(np.array([mine.count], np.float64))[:, 0]
    means = _all(mine.mean)
    total = max(counts.sum(), 1.0)
    mean = (counts[:, None] * means).sum(0) / total
    off = mine.mean - mean
    scatter = mine.scatter + mine.count * (off[:, None] * off[None, :])
    rows = max(1, _BYTES // (8 * max(len(mean), 1)))
    parts = [_all(scatter[first : first + rows]).sum(0) for first in range(0, len(mean), rows)]
    return Moments(int(counts.sum()), mean, np.concatenate(parts))


def gather_rows(mine: Float[np.ndarray, "_n d"]) -> Float[np.ndarray, "_m d"]:
    """Features of the images of all processes, in the order of the images if image i is of process i mod their number.

    All must call it.
    """
    if jax.process_count() == 1:
        return mine
    counts = _all(np.array([len(mine)], np.float64))[:, 0].astype(int)
    padded = np.zeros((max(counts.max(), 1), mine.shape[1]), mine.dtype)
    padded[: len(mine)] = mine
    rows = max(1, _BYTES // (mine.itemsize * max(mine.shape[1], 1)))
    found = np.concatenate([_all(padded[first : first + rows]) for first in range(0, len(padded), rows)], 1)
    there = np.arange(len(padded))[:, None] < counts[None, :]
    return found.swapaxes(0, 1)[there]


def _all(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Of all processes, on a new first axis; as bytes, since JAX would round float64."""
    whole = np.ascontiguousarray(array)
    found = multihost_utils.process_allgather(whole.reshape(-1).view(np.uint32))
    return np.asarray(found).view(whole.dtype).reshape(-1, *whole.shape)
