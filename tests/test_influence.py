"""Influence of single images on distances of sets: against leaving each out, and against many draws."""

import numpy as np

from asyncpatch_jax.metrics import frechet
from asyncpatch_jax.metrics.influence import frechet_influence, kernel_influence


def two_sets(n, d=4):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(d, d)) / d**0.5
    return rng.normal(size=(n, d)) @ mixing + 0.3, rng.normal(size=(2 * n, d))


def left_out(distance, features):
    """How a distance changes with each image, as a jackknife has it: n times (with all less without it)."""
    whole = distance(features)
    changes = [whole - distance(np.delete(features, i, 0)) for i in range(len(features))]
    return len(features) * np.array(changes)


def test_influence_on_a_frechet_distance_is_that_of_leaving_an_image_out():
    made, real = two_sets(400)
    influence = frechet_influence(made, real.mean(0), np.cov(real.T))
    jackknife = left_out(lambda features: frechet(features, real), made)
    off = influence - (jackknife - jackknife.mean())
    np.testing.assert_allclose(influence.sum(), 0, atol=1e-9 * np.abs(influence).sum())
    # to the second order, in 1 / n, which counts for images that lie far out
    assert np.sqrt((off**2).mean()) < 0.02 * jackknife.std()


def test_influence_where_there_are_fewer_images_than_features():
    """What no image spans has no say: in a larger space, the same."""
    made, real = two_sets(50)
    plane = np.linalg.qr(np.random.default_rng(1).normal(size=(80, 4)))[0]
    flat, whole = (
        frechet_influence(a, b.mean(0), np.cov(b.T)) for a, b in ((made, real), (made @ plane.T, real @ plane.T))
    )
    np.testing.assert_allclose(whole, flat, rtol=1e-5)


def mmd(a, b):
    """The unbiased squared discrepancy, from its definition."""
    both = np.concatenate([a, b])
    kernel, n, m = (both @ both.T / a.shape[1] + 1) ** 3, len(a), len(b)
    within = [(part.sum() - np.trace(part)) / (k * (k - 1)) for part, k in ((kernel[:n, :n], n), (kernel[n:, n:], m))]
    return sum(within) - 2 * kernel[:n, n:].mean()


def test_influence_on_a_kernel_distance_is_that_of_leaving_an_image_out(monkeypatch):
    made, real = two_sets(40)
    monkeypatch.setattr("asyncpatch_jax.metrics.influence._BLOCK", 7)
    influence = kernel_influence(made, real)
    jackknife = left_out(lambda features: mmd(features, real), made)
    # which is larger by n / (n - 2) within the set, and by n / (n - 1) across
    off = jackknife - jackknife.mean() - influence * 40 / 38
    assert np.sqrt((off**2).mean()) < 0.01 * influence.std()


def test_an_interval_by_influence_is_as_wide_as_draws_spread():
    """Sets of images drawn again and again: the standard deviation of their distances, by the influence of one set."""
    rng = np.random.default_rng(2)
    mean, covariance = np.full(3, 0.4), np.diag([1.0, 2.0, 0.5])
    sets = rng.normal(size=(300, 200, 3))
    real = rng.multivariate_normal(mean, covariance, 20_000)
    distances = [frechet(made, real) for made in sets]
    by_one = [frechet_influence(made, real.mean(0), np.cov(real.T)).std() / 200**0.5 for made in sets[:20]]
    assert abs(np.mean(by_one) / np.std(distances) - 1) < 0.1
