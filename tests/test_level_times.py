"""What modulates a level is the mean over its pixels of each pixel's modulation, however the field is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import timefield
from asyncpatch_jax.models import DiT, UNet, times
from asyncpatch_jax.models.times import TimeEmbedding, knot_weights, modulation
from asyncpatch_jax.types import Condition, FewTimes

IMAGE = (24, 12)
GRIDS = [(24, 12), (12, 6), (6, 3), (3, 3), (2, 1)]
WIDTH, CHANNELS = 16, 5


def parameters(gain=1.0):
    init = TimeEmbedding(WIDTH).init(jax.random.key(0), jnp.zeros((1, 1, 1, 1)), None, GRIDS)["params"]
    return jax.tree.map(lambda p: gain * p, init), jax.random.normal(jax.random.key(1), (WIDTH, 2 * CHANNELS)) / 4


LABEL = jax.random.normal(jax.random.key(2), (2, 1, WIDTH))


def maps(t, label=LABEL, gain=1.0):
    """Scale and shift of every level, side by side."""
    params, kernel = parameters(gain)
    levels = TimeEmbedding(WIDTH).apply({"params": params}, t, label, GRIDS)
    return [
        jnp.concatenate(modulation(jnp.matmul(level.emb, kernel, precision="highest"), level, 2, grid), -1)
        for level, grid in zip(levels, GRIDS, strict=True)
    ]


def exact(t, label=LABEL, gain=1.0):
    """The same, pixel by pixel and in float64."""
    params, kernel = jax.tree.map(lambda p: np.asarray(p, np.float64), parameters(gain))
    t = np.asarray(timefield.dense(t), np.float64)
    t = t.repeat(IMAGE[0] // t.shape[1], 1).repeat(IMAGE[1] // t.shape[2], 2)

    def silu(x):
        return x / (1 + np.exp(-x))

    freqs = times.MAX_FREQUENCY * (times.MIN_FREQUENCY / times.MAX_FREQUENCY) ** (np.arange(128) / 127)
    h = np.concatenate([np.cos(t * freqs), np.sin(t * freqs)], -1)
    h = silu(h @ params["in"]["kernel"] + params["in"]["bias"]) @ params["out"]["kernel"] + params["out"]["bias"]
    h = silu(h if label is None else h + np.asarray(label)[:, :, None]) @ kernel
    return [h.reshape(len(h), gh, IMAGE[0] // gh, gw, IMAGE[1] // gw, -1).mean((2, 4)) for gh, gw in GRIDS]


def field(kind, batch=2):
    """Masks and fields that no level's cells are aligned with."""
    key = jax.random.key(7)
    if kind.startswith("few"):
        k, grid = {
            "few": (3, (24, 12)),
            "few_coarse": (2, (4, 4)),
            "few_rows": (2, (8, 1)),
            "few_many": (12, (24, 12)),
        }[kind]
        return timefield.few(jax.random.uniform(key, (batch, k)), jax.random.randint(key, (batch, *grid, 1), 0, k))
    grid = {"scalar": (1, 1), "cells": (8, 4), "odd_cells": (8, 3), "row": (1, 12), "pixels": (24, 12), "many": (24, 6)}
    return jax.random.uniform(key, (batch, *grid[kind], 1))


