"""Concave, mask-guided schedules (AsynDM) against plain loops, the released code's steps, and the stock samplers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import timefield
from asyncpatch_jax.process import Discrete, RectifiedFlow, predict
from asyncpatch_jax.sampling import (
    DDIM,
    DDPM,
    Concave,
    Dynamic,
    Euler,
    Fixed,
    Synchronous,
    everywhere,
    linear,
    loop,
    sample,
    shifted,
)
from asyncpatch_jax.sampling.schedules import curves
from asyncpatch_jax.types import FewTimes, Prediction
from tests import drawn
from tests.test_curves import chain, written_out

STEPS = 50
# Stable Diffusion's "leading" grid: 981 ... 1 of 1000 train steps, and the level 0 at the end
GRID = jax.device_put(((np.r_[np.arange(981, 0, -20), 0] + 1) / 1000).astype(np.float32))
STABLE = {"grid": GRID, "cells": (8, 8), "head_start": True}
SHAPE = (8, 8, 2)


def looking(maps):
    """A denoiser whose attention maps [b, gh, gw, k] also depend on the image, so that masks change along the run."""

    def denoise(x, times):
        grid = maps.shape[1:3]
        seen = timefield.resize(x[..., :1], grid)
        t = timefield.resize(timefield.dense(times.told), x.shape[1:3])
        x0 = jnp.tanh(x) * (1 - 0.3 * t)
        return Prediction(x0, x - 0.1 * x0 * t, {"maps": jax.nn.sigmoid(3 * seen) * maps[: x.shape[0]]})

    return denoise


def maps(batch=2, objects=1, grid=(2, 2), seed=0):
    return drawn.uniform(batch, *grid, objects, seed=seed)


X = drawn.normal(2, *SHAPE, seed=1)
FLOW, LOOKING = DDIM(RectifiedFlow()), looking(maps())


@functools.partial(jax.jit, static_argnames=("solver", "denoise"))
def traced(schedule, x=X, *, solver=FLOW, denoise=LOOKING):
    """The last state, and times, predictions' masks and images of each step."""
    return sample(
        denoise,
        solver,
        schedule,
        jax.random.key(0),
        x,
        num_steps=schedule.num_steps,
        trace=lambda state, pred: (state.times, pred.aux["maps"], state.x),
    )


def run(schedule, x=X, **options):
    return jax.device_get(traced(schedule, x, **options))


# as users compile it; the emitters of these tests round what they fuse, which differs from program to program
exactly = jax.jit(
    functools.partial(traced.__wrapped__, solver=DDPM(Discrete())),
    compiler_options={"xla_cpu_use_fusion_emitters": True},
)


def indices(levels):
    """The index in Stable Diffusion's units at which each cell is evaluated."""
    return np.asarray(levels, np.float64) * 1000 - 1


# --------------------------------------------------------------------------------------------- runs of the sampler
@pytest.mark.parametrize("curve", ["quadratic", "piecewise"])
@pytest.mark.parametrize("masks", [Dynamic(), everywhere()], ids=["dynamic", "everywhere"])
def test_without_weight_a_run_is_the_stock_one_bit_for_bit(curve, masks):
    levels = 1000 if curve == "quadratic" else None
    schedule = Concave(k=np.zeros(1, np.float32), masks=masks, curve=curve, levels=levels, **STABLE)
    stock, ours = (jax.device_get(exactly(schedule, X)) for schedule in (Synchronous(GRID), schedule))
    grid = np.asarray(GRID)
    assert (ours[0].times.level == grid[-1]).all()
    np.testing.assert_array_equal(ours[0].x, stock[0].x)
    for t, level in zip(grid, ours[1][0].level, strict=False):
        assert (level == t).all()


