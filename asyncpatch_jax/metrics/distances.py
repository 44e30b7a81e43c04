"""Distances between two sets of images by their features: FID and KID, and what else goes by these formulas.

A number comes with what it depends on: features, resize rule, counts, the hashes of weights and of the reference.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from asyncpatch_jax import checks
from asyncpatch_jax.metrics.features import INCEPTION, Features
from asyncpatch_jax.metrics.frechet import between
from asyncpatch_jax.metrics.moments import Moments
from asyncpatch_jax.metrics.statistics import Statistics


class Distance(NamedTuple):
    """A number with all that a reader needs to compare it with another one.

    name: "FID" and "KID" are of Inception's pool3 alone.
    spread: of a kernel distance, the standard deviation over its subsets, of which it is the mean. A Frechet distance
        has none: drawn again with repetitions, images give another, larger distance.
    count, reference_count: of images; None if the file of the reference does not say.
    reference: sha256 of that file; None if the reference was images.
    """

    name: str
    value: float
    spread: float | None
    features: str
    resize: str
    weights: str
    count: int  # type: ignore[assignment]  # hides tuple.count
    reference_count: int | None
    reference: str | None


@dataclass(frozen=True)
class Protocol:
    """A way of measuring that many papers share.

    name: as papers write it.
    count: of images that are made.
    size: pixels of a side of made and real images (real ones: the centre square).
    resize: how both become the features' input, one of `inception.RESIZES`.
    prompts, reference: what images are made for, and compared with.
    """

    name: str
    count: int
    size: int
    resize: str
    prompts: str
    reference: str


PROTOCOLS: dict[str, Protocol] = {
    "fid-30k": Protocol(
        name="FID-30K",
        count=30_000,
        size=256,
        resize="legacy_pytorch",
        prompts="captions of COCO's val2014 (captions_val2014.json), 30,000 drawn at random, one image each",
        reference="all 40,504 images of COCO's val2014",
    )
}


def distance_name(features: Features) -> str:
    """What a Frechet distance of these features may be called."""
    return "FID" if features.name == INCEPTION else "Frechet distance"


def frechet_distance(features: Features, made: Moments, reference: Moments | Statistics) -> Distance:
    """The Frechet distance of Gaussians (Heusel et al. 2017) between made images and a reference.

    Args:
        features: what both are features of.
        made: of all processes (`moments.gather`).
        reference: moments of real images by the same features, or statistics from a file.

    Raises:
        ValueError: statistics of other features or another resize rule, as far as their file says; of another
            dimension; fewer than two images.
    """
    check_reference(features, reference, len(made.mean))
    value = between(made.mean, made.covariance, reference.mean, reference.covariance)
    return Distance(
        distance_name(features),
        value,
        None,
        features.name,
        features.resize,
        features.weights,
        made.count,
        reference.count,
        reference.sha256 if isinstance(reference, Statistics) else None,
    )


def check_reference(features: Features, reference: Moments | Statistics, width: int | None) -> None:
    """Refuse a reference that features cannot be compared with.

    Args:
        width: of the features; None where it is not known yet.

    Raises:
        ValueError: statistics of other features or another resize rule, as far as their file says; another dimension.
    """
    if isinstance(reference, Statistics):
        for what, want, got in (
            ("features", features.name, reference.features),
            ("resize rule", features.resize, reference.resize),
        ):
            if got is not None and got != want:
                raise ValueError(f"expected reference statistics of the {what} {want!r}, got {got!r}")
    if width is not None and len(reference.mean) != width:
        raise ValueError(
            f"expected reference statistics of {width} features ({features.name}), got {len(reference.mean)}"
        )


def kernel_distance(
    features: Features,
    made: Float[np.ndarray, "_n d"],
    reference: Float[np.ndarray, "_m _d"],
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 2020,
) -> Distance:
    """The kernel distance (Binkowski et al. 2018): the unbiased squared MMD under (x.y / d + 1)^3, mean over subsets.

    Args:
        features: what both are features of.
        made, reference: features of all images (`moments.gather_rows`).
        subsets: how often images are drawn, without repetitions.
        size: images of each set in a subset; where there are fewer, all of them.
        seed: subsets are those that torch-fidelity draws with it.

    Raises:
        ValueError: features of two dimensions or that are not finite, fewer than two images.
    """
    checks.whole("subsets", subsets)
    if min(len(made), len(reference)) < 2 or size < 2:
        raise ValueError(f"expected at least 2 images of each, got {min(size, len(made))} and {len(reference)}")
    if made.shape[1] != reference.shape[1]:
        raise ValueError(f"expected features of one dimension, got {made.shape[1]} and {reference.shape[1]}")
    if not (np.isfinite(made).all() and np.isfinite(reference).all()):
        raise ValueError("expected finite features, got some that are not")
    size, rng = min(size, len(made), len(reference)), np.random.RandomState(seed)
    placed = [jax.device_put(np.asarray(rows, np.float32)) for rows in (made, reference)]
    found = np.empty(subsets)
    for i in range(subsets):
        drawn = [rng.choice(len(rows), size, replace=False) for rows in placed]
        sums = jax.device_get(_kernel_sums(*placed, *drawn))
        within_a, within_b, across = (np.asarray(part, np.float64).sum() for part in sums)
        found[i] = (within_a + within_b) / (size * (size - 1)) - 2 * across / size**2
    return Distance(
        "KID" if features.name == INCEPTION else "kernel distance",
        float(found.mean()),
        float(found.std()),
        features.name,
        features.resize,
        features.weights,
        len(made),
        len(reference),
        None,
    )


@jax.jit
def _kernel_sums(
    a: Float[Array, "_n d"], b: Float[Array, "_m d"], rows_a: Int[Array, "s"], rows_b: Int[Array, "s"]
) -> tuple[Float[Array, "s"], Float[Array, "s"], Float[Array, "s"]]:
    """Of each row, the sum of the kernel within a and within b (but for each with itself), and across.

    Of the kernel less 1, which cancels in the distance, and would cost digits.
    """
    x, y = a[rows_a], b[rows_b]
    other = 1 - jnp.eye(len(rows_a))

    def kernel(u: Float[Array, "s d"], v: Float[Array, "s d"]) -> Float[Array, "s s"]:
        product = jnp.matmul(u, v.T, precision="highest") / u.shape[1]
        return product * (3 + product * (3 + product))

    return (kernel(x, x) * other).sum(1), (kernel(y, y) * other).sum(1), kernel(x, y).sum(1)