def close(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(jnp.broadcast_to(a, b.shape), b, **tolerance)


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
    t = jax.random.uniform(jax.random.key(0), (1, *IMAGE, 1))
    for steps in (16, 32, 64):
        monkeypatch.setattr(times, "STEPS", steps)
        monkeypatch.setattr(times, "KNOTS", steps + 3)
        errors.append(np.abs(np.asarray(maps(t, None)[0]) - exact(t, None)[0]).max())
    orders = np.log2(errors[:-1]) - np.log2(errors[1:])
    assert (orders > 2.5).all(), (errors, orders)


def test_knots_are_chosen_at_integers_and_mixed_in_between():
    whole = knot_weights(jnp.arange(5)[:, None], 5)
    assert (whole == jnp.eye(5)).all()
    position = jnp.linspace(1, 5, 50)[:, None]
    weights = knot_weights(position, 7)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    # Keys' convolution reproduces quadratics
    knots = jnp.arange(7.0)
    np.testing.assert_allclose(weights @ (knots**2 - 3 * knots), (position**2 - 3 * position)[:, 0], atol=2e-5)


def test_the_ends_are_exact():
    """Known pixels are at 0 and noise is at 1: both are knots."""
    t = (jax.random.uniform(jax.random.key(0), (2, *IMAGE, 1)) > 0.5).astype(jnp.float32)
    close(maps(t), exact(t), atol=2e-5)


def test_one_of_few_times_everywhere_is_that_time():
    values = jnp.asarray([[0.3, 0.7], [0.2, 0.9]])
    for j in range(2):
        t = timefield.few(values, jnp.full((2, *IMAGE, 1), j))
        for chosen, scalar in zip(maps(t), maps(values[:, j, None, None, None]), strict=True):
            np.testing.assert_allclose(chosen, jnp.broadcast_to(scalar, chosen.shape), atol=1e-6)


def test_gradients_of_all_forms_agree():
    few = field("few")

    def gradient(t):
        def total(kernel):
            levels = TimeEmbedding(WIDTH).apply({"params": params}, t, LABEL, GRIDS)
            out = [
                modulation(jnp.matmul(level.emb, kernel, precision="highest"), level, 2, grid)
                for level, grid in zip(levels, GRIDS, strict=True)
            ]
            return sum((jnp.sin(m) ** 2).sum() / m.size for level in out for m in level)

        params, kernel = parameters()
        return jax.jit(jax.grad(total))(kernel)

    many = FewTimes(jnp.concatenate([few.values, jnp.zeros((2, 9))], 1), few.index)
    np.testing.assert_allclose(gradient(few), gradient(many), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient(few), gradient(timefield.dense(few)), rtol=1e-2, atol=1e-3)


MODELS = [
    UNet(base=8, multipliers=(1, 2), blocks=1, attention=(1,), head_dim=8, num_classes=3),
    DiT(patch=2, width=16, depth=2, heads=2, num_classes=3),
]


@pytest.mark.parametrize("model", MODELS, ids=["unet", "dit"])
def test_networks_answer_alike_to_a_field_however_it_is_given(model):
    x, cond = jax.random.normal(jax.random.key(0), (2, 16, 16, 1)), Condition(jnp.asarray([0, 2]))
    params = jax.jit(model.init)(jax.random.key(1), x, jnp.zeros((2, 1, 1, 1)), cond)["params"]
    params, rng = jax.device_get(params), np.random.default_rng(3)
    params = jax.tree.map(lambda p: jnp.asarray(p + rng.normal(0, 0.1, p.shape), jnp.float32), params)
    apply = jax.jit(lambda t: model.apply({"params": params}, x, t, cond)[0])

    mask = jax.random.randint(jax.random.key(5), (2, 4, 4, 1), 0, 2)
    few = timefield.few(jnp.asarray([[0.0, 0.61]]), mask)
    # 16 cells are embedded one by one; as pixels they are more than the knots, of which 0 and .625 are two
    np.testing.assert_allclose(apply(few), apply(timefield.dense(few)), atol=5e-5, rtol=5e-5)
    few = few._replace(values=jnp.asarray([[0.0, 0.625]]))
    pixels = timefield.dense(few).repeat(4, 1).repeat(4, 2)
    np.testing.assert_allclose(apply(few), apply(pixels), atol=5e-5, rtol=5e-5)
    # and one that has nine columns, which are multiplied and not chosen
    wide = FewTimes(jnp.concatenate([few.values, jnp.ones((1, 7))], 1), few.index)
    np.testing.assert_allclose(apply(few), apply(wide), atol=5e-5, rtol=5e-5)
