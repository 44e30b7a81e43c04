"""Time fields: resizing keeps what it must, and what is no field is refused."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify

from asyncpatch_jax import timefield
from asyncpatch_jax.types import FewTimes
from tests import drawn

SIZES, FEW = st.sampled_from([1, 2, 3, 4, 6, 8]), st.sampled_from([1, 2, 3])
EXAMPLES = settings(max_examples=15, deadline=None)
# one program an example: its grids are new, and an operation alone compiles about as long as all of them together
resize = jax.jit(timefield.resize, static_argnums=(1, 2))
like, dense = jax.jit(timefield.like), jax.jit(timefield.dense)


@jax.jit
def changed(t, where):
    return timefield.changed(t, where, jnp.sqrt)


def draw(seed, grid, batch=2):
    return drawn.uniform(batch, *grid, 1, seed=seed)


@EXAMPLES
@given(st.integers(0, 99), SIZES, SIZES, SIZES, SIZES)
def test_resizing_keeps_the_mean_and_the_range(seed, gh, gw, oh, ow):
    t = draw(seed, (gh, gw))
    out, t = np.asarray(resize(t, (oh, ow))), np.asarray(t)
    assert out.shape == (2, 1 if gh == 1 else oh, 1 if gw == 1 else ow, 1)
    np.testing.assert_allclose(out.mean((1, 2)), t.mean((1, 2)), rtol=1e-5)
    assert out.min() >= t.min() - 1e-6
    assert out.max() <= t.max() + 1e-6


@EXAMPLES
@given(st.floats(0, 1, width=32, allow_subnormal=False), SIZES, SIZES, SIZES, SIZES)
def test_a_constant_field_stays_so_bit_for_bit(value, gh, gw, oh, ow):
    out = resize(np.full((1, gh, gw, 1), value, np.float32), (oh, ow))
    assert (np.asarray(out) == np.float32(value)).all()


@EXAMPLES
@given(st.integers(0, 99), FEW, FEW, SIZES, SIZES)
def test_the_maximum_is_that_of_each_cell(seed, sh, sw, oh, ow):
    t = draw(seed, (oh * sh, ow * sw))
    out = np.asarray(resize(t, (oh, ow), "max"))
    cells = np.asarray(t).reshape(2, oh, sh, ow, sw, 1).max((2, 4))
    assert (out == (cells if out.shape == cells.shape else cells.max())).all()


@EXAMPLES
@given(st.integers(0, 99), FEW, FEW, FEW, FEW)
def test_a_finer_grid_repeats_and_coming_back_is_exact(seed, gh, gw, sh, sw):
    t = draw(seed, (gh, gw))
    x = np.zeros((2, gh * sh, gw * sw, 3), np.float32)
    fine, t = like(t, x), np.asarray(t)
    assert (np.broadcast_to(fine, (*x.shape[:3], 1)) == t.repeat(sh, 1).repeat(sw, 2)).all()
    assert (np.asarray(resize(fine, (gh, gw))) == t).all()


@EXAMPLES
@given(SIZES, SIZES, SIZES, SIZES)
def test_only_grids_that_tile_the_image_fit(gh, gw, h, w):
    t, x = draw(0, (gh, gw)), jax.device_put(np.zeros((2, h, w, 1), np.float32))
    if h % gh == 0 and w % gw == 0:
        assert like(t, x).shape == (2, 1 if gh == 1 else h, 1 if gw == 1 else w, 1)
    else:
        with pytest.raises(ValueError, match="expected a field whose grid tiles"):
            timefield.like(t, x)


def test_a_coarser_field_is_not_refined_by_coarsen():
    assert timefield.coarsen(draw(0, (2, 8)), (4, 4)).shape == (2, 2, 4, 1)


def test_scalars_are_lifted_in_one_place():
    assert (timefield.constant(0.3, 3) == np.float32(0.3)).all()
    assert timefield.constant(0.3, 3).shape == (3, 1, 1, 1)
    assert timefield.constant(jnp.asarray([0.1, 0.2]), 2).reshape(-1).tolist() == pytest.approx([0.1, 0.2])
    with pytest.raises(ValueError, match=r"expected a scalar or \[3\] times"):
        timefield.constant(jnp.ones(2), 3)


def test_the_noisy_mean_leaves_out_clean_cells():
    t = np.array([[0.0, 0.25, 0.75, 0.0], [0.0, 0.0, 0.0, 0.0], [0.3, 0.3, 0.3, 0.3]], np.float32).reshape(3, 2, 2, 1)
    assert np.asarray(jax.jit(timefield.noisy_mean)(t)).tolist() == [0.5, 0.0, np.float32(0.3)]


def test_what_is_no_field_is_refused():
    for wrong in (jnp.zeros((3, 2, 2, 1)), jnp.zeros((2, 2, 2, 3))):
        with pytest.raises(ValueError, match=r"expected a time field \[2, gh, gw, 1\]"):
            inspect.unwrap(timefield.check)(wrong, 2)  # without the tests' own shape checks
    with pytest.raises(ValueError, match="expected a float32 time field"):
        timefield.check(jnp.zeros((2, 1, 1, 1), jnp.bfloat16), 2)
    with pytest.raises(ValueError, match="a maximum needs whole cells"):
        timefield.resize(draw(0, (4, 4)), (3, 3), "max")


def test_a_field_of_few_times_is_that_field():
    values, index = np.asarray(draw(0, (1, 3)))[:, 0, :, 0], np.int32([[2, 0], [1, 1]]).reshape(1, 2, 2, 1)
    t = timefield.few(jax.device_put(values), jax.device_put(index))
    written = dense(t)
    assert (np.asarray(written)[..., 0] == values[:, index[0, :, :, 0]]).all()
    x = np.zeros((2, 4, 6, 3), np.float32)
    np.testing.assert_array_equal(like(t, x), like(written, x))
    np.testing.assert_array_equal(
        jax.jit(lambda t: timefield.dense(timefield.as_few(t)))(draw(0, (1, 1))), draw(0, (1, 1))
    )
    assert timefield.as_few(draw(0, (2, 1))) is None


@EXAMPLES
@given(st.integers(0, 99), SIZES, SIZES, SIZES, SIZES)
def test_times_change_where_a_mask_says_so(seed, gh, gw, mh, mw):
    t, where = (np.asarray(draw(*one)) > 0.5 for one in ((seed, (gh, gw)), (seed + 1, (mh, mw))))
    values, where = np.asarray(draw(seed, (1, 2)))[:, 0, :, 0], jax.device_put(where)
    few = jax.device_put(FewTimes(values, t.astype(np.int8)))
    if any(max(n, m) % min(n, m) for n, m in ((gh, mh), (gw, mw))):
        with pytest.raises(ValueError, match="one refines the other"):
            timefield.changed(few, where, jnp.sqrt)
        return
    grid = (max(gh, mh), max(gw, mw))
    written = dense(few)
    fine, chosen = (np.asarray(resize(part, grid)) for part in (written, where))
    expected = np.where(chosen, np.sqrt(fine), fine)
    for t in (few, written):
        np.testing.assert_allclose(dense(changed(t, where)), expected, rtol=1e-6)


def test_an_index_outside_is_an_error_in_debug_and_the_nearest_elsewhere():
    def f(index):
        return timefield.dense(timefield.few(jnp.asarray([[0.25, 0.5]]), index)).reshape(-1)

    index = jnp.asarray([-3, 0, 1, 7]).reshape(1, 2, 2, 1)
    assert jax.jit(f)(index).tolist() == [0.25, 0.25, 0.5, 0.5]
    error, _ = checkify.checkify(jax.jit(f))(index)
    assert "expected an index in 0 ... 1, got -3 to 7" in error.get()
    error, _ = checkify.checkify(jax.jit(f))(jnp.clip(index, 0, 1))
    assert error.get() is None


@pytest.mark.parametrize(
    ("values", "index", "message"),
    [
        (jnp.zeros(2), jnp.zeros((1, 2, 2, 1), int), r"values of a field as \[b, k\]"),
        (jnp.zeros((1, 2), jnp.bfloat16), jnp.zeros((1, 2, 2, 1), int), "expected float32 times"),
        (jnp.zeros((1, 2)), jnp.zeros((1, 2, 2, 1)), "as integers"),
        (jnp.zeros((1, 2)), jnp.zeros((1, 2, 2), int), "as integers"),
        (jnp.zeros((3, 2)), jnp.zeros((2, 2, 2, 1), int), "of one batch"),
    ],
)
def test_what_is_no_field_of_few_times_is_refused(values, index, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(timefield.assembled)(values, index)


def test_a_field_of_few_times_of_another_batch_is_refused():
    with pytest.raises(ValueError, match="expected a time field of 3 images"):
        timefield.check(timefield.few(jnp.zeros((2, 2)), jnp.zeros((1, 2, 2, 1), int)), 3)


def test_a_mask_is_a_field_and_a_cell_with_any_unknown_pixel_is_unknown():
    mask = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0].set(1.0)
    assert timefield.from_mask(mask, 0.7)[0, 0, 0, 0] == np.float32(0.7)
    assert timefield.from_mask(mask, 0.7).sum() == pytest.approx(0.7)
    coarse = timefield.from_mask(mask, 0.7, known=0.1, grid=(2, 2))
    np.testing.assert_allclose(coarse[0, :, :, 0], [[0.7, 0.1], [0.1, 0.1]], rtol=1e-6)
