"""KID against its formula written out, and as torch-fidelity draws its subsets."""

import numpy as np
import pytest

from asyncpatch_jax.metrics.distances import kernel_distance
from asyncpatch_jax.metrics.features import INCEPTION, Features

FEATURES = Features(INCEPTION, "clean", "hash", lambda images: np.zeros((len(images), 7), np.float32))


def some_features(n, seed, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, (n, 7)).astype(np.float32)


def by_sums(a, b, subsets, size, seed):
    """Binkowski et al.'s equation 4, one pair after the other."""
    rng, found = np.random.RandomState(seed), []
    for _ in range(subsets):
        x = a[rng.choice(len(a), size, replace=False)].astype(np.float64)
        y = b[rng.choice(len(b), size, replace=False)].astype(np.float64)

        def kernel(u, v):
            return (u @ v / 7 + 1) ** 3

        pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
        within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in pairs) / (size * (size - 1))
        across = sum(kernel(u, v) for u in x for v in y) / size**2
        found.append(within - 2 * across)
    return np.mean(found), np.std(found)


def test_against_the_formula():
    a, b = some_features(20, 0), some_features(30, 1, 0.3)
    mean, spread = by_sums(a, b, 4, 9, 5)
    found = kernel_distance(FEATURES, a, b, subsets=4, size=9, seed=5)
    np.testing.assert_allclose((found.value, found.spread), (mean, spread), rtol=1e-5)
    assert (found.name, found.count, found.reference_count) == ("KID", 20, 30)
    # of fewer images than a subset wants, all of them
    few = kernel_distance(FEATURES._replace(name="others"), a, b, subsets=2)
    np.testing.assert_allclose(few.value, by_sums(a, b, 2, 20, 2020)[0], rtol=1e-5)
    assert few.name == "kernel distance"


def test_images_of_one_kind_are_at_distance_zero_on_average():
    """Unbiased, where the Frechet distance of so few images is far above 0."""
    found = kernel_distance(FEATURES, some_features(400, 0), some_features(400, 1), subsets=30, size=100)
    assert abs(found.value) < 4 * found.spread / 30**0.5


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ((1, 7), (5, 7), "at least 2 images of each, got 1 and 5"),
        ((5, 7), (5, 6), "one dimension, got 7 and 6"),
    ],
)
def test_mistakes_are_told(a, b, said):
    with pytest.raises(ValueError, match=said):
        kernel_distance(FEATURES, np.zeros(a, np.float32), np.zeros(b, np.float32))
    with pytest.raises(ValueError, match="finite"):
        kernel_distance(FEATURES, np.full((5, 7), np.nan, np.float32), np.zeros((5, 7), np.float32))
