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
from tests.test_concave import GRID, SHAPE, STABLE, looking, maps, run


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
