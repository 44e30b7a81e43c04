"""Concave, mask-guided schedules (AsynDM) against the paper's numbers, plain loops, and the stock samplers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import timefield
from asyncpatch_jax.process import Discrete, RectifiedFlow
from asyncpatch_jax.sampling import (
    DDIM,
    DDPM,
    Concave,
    Dynamic,
    Euler,
    Fixed,
    Synchronous,
    classifier_free,
    everywhere,
    from_maps,
    linear,
    sample,
    shifted,
    start,
    two_calls,
)
from asyncpatch_jax.sampling.schedules import curves
from asyncpatch_jax.sampling.schedules.masks import disjoint, nearest, thresholded
from asyncpatch_jax.types import FewTimes, Prediction

STEPS = 50
# Stable Diffusion's "leading" grid: 981 ... 1 of 1000 train steps, and the level 0 at the end
GRID = jnp.asarray((np.r_[np.arange(981, 0, -20), 0] + 1) / 1000, jnp.float32)
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
    return jax.random.uniform(jax.random.key(seed), (batch, *grid, objects))


FLOW, LOOKING = DDIM(RectifiedFlow()), looking(maps())


@functools.partial(jax.jit, static_argnames=("solver", "denoise"))
def run(schedule, solver=FLOW, denoise=LOOKING, x=None):
    """The last state, and times, predictions' masks and images of each step."""
    x = jax.random.normal(jax.random.key(1), (2, *SHAPE)) if x is None else x
    return sample(
        denoise,
        solver,
        schedule,
        jax.random.key(0),
        x,
        num_steps=schedule.num_steps,
        trace=lambda state, pred: (state.times, pred.aux["maps"], state.x),
    )


def indices(levels):
    """The index in Stable Diffusion's units at which each cell is evaluated."""
    return np.asarray(levels, np.float64) * 1000 - 1


# ------------------------------------------------------------------------------------------------------ the curves
def written_out(curve, t, r, k, n, train=1000.0, s=1.0):
    """The next index as METHODS states it, in NumPy."""
    d = train / n
    if curve == "linear" or k == 0:
        return t - (t - s) / r
    if curve == "quadratic":
        return t - (t - s) / r + k * train / n**2 * (r - 1)
    if curve == "exponential":
        return t - (1 - k) * d - (t - s - (1 - k) * d * r) * np.expm1(1 / n) / np.expm1(r / n)
    c = {"piecewise": 0.5, "extreme": 1.0}[curve]
    return min(t - (1 - c * k) * d, s + (1 + c * k) * d * (r - 1))


def shifted_curve(curve, t, r, n, train=1000.0, s=1.0):
    """One step down the paper's concave function f(i), shifted sideways and down so as to run from (i, t) to (n, s)."""
    x = np.float64(n)
    if curve == "quadratic":

        def f(i):
            return -train * i**2 / x**2

    elif curve == "exponential":

        def f(i):
            return -train * np.expm1(i / x) / np.expm1(1.0)

    low, high = -1e3, 1e3
    for _ in range(200):  # the sideways shift at which the curve falls by t - s within r steps: the fall grows with it
        middle = 0.5 * (low + high)
        low, high = (middle, high) if f(middle) - f(middle + r) < t - s else (low, middle)
    return t + f(low + 1) - f(low)


@pytest.mark.parametrize("curve", curves.CURVES)
@pytest.mark.parametrize("k", [0.0, 0.3, 0.7])
def test_moves_are_the_closed_forms(curve, k):
    n, rng = 50, np.random.default_rng(0)
    with jax.enable_x64(True):
        for r in range(1, n + 1):
            excess = rng.uniform(0, 0.4 * r)
            after = curves.move(curve, jnp.float64(excess), jnp.float64(r), jnp.float64(k), n)
            assert after.dtype == jnp.float64
            expected = written_out(curve, 1 + 20 * (r + excess), r, k, n)
            np.testing.assert_allclose(1 + 20 * (r - 1 + float(after)), expected, rtol=0, atol=1e-9)
            assert r > 1 or after == 0


@pytest.mark.parametrize("curve", ["quadratic", "exponential"])
def test_moves_are_those_of_the_shifted_concave_function(curve):
    with jax.enable_x64(True):
        for r, excess in [(50, 0.0), (40, 3.0), (30, 9.0), (7, 2.5), (2, 0.4)]:
            after = curves.move(curve, jnp.float64(excess), jnp.float64(r), jnp.float64(1), 50)
            expected = shifted_curve(curve, 1 + 20 * (r + excess), r, 50)
            np.testing.assert_allclose(1 + 20 * (r - 1 + float(after)), expected, rtol=0, atol=1e-8)


