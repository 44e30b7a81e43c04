"""Which cells a concave schedule slows down or keeps, and what time it tells the text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.process import Discrete, RectifiedFlow
from asyncpatch_jax.sampling import (
    DDPM,
    Concave,
    Dynamic,
    Fixed,
    classifier_free,
    everywhere,
    from_maps,
    linear,
    shifted,
    start,
    two_calls,
)
from asyncpatch_jax.sampling.schedules.masks import disjoint, nearest, thresholded
from tests import drawn
from tests.test_concave import GRID, SHAPE, STABLE, X, looking, maps, run

KNOWN = drawn.normal(2, *SHAPE, seed=2)


def test_masks_of_maps():
    a = jax.device_put(np.full((1, 2, 2, 1), 0.1, np.float32))
    assert thresholded(a).all()  # an even map is all of the object, whatever its rounded mean
    a = jax.device_put(np.float32([0.0, 1.0, 2.0, 3.0]).reshape(1, 2, 2, 1))
    assert thresholded(a).reshape(-1).tolist() == [False, False, True, True]
    assert thresholded(a, 0.5).reshape(-1).tolist() == [False, True, True, True]
    assert (from_maps(a).mask == thresholded(a)).all()
    fine = np.asarray(nearest(thresholded(a), (4, 6)))
    assert fine.shape == (1, 4, 6, 1)
    assert fine[0, :, 0, 0].tolist() == [False, False, True, True]


def test_overlaps_go_to_the_highest_k_and_ties_to_the_first():
    masks = jnp.asarray([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])
    won = disjoint(masks.reshape(1, 4, 1, 3), jnp.asarray([[0.3, 0.7, 0.3]])).reshape(4, 3)
    assert won.astype(int).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_the_maps_are_those_of_the_conditional_half():
    @jax.jit
    def both(x):
        cond, uncond = looking(maps(seed=0)), looking(maps(seed=1))
        schedule = Concave(k=0.7, masks=Dynamic(), **STABLE)
        times, _ = schedule.init(keys_lib.per_image(jax.random.key(0), 2), x)
        guided = classifier_free(two_calls(cond, uncond), 3.0)(x, times)
        return guided.aux["maps"], cond(x, times).aux["maps"], uncond(x, times).aux["maps"]

    guided, cond, uncond = jax.device_get(both(X))
    np.testing.assert_array_equal(guided, cond)
    assert not np.allclose(guided, uncond)


# --------------------------------------------------------------------------------------------------- known regions
@pytest.mark.parametrize("masks", [Dynamic(), everywhere()], ids=["dynamic", "everywhere"])
@pytest.mark.parametrize("cells", [(8, 8), (4, 4)])
def test_known_cells_come_back_bit_for_bit(masks, cells):
    process, known = Discrete(), np.asarray(KNOWN)
    mask = np.zeros((2, 8, 8, 1), np.float32)
    mask[0, 3:, :5] = mask[1, 1::2] = 1
    schedule = Concave(GRID, np.float32([0.7]), masks, cells, head_start=True, mask=jax.device_put(mask))
    x = jax.jit(lambda schedule, known: start(process, schedule, jax.random.key(0), known))(schedule, KNOWN)
    end, (times, *_) = run(schedule, solver=DDPM(process), x=x)
    assert (np.where(mask > 0, 0.0, end.x - known) == 0).all()
    assert (times.level[:, mask == 0] == 0).all()
    assert (times.level[:, mask > 0] > 0).all()
    assert (np.where(mask > 0, end.x != known, True)).all()


def test_strengths_wait_until_the_run_comes_down_to_them():
    process, known = RectifiedFlow(), np.asarray(KNOWN)
    strength = np.zeros((2, 8, 8, 1), np.float32)
    strength[0, 2:], strength[1, :, 4:] = 0.5, 0.8
    schedule = Concave(linear(10), 0.6, Dynamic(), (8, 8)).replace(strength=jax.device_put(strength))
    x = jax.jit(lambda schedule, known: start(process, schedule, jax.random.key(0), known))(schedule, KNOWN)
    end, (times, _, images) = run(schedule, x=x)
    assert (times.level <= strength[None]).all()
    held = np.broadcast_to(times.level[1:] == strength[None], times.level[1:].shape)
    assert (np.where(held, images[1:] - images[:-1], 0) == 0).all()
    assert held.any()
    assert (end.times.level == 0).all()
    assert (np.where(strength == 0, end.x - known, 0) == 0).all()


# ------------------------------------------------------------------------------------------------------- text time
@pytest.mark.parametrize(
    ("text_time", "reduce"),
    [("masked", np.mean), ("mean", np.mean), ("max", np.max), ("min", np.min), ("reference", None)],
)
def test_text_is_told_a_time(text_time, reduce):
    mask, slowed = np.ones((1, 8, 8, 1), np.float32), np.zeros((2, 8, 8, 1), np.float32)
    mask[:, :2], slowed[0, :4] = 0, 1
    masks, grid = Fixed(jax.device_put(slowed)), shifted(10, 3.0)
    schedule = Concave(grid, 0.6, masks, (8, 8), shift=3.0, text_time=text_time, mask=jax.device_put(mask))
    _, (times, *_) = run(schedule)
    grid = np.asarray(grid)
    for j in (0, 1, 4, 9):
        for b in range(2):
            level = np.asarray(times.level[j, b, :, :, 0], np.float64)
            where = mask[0, :, :, 0] > 0
            if text_time == "masked":
                where = where & (slowed[b, :, :, 0] > 0)
            expected = reduce(level[where]) if reduce and where.any() else grid[j]
            assert float(times.text[j, b]) == pytest.approx(expected, abs=1e-6)
    assert (times.text[0] == 1).all()


def test_the_text_of_a_constant_field_is_told_exactly_its_time():
    _, (times, *_) = run(Concave(shifted(9, 3.0), 0.6, everywhere(), (8, 8), shift=3.0, text_time="masked"))
    np.testing.assert_array_equal(times.text, times.level.reshape(9, 2))
