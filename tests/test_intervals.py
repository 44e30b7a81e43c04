"""Bootstrap intervals against the normal approximation, their coverage, and groups."""

import numpy as np
import pytest

from asyncpatch_jax.metrics.intervals import bootstrap


def test_a_large_sample_has_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    found = bootstrap(values)
    half = 1.96 * values.std() / 2000**0.5
    assert found.mean == values.mean()
    np.testing.assert_allclose([found.low, found.high], [found.mean - half, found.mean + half], atol=0.03 * half)
    wide = bootstrap(values, level=0.99)
    np.testing.assert_allclose((wide.high - wide.low) / (found.high - found.low), 2.576 / 1.96, rtol=0.05)


def test_it_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(300):
        found = bootstrap(rng.normal(0.0, 1.0, 60), samples=400, seed=seed)
        inside += found.low <= 0 <= found.high
    assert 0.9 <= inside / 300 <= 0.985


def test_groups_are_drawn_as_a_whole():
    # each prompt has one number, 50 times: the copies are no evidence
    single = np.random.default_rng(2).normal(0.0, 1.0, 40)
    copies, prompts = np.repeat(single, 50), np.repeat([f"prompt {i}" for i in range(40)], 50)
    one, many, naive = bootstrap(single), bootstrap(copies, prompts), bootstrap(copies)
    np.testing.assert_allclose(many.high - many.low, one.high - one.low, rtol=0.05)
    assert naive.high - naive.low < 0.2 * (one.high - one.low)
    # groups of several sizes: the mean stays that of all numbers
    uneven = bootstrap(np.array([1.0, 1.0, 1.0, 5.0]), [0, 0, 0, 1])
    assert (uneven.mean, uneven.low, uneven.high) == (2.0, 1.0, 5.0)
    # thousands of groups are drawn in parts, with the same interval
    values = np.random.default_rng(3).normal(0.0, 1.0, 5000)
    half = 1.96 * values.std() / 5000**0.5
    np.testing.assert_allclose(bootstrap(values).high - values.mean(), half, rtol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(0),), "at least one"),
        ((np.array([1.0, np.nan]),), "expected finite numbers"),
        ((np.zeros(3), [1, 2]), "a group for each of 3 numbers, got 2"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(*arguments)
    with pytest.raises(ValueError, match="a level in"):
        bootstrap(np.zeros(3), level=95.0)
