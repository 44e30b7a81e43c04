from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpatch_jax import timefield
from asyncpatch_jax.training.perlin import by_rank, perlin_noise
from asyncpatch_jax.training.times import (
    RAD,
    AsyncPatch,
    Independent,
    LogitNormalTruncated,
    Patchwise,
    Perlin,
    Synchronous,
    TimeSampler,
    UniformMean,
    _symmetric_beta,
    patches,
    share_out,
    with_mean,
)

SAMPLERS = [
    Synchronous(),
    Independent(),
    Patchwise(),
    Perlin(),
    RAD(),
    UniformMean(),
    LogitNormalTruncated(),
    AsyncPatch(),
    AsyncPatch("logit_normal", spread=(1.0, 1.0), base="two_level"),
]
named = partial(pytest.mark.parametrize, ids=repr)


@partial(jax.jit, static_argnums=(0, 2, 3))
def drawn(samplers, key, batch, grid):
    return [timefield.dense(sampler(key, batch, grid)) for sampler in samplers]


def draw(sampler, key, batch, grid):
    return np.asarray(drawn((sampler,), key, batch, grid)[0])


def statistics(fields):
    """Mean over draws and spread of the image mean; mean spread inside an image; shares of nearly clean and noisy."""
    flat = np.asarray(fields).reshape(len(fields), -1)
    m = flat.mean(1, dtype=np.float64)
    return m.mean(), m.std(), flat.std(1).mean(), (m < 0.1).mean(), (m > 0.9).mean()


# E[m], sd(m), E[within], P(m < .1), P(m > .9) for 256 cells, of METHODS; None: not stated there
ANCHORS = [
    (Synchronous(), (0.5, 0.289, 0.0, 0.10, 0.10)),
    (Independent(), (0.5, 0.018, 0.289, 0.0, 0.0)),
    (UniformMean(), (0.5, 0.289, 0.181, 0.10, 0.10)),
    # m = a u, or 1 - (1 - a)(1 - u), of an area a and a clock u: all five are closed forms, 1/3, pi/16, ...
    (RAD(), (0.5, 0.333, 0.196, 0.168, 0.168)),
    (AsyncPatch(), (0.5, 0.289, None, 0.10, 0.10)),
    (AsyncPatch(base="two_level"), (0.5, 0.289, 0.092, 0.10, 0.10)),
    (AsyncPatch(spread=(1.0, 1.0), base="two_level"), (0.5, 0.289, 0.186, 0.10, 0.10)),
]


@cache
def of_the_table(kind):
    """All of a kind in one program, where those that differ in their settings share what they draw."""
    samplers = tuple(sampler for sampler, _ in ANCHORS if isinstance(sampler, kind))
    fields = drawn(samplers, jax.random.key(0), 10_000, (16, 16))
    return {sampler: statistics(field) for sampler, field in zip(samplers, fields, strict=True)}


@named(("sampler", "expected"), ANCHORS)
def test_statistics_are_those_of_the_table(sampler, expected):
    got = of_the_table(type(sampler))[sampler]
    for value, anchor, tolerance in zip(got, expected, (0.01, 0.005, 0.004, 0.01, 0.01), strict=True):
        if anchor is not None:
            assert abs(value - anchor) < tolerance, (got, expected)


@jax.jit
@jax.vmap
def squares(values, size, mean, amount):
    """Squares that are not shifted, as in the table; a shift cuts the largest. And times in their pattern."""
    z = patches(values, size, jnp.zeros(2, jnp.int32))
    return z, with_mean(z, mean, amount)


@cache
def on_squares(size=None, low=0.0):
    """Fields of 64^2 cells; for no size, of 1, 2, 4, ..., 64 alike."""
    rng = np.random.default_rng(size or 0)
    sizes = 2 ** rng.integers(0, 7, 3000) if size is None else np.full(3000, size)
    mean, amount = rng.random(3000, np.float32), rng.uniform(low, 1, 3000).astype(np.float32)
    return squares(rng.random((3000, 64, 64), np.float32), sizes.astype(np.int32), mean, amount)


@pytest.mark.parametrize(
    ("size", "sd", "within"), [(1, 0.0044, 0.289), (8, 0.036, 0.285), (16, 0.073, 0.278), (32, 0.141, 0.237)]
)
def test_patches_of_a_size_have_the_tables_statistics(size, sd, within):
    mean, got_sd, got_within, _, _ = statistics(on_squares(size)[0])
    assert abs(mean - 0.5) < 0.012
    np.testing.assert_allclose((got_sd, got_within), (sd, within), rtol=0.05)