def chain(curve, k, masked, n=50):
    """Indices of a run in float64 whose moves j are masked or not, the head start first."""
    excess, path = jnp.float64(0), []
    for j in range(n):
        excess = curves.move(curve, excess, jnp.float64(n - j), jnp.float64(k * masked(j)), n)
        path.append(1 + 20 * (n - j - 1 + float(excess)))
    return path


def test_the_vectors_of_a_whole_run():
    with jax.enable_x64(True):
        path = chain("quadratic", 0.7, lambda j: True)
        np.testing.assert_allclose(path[:4] + path[-3:], [994.72, 987.88, 980.48, 972.52, 67.88, 34.72, 1], atol=1e-9)
        assert path == pytest.approx([1 + (50 - i) * (20 + 0.4 * 0.7 * i) for i in range(1, 51)], abs=1e-9)
        path = chain("quadratic", 0.7, lambda j: j >= 20)
        np.testing.assert_allclose(path[19:23] + path[-2:], [601, 589.12, 576.68, 563.68, 29.12, 1], atol=1e-9)
        path = chain("exponential", 0.7, lambda j: True)
        np.testing.assert_allclose(path[:2] + path[-2:], [986.7703, 972.3744, 28.9277, 1], atol=1e-4)
        extreme = [min(1001.0, 2001.0 - 40.0 * i) for i in range(1, 51)]
        np.testing.assert_allclose(chain("extreme", 1.0, lambda j: True), extreme, atol=1e-9)


@pytest.mark.parametrize("curve", curves.CURVES)
def test_curves_never_move_up_and_lag_behind_the_background(curve):
    for mask_from in (0, 10, 30):
        with jax.enable_x64(True):
            path = np.asarray(chain(curve, 1.0, lambda j, start=mask_from: j >= start))
        assert (np.diff(path) <= 1e-9).all()
        assert (path >= 1001 - 20 * np.arange(1, 51) - 1e-9).all()


# --------------------------------------------------------------------------------------------- runs of the sampler
@pytest.mark.parametrize("curve", curves.CURVES)
@pytest.mark.parametrize("masks", [Dynamic(), everywhere()], ids=["dynamic", "everywhere"])
def test_without_weight_a_run_is_the_stock_one_bit_for_bit(curve, masks):
    schedule = Concave(k=jnp.zeros(1), masks=masks, curve=curve, **STABLE)
    stock = run(Synchronous(GRID), solver=DDPM(Discrete()))
    ours = run(schedule, solver=DDPM(Discrete()))
    assert (ours[0].times.level == GRID[-1]).all()
    np.testing.assert_array_equal(ours[0].x, stock[0].x)
    for t, level in zip(GRID, ours[1][0].level, strict=False):
        assert (level == t).all()


@pytest.mark.parametrize("steps", [1, 7, 28])
def test_unmasked_cells_of_a_flow_follow_the_stock_grid_exactly(steps):
    grid = shifted(steps, 3.0)
    masks = Fixed(jnp.zeros((1, 8, 8, 1)))
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
    stock, _ = run(Synchronous(jnp.asarray(levels)))
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
        end, _ = run(Concave(grid, jnp.asarray([0.7]), Dynamic(), (8, 8), curve=curve, **options))
        assert (end.times.level == grid[-1]).all()


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
    schedule = Concave(k=jnp.asarray(k), masks=Dynamic(), curve=curve, **STABLE)
    end, (times, seen, _) = run(schedule, denoise=denoise)
    expected = plain_loop(schedule, np.asarray(seen), curve, k)
    levels = np.concatenate([times.level, end.times.level[None]])[..., 0]
    np.testing.assert_allclose(indices(levels), expected, rtol=0, atol=2e-3)
    # the case means something: masks differ between images and along the run
    assert not np.array_equal(levels[:, 0], levels[:, 1])
    assert len(np.unique(levels[20, 0])) > 1


@pytest.mark.parametrize("mask", [None, jnp.zeros((2, 8, 8, 1)).at[0, :4].set(1.0).at[1, :, 2:].set(1.0)])
def test_few_times_are_the_same_run(mask):
    few = Concave(k=0.7, masks=Dynamic(), mask=mask, **STABLE)
    dense = few.replace(k=jnp.asarray([0.7]))
    assert few.distinct == STEPS + 1 + (mask is not None)
    assert dense.distinct is None
    (end, (times, *_)), (end_dense, (times_dense, *_)) = run(few), run(dense)
    assert isinstance(times.told, FewTimes)
    assert times.told.values.shape[-1] == few.distinct
    np.testing.assert_allclose(times.level, times_dense.level, rtol=0, atol=3e-7)
    np.testing.assert_allclose(end.x, end_dense.x, rtol=1e-3, atol=1e-4)
    # and no index leaves the table, the jump at the end included
    error, _ = checkify.checkify(lambda s: run(s), errors=checkify.user_checks)(few)
    error.throw()


