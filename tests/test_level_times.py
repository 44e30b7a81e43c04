"""What modulates a level is the mean over its pixels of each pixel's modulation, however the field is given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax.models import times
from asyncpatch_jax.models.times import TimeEmbedding, knot_weights, modulation
from asyncpatch_jax.types import FewTimes
from tests import drawn

IMAGE = (24, 12)
GRIDS = ((24, 12), (12, 6), (6, 3), (3, 3), (2, 1))
WIDTH, CHANNELS = 16, 5
SHAPES = jax.eval_shape(
    lambda key, t: TimeEmbedding(WIDTH).init(key, t, None, GRIDS), jax.random.key(0), np.zeros((1, 1, 1, 1), np.float32)
)
PARAMS = drawn.params_like(SHAPES["params"])
KERNEL = np.asarray(drawn.normal(WIDTH, 2 * CHANNELS, seed=1)) / 4
LABEL = drawn.normal(2, 1, WIDTH, seed=2)


@functools.partial(jax.jit, static_argnames=("grids", "knots", "how"))
def levels(params, kernel, t, label, *, grids, knots, how=()):
    """Scale and shift of every level, side by side; `knots` is in force already, and here that no other's run is it."""
    embedded = TimeEmbedding(WIDTH, **dict(how)).apply({"params": params}, t, label, grids)
    return [
        jnp.concatenate(modulation(jnp.matmul(level.emb, kernel, precision="highest"), level, 2, grid), -1)
        for level, grid in zip(embedded, grids, strict=True)
    ]


def maps(t, label=LABEL, gain=1.0, grids=GRIDS, **how):
    params = jax.tree.map(lambda p: np.float32(gain) * np.asarray(p), PARAMS)
    how = tuple(how.items())
    return jax.device_get(levels(params, KERNEL, t, label, grids=grids, knots=times.KNOTS, how=how))


def dense(t):
    return np.take_along_axis(t.values[:, None, None], t.index, -1) if isinstance(t, FewTimes) else t