@pytest.mark.parametrize(("low", "within"), [(0.0, 0.059), (1.0, 0.118)])
def test_asyncpatch_on_uniform_squares_spreads_as_the_table_says(low, within):
    assert abs(statistics(on_squares(low=low)[1])[2] - within) < 0.004


def test_patch_sizes_and_shifts_are_uniform():
    """A cell and its right neighbour differ unless one square holds both: chance 1 - 1/p, for p = 1, 2, 4, 8 alike."""
    t = draw(Patchwise(), jax.random.key(0), 20_000, (8, 8))[..., 0]
    same = (t[:, :, 1:] == t[:, :, :-1]).mean((0,))
    expected = np.mean([1 - 1 / p for p in (1, 2, 4, 8)])
    np.testing.assert_allclose(same, expected, atol=0.015)
    same_below = (t[:, 1:] == t[:, :-1]).mean(0)
    np.testing.assert_allclose(same_below, expected, atol=0.015)


def test_the_clock_of_rad_noises_the_region_and_then_the_rest():
    share = 0.2
    values, index = jax.device_get(jax.jit(RAD(share), static_argnums=(1, 2))(jax.random.key(5), 4000, (4, 4)))
    inside, outside = values.T
    assert set(np.unique(index)) == {0, 1}
    first = outside == 0
    assert (inside[~first] == 1).all()
    assert abs(first.mean() - share) < 0.03
    # in its own phase each has all times alike
    for moving in (inside[first], outside[~first]):
        np.testing.assert_allclose(np.quantile(moving, (0.1, 0.5, 0.9)), (0.1, 0.5, 0.9), atol=0.06)
    # a region is as large as it likes, whatever the clock says
    area = (index == 0).mean((1, 2, 3))
    assert abs(area.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(area, values.sum(1))[0, 1]) < 0.06