@pytest.mark.parametrize("steps", [1, 7, 28])
def test_unmasked_cells_of_a_flow_follow_the_stock_grid_exactly(steps):
    grid = shifted(steps, 3.0)
    masks = Fixed(jax.device_put(np.zeros((1, 8, 8, 1), np.float32)))
    schedule = Concave(grid, 1.0, masks, (8, 8), shift=3.0)
    ours, stock = run(schedule, solver=Euler(RectifiedFlow())), run(Synchronous(grid), solver=Euler(RectifiedFlow()))
    np.testing.assert_array_equal(ours[0].x, stock[0].x)
    assert (ours[0].times.level == 0).all()


@pytest.mark.parametrize("curve", ["quadratic", "exponential", "piecewise", "extreme"])
def test_masked_everywhere_is_the_stock_sampler_on_the_curve(curve):
    with jax.enable_x64(True):
        path = chain(curve, 0.7, lambda j: True)
    expected = (np.r_[path, 0.0] + 1) / 1000
    end, (times, *_) = run(Concave(k=0.7, masks=everywhere(), curve=curve, **STABLE))
    levels = np.r_[np.asarray(times.level)[:, 0].reshape(-1), np.asarray(end.times.level)[0].reshape(-1)]
    np.testing.assert_allclose(levels, expected, rtol=0, atol=2e-7)
    stock, _ = run(Synchronous(jax.device_put(levels)))
    np.testing.assert_array_equal(end.x, stock.x)


def test_a_shifted_curve_runs_in_the_index_before_the_shift():
    n, a = 10, 3.0
    end, (times, *_) = run(Concave(shifted(n, a), 0.6, everywhere(), (8, 8), shift=a))
    u = [1 - i / n + 0.6 * (n - i) * i / n**2 for i in range(n + 1)]
    levels = np.r_[np.asarray(times.level)[:, 0].reshape(-1), np.asarray(end.times.level)[0].reshape(-1)]
    np.testing.assert_allclose(levels, [a * v / (1 + (a - 1) * v) for v in u], atol=1e-6)


@pytest.mark.parametrize("curve", curves.CURVES)
def test_a_run_ends_at_the_end_of_its_grid(curve):
    for grid, options in ((shifted(7, 3.0), {"shift": 3.0}), (GRID, {"head_start": True})):
        end, _ = run(Concave(grid, np.float32([0.7]), Dynamic(), (8, 8), curve=curve, **options))
        assert (end.times.level == np.asarray(grid)[-1]).all()


