"""The Fréchet distance against the closed form of Gaussians and scipy's matrix square root."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from asyncpatch_jax.metrics.frechet import frechet


def test_against_scipy():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4))
    b = rng.normal(size=(70, 4)) @ rng.normal(size=(4, 4)) + 1
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    np.testing.assert_allclose(frechet(a, b), expected, rtol=1e-8)


def test_same_set_is_at_distance_zero_and_a_shift_costs_its_square():
    a = np.random.default_rng(1).normal(size=(40, 3))
    assert abs(frechet(a, a)) < 1e-9
    np.testing.assert_allclose(frechet(a, a + np.array([1.0, 2.0, 0.0])), 5.0, rtol=1e-9)


def test_one_dimension_is_the_difference_of_deviations():
    a = np.random.default_rng(2).normal(size=(40, 1))
    np.testing.assert_allclose(frechet(a - a.mean(), 3 * (a - a.mean())), (2 * a.std(ddof=1)) ** 2, rtol=1e-9)


@pytest.mark.parametrize("bad", [np.zeros((1, 2)), np.full((3, 2), np.nan)])
def test_mistakes_are_told(bad):
    with pytest.raises(ValueError, match="expected"):
        frechet(bad, np.zeros((3, 2)))