def test_fixed_masks_are_a_value_an_object():
    drawn = jnp.zeros((2, 16, 16, 2)).at[0, :8, :, 0].set(1.0).at[:, 4:12, 8:, 1].set(1.0)
    schedule = Concave(k=jnp.asarray([0.4, 0.7]), masks=Fixed(drawn), **STABLE)
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
    schedule = Concave(k=jnp.asarray([[0.7, 0.0], [0.0, 0.2]]), masks=Dynamic(), **STABLE)
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


# ------------------------------------------------------------------------------------------------------- the masks
def test_masks_of_maps():
    a = jnp.asarray([[0.1, 0.1], [0.1, 0.1]]).reshape(1, 2, 2, 1)
    assert thresholded(a).all()  # an even map is all of the object, whatever its rounded mean
    a = jnp.asarray([0.0, 1.0, 2.0, 3.0]).reshape(1, 2, 2, 1)
    assert thresholded(a).reshape(-1).tolist() == [False, False, True, True]
    assert thresholded(a, 0.5).reshape(-1).tolist() == [False, True, True, True]
    assert (from_maps(a).mask == thresholded(a)).all()
    fine = nearest(thresholded(a), (4, 6))
    assert fine.shape == (1, 4, 6, 1)
    assert fine[0, :, 0, 0].tolist() == [False, False, True, True]


def test_overlaps_go_to_the_highest_k_and_ties_to_the_first():
    masks = jnp.asarray([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])
    won = disjoint(masks.reshape(1, 4, 1, 3), jnp.asarray([[0.3, 0.7, 0.3]])).reshape(4, 3)
    assert won.astype(int).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_the_maps_are_those_of_the_conditional_half():
    x = jax.random.normal(jax.random.key(1), (2, *SHAPE))

    def guided(times_seen):
        cond, uncond = looking(maps(seed=0)), looking(maps(seed=1))
        return classifier_free(two_calls(cond, uncond), 3.0)(x, times_seen)

    schedule = Concave(k=0.7, masks=Dynamic(), **STABLE)
    times, _ = schedule.init(keys_lib.per_image(jax.random.key(0), 2), x)
    np.testing.assert_array_equal(guided(times).aux["maps"], looking(maps(seed=0))(x, times).aux["maps"])


# --------------------------------------------------------------------------------------------------- known regions
@pytest.mark.parametrize("masks", [Dynamic(), everywhere()], ids=["dynamic", "everywhere"])
@pytest.mark.parametrize("cells", [(8, 8), (4, 4)])
def test_known_cells_come_back_bit_for_bit(masks, cells):
    process = Discrete()
    known = jax.random.normal(jax.random.key(2), (2, *SHAPE))
    mask = jnp.zeros((2, 8, 8, 1)).at[0, 3:, :5].set(1.0).at[1, 1::2].set(1.0)
    schedule = Concave(GRID, jnp.asarray([0.7]), masks, cells, head_start=True, mask=mask)
    x = start(process, schedule, jax.random.key(0), known)
    end, (times, *_) = run(schedule, solver=DDPM(process), x=x)
    assert (jnp.where(mask > 0, 0.0, end.x - known) == 0).all()
    assert (np.asarray(times.level)[:, np.asarray(mask) == 0] == 0).all()
    assert (np.asarray(times.level)[:, np.asarray(mask) > 0] > 0).all()
    assert (jnp.where(mask > 0, end.x != known, True)).all()


def test_strengths_wait_until_the_run_comes_down_to_them():
    process = RectifiedFlow()
    known = jax.random.normal(jax.random.key(2), (2, *SHAPE))
    strength = jnp.zeros((2, 8, 8, 1)).at[0, 2:].set(0.5).at[1, :, 4:].set(0.8)
    free = Concave(linear(10), 0.6, Dynamic(), (8, 8))
    schedule = free.replace(strength=strength)
    x = start(process, schedule, jax.random.key(0), known)
    end, (times, _, images) = run(schedule, x=x)
    assert (times.level <= strength[None]).all()
    held = np.broadcast_to(times.level[1:] == strength[None], times.level[1:].shape)
    assert (np.where(held, images[1:] - images[:-1], 0) == 0).all()
    assert held.any()
    assert (end.times.level == 0).all()
    assert (jnp.where(strength == 0, end.x - known, 0) == 0).all()