def plain_loop(schedule, seen, curve, k, n=STEPS, cells=(8, 8)):
    """Indices of a dynamic run [n + 1, b, gh, gw] by a loop over steps, cells and objects, from the maps it saw."""
    batch, objects = seen.shape[1], seen.shape[-1]
    t = np.full((batch, *cells), 1001.0)
    winner = np.full((batch, *cells), int(np.argmax(k)))
    path = []
    for j in range(n + 1):
        r = n - j
        for index in np.ndindex(t.shape):
            weight = 0.0 if winner[index] < 0 else k[winner[index]]
            t[index] = 0.0 if r == 0 else written_out(curve, t[index], r, weight, n)
        path.append(t.copy())
        if j == 0:
            continue
        for b in range(batch):
            masks = [seen[j - 1, b, :, :, o] >= seen[j - 1, b, :, :, o].mean() for o in range(objects)]
            for y, x in np.ndindex(cells):
                inside = [o for o in range(objects) if masks[o][y * 2 // cells[0], x * 2 // cells[1]]]
                winner[b, y, x] = max(inside, key=lambda o: (k[o], -o)) if inside else -1
    return np.stack(path)


@pytest.mark.parametrize(
    ("curve", "k"), [("quadratic", [0.7]), ("quadratic", [0.3, 0.7, 0.5]), ("exponential", [0.7, 0.2])]
)
def test_dynamic_masks_against_a_plain_loop(curve, k):
    denoise = looking(maps(objects=len(k)))
    schedule = Concave(k=np.float32(k), masks=Dynamic(), curve=curve, **STABLE)
    end, (times, seen, _) = run(schedule, denoise=denoise)
    expected = plain_loop(schedule, seen, curve, k)
    levels = np.concatenate([times.level, end.times.level[None]])[..., 0]
    np.testing.assert_allclose(indices(levels), expected, rtol=0, atol=2e-3)
    # the case means something: masks differ between images and along the run
    assert not np.array_equal(levels[:, 0], levels[:, 1])
    assert len(np.unique(levels[20, 0])) > 1


def test_a_run_is_the_released_code_s():
    """Times rounded to whole train steps, alpha-bar looked up for each cell, eta 1, a k for each object: in NumPy."""
    k, process = [0.5, 0.7], Discrete()
    given = np.asarray(maps(objects=2), np.float64)

    def denoise(x, times):
        t = timefield.resize(timefield.dense(times.told), x.shape[1:3])
        pred = predict(process, "eps", jnp.sin(x) * t, x, times.level)
        seen = jax.nn.sigmoid(3 * timefield.resize(x[..., :1], (2, 2))) * given.astype(np.float32)
        return pred._replace(aux={"maps": seen})

    schedule = Concave(k=np.float32(k), masks=Dynamic(), levels=1000, **STABLE)
    end, _ = run(schedule, solver=DDPM(process), denoise=denoise)

    bars = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)

    @jax.jit
    @jax.vmap
    def noises(i):
        keys = keys_lib.per_image(jax.random.key(0), 2)
        return keys_lib.normal(keys_lib.split(keys_lib.fold_in(keys, loop._STEP + i), 2)[1], SHAPE)

    x, noise = np.asarray(X, np.float64), np.asarray(noises(np.arange(STEPS)))
    t, winner = np.full((2, 8, 8), 1001.0), np.full((2, 8, 8), 1)

    def moved(t, winner, r):
        after = np.zeros_like(t)
        for index in np.ndindex(t.shape):
            if r > 0:
                weight = 0.0 if winner[index] < 0 else k[winner[index]]
                after[index] = written_out("quadratic", t[index], r, weight, STEPS)
        return after

    t = moved(t, winner, STEPS)
    for i in range(STEPS):
        t_next = moved(t, winner, STEPS - i - 1)
        now, then = (np.round(u).astype(int)[..., None] for u in (t, t_next))
        eps = np.sin(x) * (now + 1) / 1000
        x0 = (x - np.sqrt(1 - bars[now]) * eps) / np.sqrt(bars[now])
        variance = (1 - bars[then]) / (1 - bars[now]) * (1 - bars[now] / bars[then])
        seen = x[..., :1].reshape(2, 2, 4, 2, 4, 1).mean((2, 4))
        seen = given / (1 + np.exp(-3 * seen))
        x = np.sqrt(bars[then]) * x0 + np.sqrt(1 - bars[then] - variance) * eps + np.sqrt(variance) * noise[i]
        masks = seen >= seen.mean((1, 2), keepdims=True)
        rank = np.where(masks, k, -1.0)
        coarse = np.where(masks.any(-1), rank.argmax(-1), -1)
        winner = coarse.repeat(4, 1).repeat(4, 2)
        t = t_next
    np.testing.assert_allclose(end.x, x, rtol=0, atol=2e-3 * np.abs(x).max())


def test_a_cell_that_the_curve_holds_keeps_its_bits():
    mask = np.zeros((2, 8, 8, 1), np.float32)
    mask[0, :4] = mask[1, :, 5:] = 1
    end, (times, _, images) = run(Concave(linear(10), 1.0, Fixed(jax.device_put(mask)), (8, 8), curve="extreme"))
    held = mask > 0
    assert (times.level[:6][:, held] == 1).all()
    assert (np.where(held, images[:6] - images[:1], 0) == 0).all()
    assert (np.where(held, True, images[1] != images[0])).all()
    assert (np.where(held, images[6] != images[5], True)).all()
    assert (end.times.level == 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_few_times_are_the_same_run(masked):
    mask = np.zeros((2, 8, 8, 1), np.float32)
    mask[0, :4] = mask[1, :, 2:] = 1
    mask = jax.device_put(mask) if masked else None
    few = Concave(k=0.7, masks=Dynamic(), mask=mask, **STABLE)
    dense = few.replace(k=np.float32([0.7]))
    assert few.distinct == STEPS + 1 + (mask is not None)
    assert dense.distinct is None
    (end, (times, *_)), (end_dense, (times_dense, *_)) = run(few), run(dense)
    assert isinstance(times.told, FewTimes)
    assert times.told.values.shape[-1] == few.distinct
    np.testing.assert_allclose(times.level, times_dense.level, rtol=0, atol=3e-7)
    np.testing.assert_allclose(end.x, end_dense.x, rtol=1e-3, atol=1e-4)
    # and no index leaves the table, the jump at the end included
    error, _ = checkify.checkify(lambda s: traced(s), errors=checkify.user_checks)(few)
    error.throw()


def test_fixed_masks_are_a_value_an_object():
    masks = np.zeros((2, 16, 16, 2), np.float32)
    masks[0, :8, :, 0] = masks[:, 4:12, 8:, 1] = 1
    schedule = Concave(k=np.float32([0.4, 0.7]), masks=Fixed(jax.device_put(masks)), **STABLE)
    assert schedule.distinct == 3
    _, (times, *_) = run(schedule)
    assert times.told.values.shape[-1] == 3
    with jax.enable_x64(True):
        paths = [chain("quadratic", k, lambda j: True) for k in (0.0, 0.4, 0.7)]
    owner = np.zeros((2, 8, 8), int)
    owner[0, :4] = 1
    owner[:, 2:6, 4:] = 2  # the higher k wins where the two overlap
    for j in (0, 20, 49):
        expected = np.asarray([path[j] for path in paths])[owner]
        np.testing.assert_allclose(indices(times.level[j][..., 0]), expected, rtol=0, atol=1e-3)


def test_k_may_differ_from_image_to_image():
    schedule = Concave(k=np.float32([[0.7, 0.0], [0.0, 0.2]]), masks=Dynamic(), **STABLE)
    denoise = looking(maps(objects=2))
    _, (times, *_) = run(schedule, denoise=denoise)
    first = indices(times.level[0])
    np.testing.assert_allclose(first[0], 994.72, atol=1e-3)
    np.testing.assert_allclose(first[1], 981 + 0.2 * 19.6, atol=1e-3)


def test_times_are_rounded_to_train_steps_on_request():
    schedule = Concave(k=0.7, masks=everywhere(), **STABLE)
    _, (times, *_) = run(schedule)
    _, (rounded, *_) = run(schedule.replace(levels=1000))
    expected = np.round(indices(times.level))
    np.testing.assert_allclose(indices(rounded.level), expected, atol=1e-4)
    assert (expected != indices(times.level)).any()


# ------------------------------------------------------------------------------------- one program, and its errors
@pytest.mark.parametrize("k", [0.7, [0.3, 0.7]])
def test_dynamic_masks_live_inside_one_scan(k):
    k = np.float32(k)
    schedule = Concave(k=k, masks=Dynamic(), **STABLE)
    denoise = looking(maps(objects=max(k.size, 1)))
    text = traced.lower(schedule, denoise=denoise).compile().as_text()
    assert text.count('"known_trip_count":{"n":"50"}') == 1
    assert not any(word in text for word in ("callback", "infeed", "outfeed", " send(", " recv("))
    jaxpr = str(jax.make_jaxpr(lambda s: traced(s, denoise=denoise))(schedule))
    assert jaxpr.count("scan[") == jaxpr.count("length=50") == 1
    assert "callback" not in jaxpr


def test_new_values_compile_nothing():
    traces = []

    @jax.jit
    def go(schedule):
        traces.append(1)
        return sample(LOOKING, FLOW, schedule, jax.random.key(0), X, num_steps=50)[0].x

    first = Concave(k=0.7, masks=Dynamic(), **STABLE)
    results = [go(first), go(first.replace(k=0.3)), go(first.replace(masks=Dynamic(0.0)))]
    results.append(go(first.replace(grid=np.asarray(GRID) * np.float32(0.99))))
    assert len(traces) == 1
    assert all(not np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("curve", ["quadratic", "exponential", "piecewise", "extreme"])
@pytest.mark.parametrize("steps", [50, 200, 500])
def test_a_k_that_passes_the_last_train_step_is_refused(curve, steps):
    first = 1 + 1000 - 1000 // steps
    grid = (np.r_[np.arange(first, 0, -1000 // steps), 0] + 1) / 1000
    settings = {"grid": grid, "masks": everywhere(), "cells": (8, 8), "curve": curve}
    # where the first move leads, by bisection
    low, high = 0.0, 1.0
    for _ in range(60):
        most = 0.5 * (low + high)
        low, high = (most, high) if written_out(curve, 1001.0, steps, most, steps) <= 999 else (low, most)
    Concave(k=np.floor(1e4 * most) / 1e4, head_start=True, **settings)
    if most < 0.999:
        with pytest.raises(ValueError, match=rf"expected 0 <= k <= {np.floor(1e4 * most + 1e-6) / 1e4:g} "):
            Concave(k=most + 1e-3, head_start=True, **settings)
    with pytest.raises(ValueError, match="expected 0 <= k"):
        Concave(k=[0.1, -0.1], **settings)
    with pytest.raises(ValueError, match="expected 0 <= k <= 1 "):
        Concave(k=1.1, **settings)
    # without a head start nothing lies above the first time
    Concave(k=1.0, **settings)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="expected a curve out of linear, quadratic"):
        Concave(k=0.5, masks=Dynamic(), curve="cubic", **STABLE)
    with pytest.raises(ValueError, match="expected a text time out of masked"):
        Concave(k=0.5, masks=Dynamic(), text_time="median", **STABLE)
    with pytest.raises(ValueError, match="expected a grid of times that falls"):
        Concave(GRID[::-1], 0.5, Dynamic(), (8, 8))
    with pytest.raises(ValueError, match="expected a grid of times"):
        Concave(jnp.ones((3, 2)), 0.5, Dynamic(), (8, 8))
    with pytest.raises(ValueError, match=r"expected k as \[\]"):
        Concave(k=jnp.zeros((1, 1, 1)), masks=Dynamic(), **STABLE)
    with pytest.raises(ValueError, match=r"expected the first of 2 objects, got 0 to 2"):
        Concave(k=jnp.zeros(2), masks=Dynamic(), first=np.array([0, 2]), **STABLE)
    with pytest.raises(ValueError, match="expected a mask or a strength"):
        Concave(k=0.5, masks=Dynamic(), mask=jnp.ones((1, 8, 8, 1)), strength=jnp.ones((1, 8, 8, 1)), **STABLE)

    def blind(x, times):
        return Prediction(x, x, {"log_variance": x})

    def go(schedule, denoise, num_steps=STEPS):
        jax.eval_shape(lambda x: sample(denoise, FLOW, schedule, jax.random.key(0), x, num_steps=num_steps), X)

    with pytest.raises(ValueError, match=r'aux\["maps"\].* names the objects in `spans`\), got \[.log_variance.\]'):
        go(Concave(k=0.5, masks=Dynamic(), **STABLE), blind)
    with pytest.raises(ValueError, match="expected attention maps of 2 objects, one for each k, got 1"):
        go(Concave(k=jnp.asarray([0.5, 0.3]), masks=Dynamic(), **STABLE), looking(maps()))
    with pytest.raises(ValueError, match=r"expected masks \[b, gh, gw, 2\]"):
        go(Concave(k=jnp.asarray([0.5, 0.3]), masks=everywhere(), **STABLE), blind)
    with pytest.raises(ValueError, match="expected grids of which one refines the other"):
        go(Concave(k=0.5, masks=Dynamic(), mask=jnp.ones((1, 3, 3, 1)), **STABLE), looking(maps()))
    with pytest.raises(ValueError, match="expected num_steps = 50"):
        go(Concave(k=0.5, masks=Dynamic(), **STABLE), blind, num_steps=9)