def pooled(values, grid):
    """The area means of values of pixels [b, h, w, d] on a coarser grid."""
    b, h, w, d = values.shape
    return values.reshape(b, grid[0], h // grid[0], grid[1], w // grid[1], d).mean((2, 4))


def exact(t, label=LABEL, gain=1.0, grids=GRIDS, radians=times.MAX_FREQUENCY, mean_of="modulations"):
    """The same, pixel by pixel and in float64."""
    params = jax.tree.map(lambda p: gain * np.asarray(p, np.float64), PARAMS)
    t = np.asarray(dense(t), np.float64)
    t = t.repeat(IMAGE[0] // t.shape[1], 1).repeat(IMAGE[1] // t.shape[2], 2)

    def silu(x):
        return x / (1 + np.exp(-x))

    def modulated(t):
        freqs = radians * (times.MIN_FREQUENCY / radians) ** (np.arange(128) / 127)
        h = np.concatenate([np.cos(t * freqs), np.sin(t * freqs)], -1)
        h = silu(h @ params["in"]["kernel"] + params["in"]["bias"]) @ params["out"]["kernel"] + params["out"]["bias"]
        return silu(h if label is None else h + np.asarray(label)[:, :, None]) @ np.asarray(KERNEL, np.float64)

    if mean_of == "times":
        return [modulated(pooled(t, grid)) for grid in grids]
    return [pooled(modulated(t), grid) for grid in grids]


def field(kind, batch=2):
    """Masks and fields that no level's cells are aligned with."""
    rng = np.random.default_rng(7)
    if kind.startswith("few"):
        k, grid = {
            "few": (3, (24, 12)),
            "few_coarse": (2, (4, 4)),
            "few_rows": (2, (8, 1)),
            "few_many": (12, (24, 12)),
        }[kind]
        return FewTimes(rng.random((batch, k), np.float32), rng.integers(0, k, (batch, *grid, 1), np.int32))
    grid = {"scalar": (1, 1), "cells": (8, 4), "odd_cells": (8, 3), "row": (1, 12), "pixels": (24, 12), "many": (24, 6)}
    return rng.random((batch, *grid[kind], 1), np.float32)


def close(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.broadcast_to(a, b.shape), b, **tolerance)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("label", [None, LABEL], ids=["plain", "label"])
@pytest.mark.parametrize("kind", ["scalar", "cells", "odd_cells", "row", "few", "few_coarse", "few_rows", "few_many"])
def test_every_level_has_the_mean_of_its_pixels_modulations(kind, label, batch):
    t = field(kind, batch)
    close(maps(t, label), exact(t, label), atol=2e-5)


@pytest.mark.parametrize("kind", ["pixels", "many"])
@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_interpolation_between_knots_keeps_its_bound(kind, gain):
    t = field(kind)
    ours, theirs = maps(t, gain=gain), exact(t, gain=gain)
    close(ours, theirs, atol=2e-3 * gain * theirs[0].std())


def test_interpolation_is_of_third_order(monkeypatch):
    errors = []
    t = np.asarray(drawn.uniform(1, *IMAGE, 1))
    truth = exact(t, None)[0]
    for steps in (16, 32, 64):
        monkeypatch.setattr(times, "STEPS", steps)
        monkeypatch.setattr(times, "KNOTS", steps + 3)
        errors.append(np.abs(maps(t, None, grids=GRIDS[:1])[0] - truth).max())
    orders = np.log2(errors[:-1]) - np.log2(errors[1:])
    assert (orders > 2.5).all(), (errors, orders)


def test_knots_are_chosen_at_integers_and_mixed_in_between():
    weights = jax.jit(knot_weights, static_argnums=1)
    np.testing.assert_array_equal(weights(np.arange(5, dtype=np.int32)[:, None], 5), np.eye(5))
    position = np.linspace(1, 5, 50, dtype=np.float32)[:, None]
    mixed = np.asarray(weights(position, 7))
    np.testing.assert_allclose(mixed.sum(-1), 1, rtol=1e-6)
    # Keys' convolution reproduces quadratics
    knots = np.arange(7, dtype=np.float32)
    np.testing.assert_allclose(mixed @ (knots**2 - 3 * knots), (position**2 - 3 * position)[:, 0], atol=2e-5)


@pytest.mark.parametrize("kind", ["scalar", "odd_cells", "few", "few_coarse", "pixels"])
def test_by_the_plainer_rule_a_cell_is_told_the_mean_of_its_pixels_times(kind):
    t = field(kind)
    ours, theirs = maps(t, mean_of="times"), exact(t, mean_of="times")
    # a level of many pixels is interpolated between knots
    close(ours, theirs, atol=2e-5 if kind in ("scalar", "few_coarse") else 2e-3 * theirs[0].std())
    if kind != "scalar":  # the two rules are two
        assert max(np.abs(a - b).max() for a, b in zip(theirs, exact(t), strict=True)) > 0.05


@pytest.mark.parametrize("kind", ["scalar", "few", "pixels"])
def test_fast_features_of_time_are_embedded_exactly_cell_by_cell(kind):
    t = field(kind)
    close(maps(t, radians=1000.0), exact(t, radians=1000.0), atol=5e-4)


@pytest.mark.parametrize("how", [{"mean_of": "times"}, {"radians": 1000.0}], ids=str)
def test_a_constant_field_is_the_scalar_by_every_rule(how):
    scalar = maps(field("scalar"), **how)
    constant = maps(np.broadcast_to(field("scalar"), (2, *IMAGE, 1)), **how)
    for a, b in zip(constant, scalar, strict=True):
        atol = 2e-3 if "mean_of" in how else 2e-5  # by the plainer rule with knots, of which this time is none
        np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), atol=atol)


def test_the_ends_are_exact():
    """Known pixels are at 0 and noise is at 1: both are knots."""
    t = (np.random.default_rng(0).random((2, *IMAGE, 1)) > 0.5).astype(np.float32)
    close(maps(t), exact(t), atol=2e-5)


def test_one_of_few_times_everywhere_is_that_time():
    values = np.array([[0.3, 0.7], [0.2, 0.9]], np.float32)
    for j in range(2):
        t = FewTimes(values, np.full((2, *IMAGE, 1), j, np.int32))
        for chosen, scalar in zip(maps(t), maps(values[:, j, None, None, None]), strict=True):
            np.testing.assert_allclose(chosen, np.broadcast_to(scalar, chosen.shape), atol=1e-6)


def test_gradients_of_all_forms_agree():
    @jax.jit
    @jax.grad
    def gradient(kernel, t):
        maps = levels(PARAMS, kernel, t, LABEL, grids=GRIDS, knots=times.KNOTS)
        return sum((jnp.sin(m) ** 2).sum() / (m.size / 2) for m in maps)

    few = field("few")
    many = FewTimes(np.concatenate([few.values, np.zeros((2, 9), np.float32)], 1), few.index)
    chosen = gradient(KERNEL, few)
    np.testing.assert_allclose(chosen, gradient(KERNEL, many), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(chosen, gradient(KERNEL, dense(few)), rtol=1e-2, atol=1e-3)