# ------------------------------------------------------------------------------------------------------- text time
@pytest.mark.parametrize(
    ("text_time", "reduce"),
    [("masked", np.mean), ("mean", np.mean), ("max", np.max), ("min", np.min), ("reference", None)],
)
def test_text_is_told_a_time(text_time, reduce):
    mask = jnp.ones((1, 8, 8, 1)).at[:, :2].set(0.0)
    drawn = jnp.zeros((2, 8, 8, 1)).at[0, :4].set(1.0)
    schedule = Concave(shifted(10, 3.0), 0.6, Fixed(drawn), (8, 8), shift=3.0, text_time=text_time, mask=mask)
    _, (times, *_) = run(schedule)
    for j in (0, 1, 4, 9):
        for b in range(2):
            level = np.asarray(times.level[j, b, :, :, 0], np.float64)
            where = np.broadcast_to(np.asarray(mask[0, :, :, 0]) > 0, (8, 8)).copy()
            if text_time == "masked":
                where &= np.asarray(drawn[b, :, :, 0]) > 0
            reference = float(shifted(10, 3.0)[j])
            expected = reduce(level[where]) if reduce and where.any() else reference
            assert float(times.text[j, b]) == pytest.approx(expected, abs=1e-6)
    assert (times.text[0] == 1).all()


def test_the_text_of_a_constant_field_is_told_exactly_its_time():
    _, (times, *_) = run(Concave(shifted(9, 3.0), 0.6, everywhere(), (8, 8), shift=3.0, text_time="masked"))
    np.testing.assert_array_equal(times.text, times.level.reshape(9, 2))


# ------------------------------------------------------------------------------------- one program, and its errors
@pytest.mark.parametrize("k", [0.7, [0.3, 0.7]])
def test_dynamic_masks_live_inside_one_scan(k):
    k = jnp.asarray(k)
    schedule = Concave(k=k, masks=Dynamic(), **STABLE)
    denoise = looking(maps(objects=max(k.size, 1)))
    text = run.lower(schedule, denoise=denoise).compile().as_text()
    assert text.count('"known_trip_count":{"n":"50"}') == 1
    assert not any(word in text for word in ("callback", "infeed", "outfeed", " send(", " recv("))
    jaxpr = str(jax.make_jaxpr(lambda s: run(s, denoise=denoise))(schedule))
    assert jaxpr.count("scan[") == jaxpr.count("length=50") == 1
    assert "callback" not in jaxpr


def test_new_values_compile_nothing():
    traces = []

    @jax.jit
    def go(schedule):
        traces.append(1)
        return sample(LOOKING, FLOW, schedule, jax.random.key(0), jnp.ones((2, *SHAPE)), num_steps=50)[0].x

    first = Concave(k=0.7, masks=Dynamic(), **STABLE)
    results = [go(first), go(first.replace(k=0.3)), go(first.replace(masks=Dynamic(0.0)))]
    results.append(go(first.replace(grid=GRID * 0.99)))
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
    with pytest.raises(ValueError, match="expected a mask or a strength"):
        Concave(k=0.5, masks=Dynamic(), mask=jnp.ones((1, 8, 8, 1)), strength=jnp.ones((1, 8, 8, 1)), **STABLE)

    def blind(x, times):
        return Prediction(x, x, {"log_variance": x})

    x = jnp.ones((2, *SHAPE))

    def go(schedule, denoise):
        sample(denoise, FLOW, schedule, jax.random.key(0), x, num_steps=STEPS)

    with pytest.raises(ValueError, match=r'aux\["maps"\].* names the objects in `spans`\), got \[.log_variance.\]'):
        go(Concave(k=0.5, masks=Dynamic(), **STABLE), blind)
    with pytest.raises(ValueError, match="expected attention maps of 2 objects, one for each k, got 1"):
        go(Concave(k=jnp.asarray([0.5, 0.3]), masks=Dynamic(), **STABLE), looking(maps()))
    with pytest.raises(ValueError, match=r"expected masks \[b, gh, gw, 2\]"):
        go(Concave(k=jnp.asarray([0.5, 0.3]), masks=everywhere(), **STABLE), blind)
    with pytest.raises(ValueError, match="expected grids of which one refines the other"):
        go(Concave(k=0.5, masks=Dynamic(), mask=jnp.ones((1, 3, 3, 1)), **STABLE), looking(maps()))
    with pytest.raises(ValueError, match="expected num_steps = 50"):
        sample(
            blind, DDIM(RectifiedFlow()), Concave(k=0.5, masks=Dynamic(), **STABLE), jax.random.key(0), x, num_steps=9
        )