def test_squares_tile_the_grid():
    values = np.arange(30, dtype=np.float32).reshape(5, 6)
    got = np.asarray(jax.jit(patches)(values, np.int32(3), np.array([1, 2], np.int32)))
    expected = [[values[(y + 1) // 3, (x + 2) // 3] for x in range(6)] for y in range(5)]
    np.testing.assert_array_equal(got, expected)


@named("sampler", SAMPLERS)
def test_fields_are_times_and_each_image_depends_on_its_own_key(sampler):
    assert isinstance(sampler, TimeSampler)
    keys, grid = jax.random.split(jax.random.key(7), 200), (3, 5)
    t = draw(sampler, keys, 200, grid)
    assert t.shape == (200, *((1, 1) if isinstance(sampler, Synchronous) else grid), 1)
    assert t.dtype == jnp.float32
    assert ((t >= 0) & (t <= 1)).all()
    moved = draw(sampler, jax.random.wrap_key_data(np.roll(jax.random.key_data(keys), -5, 0)), 200, grid)
    np.testing.assert_array_equal(moved[:-5], t[5:])
    assert len(np.unique(t.mean((1, 2, 3)))) > 150


@named("sampler", [Patchwise(), Perlin(), UniformMean(), AsyncPatch()])
def test_a_single_cell_has_a_uniform_time(sampler):
    t = np.sort(np.asarray(draw(sampler, jax.random.key(2), 3000, (1, 1))).reshape(-1))
    assert np.abs(t - (np.arange(3000) + 0.5) / 3000).max() < 1.95 / np.sqrt(3000)


def test_one_key_is_folded_with_the_images_index():
    few, many = (draw(Independent(), jax.random.key(1), n, (4, 6)) for n in (2, 5))
    np.testing.assert_array_equal(many[:2], few)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(SAMPLERS), st.integers(1, 33), st.integers(1, 33), st.integers(1, 3))
def test_every_grid_has_its_field(sampler, rows, columns, batch):
    t = jax.eval_shape(lambda key: timefield.dense(sampler(key, batch, (rows, columns))), jax.random.key(0))
    assert t.shape == (batch, *((1, 1) if isinstance(sampler, Synchronous) else (rows, columns)), 1)


def test_uniform_mean_is_uniform_and_treats_cells_alike():
    t = draw(UniformMean(), jax.random.key(3), 8000, (5, 9))[..., 0]
    m = np.sort(np.asarray(t, np.float64).mean((1, 2)))
    # Kolmogorov-Smirnov distance from the uniform distribution, 0.1 % level
    assert np.abs(m - (np.arange(8000) + 0.5) / 8000).max() < 1.95 / np.sqrt(8000)
    assert np.abs(t.mean(0) - 0.5).max() < 5 * 0.35 / np.sqrt(8000)
    # the first half, which is split from the second first of all, is as much alike as any cells
    t = np.asarray(t, np.float64).reshape(8000, -1)

    def pairs(t):
        return (t.sum(1) ** 2 - (t**2).sum(1)) / (t.shape[1] * (t.shape[1] - 1))

    more = pairs(t[:, :22]) + pairs(t[:, 22:]) - 2 * pairs(t)
    assert np.abs(more.mean()) < 5 * more.std() / np.sqrt(8000)


@pytest.mark.parametrize("a", [0.6, 1.0, 7.5, 6000.0])
def test_symmetric_beta_is_a_beta(a):
    stats = pytest.importorskip("scipy.stats")
    got = np.asarray(_symmetric_beta(jax.random.key(0), np.full(20_000, a)), np.float64)
    assert stats.kstest(got, stats.beta(a, a).cdf).pvalue > 1e-3


@pytest.mark.parametrize("cells", [17, 64])
def test_shares_add_up_and_the_first_split_is_the_published_beta(cells):
    """Half a total leaves the first half everything from 0 to its size: its share is Beta(a, a) of known spread."""
    keys, total = jax.random.split(jax.random.key(0), 8000), jnp.float32(cells // 2)
    t = np.asarray(jax.jit(jax.vmap(lambda key: share_out(key, total, cells, 1.5)))(keys), np.float64)
    np.testing.assert_allclose(t.sum(1), cells // 2, rtol=1e-5)
    first = t[:, : cells // 2].sum(1) / (cells // 2)
    a = 1.5 * (cells - 1 - cells % 2) ** 1.05
    np.testing.assert_allclose((first.mean(), first.std()), (0.5, 0.5 / np.sqrt(2 * a + 1)), rtol=0.03)


def test_uniform_mean_is_the_published_recursion():
    """Quantiles of one cell against the recursion as the paper writes it, also for an odd number of cells."""
    rng = np.random.default_rng(0)

    def share(total, d):
        if d == 1:
            return [total]
        first = d // 2
        low, high = max(0.0, total - (d - first)), min(total, first)
        a = 2.0 * (d - 1 - d % 2) ** 1.05
        given = low + rng.beta(a, a) * (high - low)
        return share(given, first) + share(total - given, d - first)

    truth = np.array([share(rng.random() * 5, 5) for _ in range(20_000)])
    got = np.asarray(draw(UniformMean(sharpness=2.0), jax.random.key(0), 20_000, (1, 5))).reshape(-1, 5)
    q = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(np.quantile(got, q), np.quantile(truth, q), atol=0.01)
    np.testing.assert_allclose(np.quantile(got.std(1), q), np.quantile(truth.std(1), q), atol=0.01)


def test_logit_normal_truncated_bounds_how_clean_a_cell_is():
    """Against the sampler of Patch Forcing as its authors wrote it, whose times count the data."""
    rng = np.random.default_rng(0)
    bound = 1 / (1 + np.exp(-(0.7 + rng.normal(size=(20_000, 1)))))
    clean = bound - np.minimum(bound / 2, 0.6) * np.abs(rng.normal(size=(20_000, 16)))
    truth = 1 - np.where(clean < 0, rng.random(clean.shape) * bound, clean)
    got = np.asarray(draw(LogitNormalTruncated(), jax.random.key(0), 20_000, (4, 4))).reshape(-1, 16)
    q = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(np.quantile(got, q), np.quantile(truth, q), atol=0.01)
    np.testing.assert_allclose(np.quantile(got.min(1), q), np.quantile(truth.min(1), q), atol=0.015)


def test_logit_normal_means():
    t = np.asarray(draw(Synchronous("logit_normal", loc=-0.4, scale=0.7), jax.random.key(0), 20_000, (2, 2))).reshape(
        -1
    )
    logit = np.log(t / (1 - t))
    np.testing.assert_allclose((logit.mean(), logit.std()), (-0.4, 0.7), atol=0.02)


unit = st.floats(0.0, 1.0, width=32)


@settings(max_examples=200, deadline=None)
@given(unit, unit, st.integers(0, 2**31 - 1), st.booleans())
def test_with_mean_has_that_mean_and_stays_in_range(mean, amount, seed, two_level):
    z = np.random.default_rng(seed).random((6, 5), np.float32)
    z = (z < z[0, 0]).astype(np.float32) if two_level else z
    t = np.asarray(spread(z, mean, amount), np.float64)
    assert abs(t.mean() - mean) < 3e-7
    assert t.min() >= 0
    assert t.max() <= 1
    zbar = z.mean(dtype=np.float64)
    if 0 < zbar < 1:
        published = mean + amount * min(mean / zbar, (1 - mean) / (1 - zbar)) * (z - zbar)
        np.testing.assert_allclose(t, published, atol=1e-6)


JITTED, RANKED = jax.jit(with_mean), jax.jit(by_rank)


def spread(z, mean, amount):
    return np.asarray(JITTED(z, np.float32(mean), np.float32(amount)))


def test_no_spread_is_synchronous_and_full_spread_of_two_levels_is_inpainting():
    z = np.zeros((4, 4), np.float32)
    z[:, 1:] = 1
    assert len(np.unique(spread(z, 0.4, 0.0))) == 1
    t = spread(z, 0.3, 1.0)
    assert (t[:, 0] == 0).all()  # exactly: a known cell
    np.testing.assert_allclose(t[:, 1:], 0.3 / 0.75, rtol=1e-6)
    t = spread(z, 0.9, 1.0)
    assert (t[:, 1:] == 1).all()
    np.testing.assert_allclose(t[:, 0], 0.6, rtol=1e-5)
    for flat in (np.zeros_like(z), np.ones_like(z)):
        np.testing.assert_array_equal(spread(flat, 0.3, 1.0), np.float32(0.3))


def test_perlin_fields_have_two_times_and_any_area():
    t = np.asarray(draw(Perlin(), jax.random.key(0), 4000, (8, 12)))[..., 0]
    assert max(len(np.unique(f)) for f in t) == 2
    share = (t == t[:, :1, :1]).mean((1, 2))
    larger = np.maximum(share, 1 - share)  # uniform on [1/2, 1], as the area is on [0, 1]
    np.testing.assert_allclose(np.quantile(larger, [0.25, 0.5, 0.75]), [0.625, 0.75, 0.875], atol=0.02)
    # regions are smooth: neighbours agree far more often than two cells at random do
    assert (t[:, :, 1:] == t[:, :, :-1]).mean() > (t[:, :, 6:] == t[:, :, :6]).mean() + 0.1


def test_perlin_noise_is_perlin_noise():
    """Zero on lattice points, the gradients' own plane near them, and the same field for any number of cells."""

    @jax.jit
    def noise(key):
        angles, shift = jax.random.split(key)
        return (
            perlin_noise(key, (256, 256), 64.0),
            jax.random.uniform(angles, (258, 258), maxval=2 * jnp.pi),
            jax.random.uniform(shift, (2,)),
        )

    fine, angles, shift = jax.device_get(noise(jax.random.key(4)))
    # cell i lies at i / 64 + shift: the first lattice point is at i = 64 (1 - shift)
    row, column = 64 * (1 - shift)
    around = fine[int(row) : int(row) + 2, int(column) : int(column) + 2]
    assert np.abs(around).max() < 1.5 / 64
    assert np.abs(fine).max() <= np.sqrt(0.5) + 1e-6
    assert np.abs(np.diff(fine, axis=0)).max() < 4 / 64  # continuous across lattice cells
    assert fine.std() > 0.15
    y, x = np.arange(256) / 64 + shift[0], np.arange(256) / 64 + shift[1]
    i, j = 100, 33

    def reference(py, px):
        iy, ix = int(py), int(px)
        fy, fx = py - iy, px - ix
        value = 0.0
        for dy in (0, 1):
            for dx in (0, 1):
                a = float(angles[iy + dy, ix + dx])
                wy, wx = (f**3 * (10 - 15 * f + 6 * f * f) for f in (fy, fx))
                weight = (wy if dy else 1 - wy) * (wx if dx else 1 - wx)
                value += weight * (np.cos(a) * (fx - dx) + np.sin(a) * (fy - dy))
        return value

    np.testing.assert_allclose(fine[i, j], reference(y[i], x[j]), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(unit, st.integers(0, 1000))
def test_by_rank_covers_the_area(area, seed):
    noise = np.random.default_rng(seed).normal(size=(5, 8)).astype(np.float32)
    mask = np.asarray(RANKED(noise, np.float32(area)))
    assert abs(mask.sum() - area * 40) <= 0.5 + 1e-4
    if 0 < mask.sum() < 40:
        assert noise[mask == 1].max() < noise[mask == 0].min()


def test_mistakes_are_named():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="rows, columns"):
        Independent()(key, 2, (4, 0))
    with pytest.raises(ValueError, match="distribution"):
        Synchronous("gaussian")
    with pytest.raises(ValueError, match="scale > 0"):
        AsyncPatch(scale=0.0)
    with pytest.raises(ValueError, match="the spread's high"):
        AsyncPatch(spread=(0.5, 1.5))
    with pytest.raises(ValueError, match="base"):
        AsyncPatch(base="perlin")
    with pytest.raises(ValueError, match="sharpness"):
        UniformMean(0.0)
    with pytest.raises(ValueError, match="lattice cell"):
        perlin_noise(key, (4, 4), 0.5)
