"""Dropout: as many zeros as asked for, and nothing to be seen in where they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from asyncpatch_jax.models.dropout import Dropout, first_seed, kept, seeds

SEED = first_seed(jax.random.key(0))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_as_many_as_asked_for(rate):
    mask = np.asarray(kept(SEED, 5, (16, 32, 32, 64), rate))
    # of independent bits, at five standard deviations; and the same of each image and of each channel
    assert stats.binomtest(int((~mask).sum()), mask.size, rate).pvalue > 1e-6
    for axes in ((1, 2, 3), (0, 1, 2), (0, 3)):
        counts = (~mask).sum(axes)
        n = mask.size // counts.size
        chi2 = ((counts - n * rate) ** 2 / (n * rate * (1 - rate))).sum()
        assert 1e-6 < stats.chi2.sf(chi2, counts.size) < 1 - 1e-6


@pytest.mark.parametrize(
    "other",
    [
        lambda m: kept(first_seed(jax.random.key(1)), 5, m.shape, 0.5),
        lambda m: kept(SEED + 1, 5, m.shape, 0.5),
        lambda m: kept(seeds(SEED, 3)[1], 5, m.shape, 0.5),
        lambda m: kept(SEED, 6, m.shape, 0.5),
        lambda m: np.roll(m, 1, 0),
        lambda m: np.roll(m, 1, 1),
        lambda m: np.roll(m, 1, 2),
        lambda m: np.roll(m, 1, 3),
        lambda m: np.roll(m, (1, -1), (2, 3)),
    ],
    ids=["key", "seed", "stacked layer", "layer", "image", "row", "column", "channel", "diagonal"],
)
def test_seeds_and_places_are_independent(other):
    mask = np.asarray(kept(SEED, 5, (16, 32, 32, 64), 0.5))
    agree = int((mask == np.asarray(other(mask))).sum())
    assert stats.binomtest(agree, mask.size, 0.5).pvalue > 1e-6


def test_runs_of_bits_are_as_long_as_of_coins():
    """The patterns of 8 neighbours along channels, and along columns, are all as likely."""
    mask = np.asarray(kept(SEED, 5, (8, 32, 32, 64), 0.5))
    for bits in (mask.reshape(-1, 8), mask.swapaxes(2, 3).reshape(-1, 8)):
        counts = np.bincount(np.packbits(bits, axis=1)[:, 0], minlength=256)
        assert 1e-6 < stats.chisquare(counts).pvalue < 1 - 1e-6


def test_values_and_gradients():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8)) + 5.0
    y, pull = jax.vjp(lambda x: Dropout(0.25).apply({}, x, SEED), x)
    mask = np.asarray(y) != 0
    assert 0.1 < 1 - mask.mean() < 0.4
    np.testing.assert_allclose(y, np.where(mask, x / 0.75, 0), rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones_like(x))[0], mask / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(Dropout(0.25).apply({}, x, None), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, SEED), x)


def test_each_layer_has_a_mask_of_its_own():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dropout(0.5)(x, SEED), Dropout(0.5)(x, SEED)

    a, b = Two().apply({}, jnp.ones((4, 8, 8, 16)))
    agree = int(((a > 0) == (b > 0)).sum())
    assert stats.binomtest(agree, a.size, 0.5).pvalue > 1e-6


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ValueError, match=r"rate in \[0, 1\)"):
        Dropout(rate).apply({}, jnp.ones((1, 2)), SEED)
