"""Time fields: resizing keeps what it must, and what is no field is refused."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpatch_jax import timefield

SIZES, FEW = st.sampled_from([1, 2, 3, 4, 6, 8]), st.sampled_from([1, 2, 3])
EXAMPLES = settings(max_examples=15, deadline=None)


def draw(seed, grid, batch=2):
    t = np.random.default_rng(seed).uniform(size=(batch, *grid, 1)).astype(np.float32)
    return jnp.asarray(t)


@EXAMPLES
@given(st.integers(0, 99), SIZES, SIZES, SIZES, SIZES)
def test_resizing_keeps_the_mean_and_the_range(seed, gh, gw, oh, ow):
    t = draw(seed, (gh, gw))
    out = timefield.resize(t, (oh, ow))
    assert out.shape == (2, 1 if gh == 1 else oh, 1 if gw == 1 else ow, 1)
    np.testing.assert_allclose(out.mean((1, 2)), t.mean((1, 2)), rtol=1e-5)
    assert out.min() >= t.min() - 1e-6
    assert out.max() <= t.max() + 1e-6


@EXAMPLES
@given(st.floats(0, 1, width=32, allow_subnormal=False), SIZES, SIZES, SIZES, SIZES)
def test_a_constant_field_stays_so_bit_for_bit(value, gh, gw, oh, ow):
    out = timefield.resize(jnp.full((1, gh, gw, 1), value, jnp.float32), (oh, ow))
    assert (out == np.float32(value)).all()


@EXAMPLES
@given(st.integers(0, 99), FEW, FEW, SIZES, SIZES)
def test_the_maximum_is_that_of_each_cell(seed, sh, sw, oh, ow):
    t = draw(seed, (oh * sh, ow * sw))
    out = np.asarray(timefield.resize(t, (oh, ow), "max"))
    cells = np.asarray(t).reshape(2, oh, sh, ow, sw, 1).max((2, 4))
    assert (out == (cells if out.shape == cells.shape else cells.max())).all()


@EXAMPLES
@given(st.integers(0, 99), FEW, FEW, FEW, FEW)
def test_a_finer_grid_repeats_and_coming_back_is_exact(seed, gh, gw, sh, sw):
    t = draw(seed, (gh, gw))
    x = jnp.zeros((2, gh * sh, gw * sw, 3))
    fine = timefield.like(t, x)
    assert (jnp.broadcast_to(fine, (*x.shape[:3], 1)) == jnp.repeat(jnp.repeat(t, sh, 1), sw, 2)).all()
    assert (timefield.resize(fine, (gh, gw)) == t).all()


@EXAMPLES
@given(SIZES, SIZES, SIZES, SIZES)
def test_only_grids_that_tile_the_image_fit(gh, gw, h, w):
    t, x = draw(0, (gh, gw)), jnp.zeros((2, h, w, 1))
    if h % gh == 0 and w % gw == 0:
        assert timefield.like(t, x).shape == (2, 1 if gh == 1 else h, 1 if gw == 1 else w, 1)
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


def test_what_is_no_field_is_refused():
    for wrong in (jnp.zeros((3, 2, 2, 1)), jnp.zeros((2, 2, 2, 3))):
        with pytest.raises(ValueError, match=r"expected a time field \[2, gh, gw, 1\]"):
            inspect.unwrap(timefield.check)(wrong, 2)  # without the tests' own shape checks
    with pytest.raises(ValueError, match="expected a float32 time field"):
        timefield.check(jnp.zeros((2, 1, 1, 1), jnp.bfloat16), 2)
    with pytest.raises(ValueError, match="a maximum needs whole cells"):
        timefield.resize(draw(0, (4, 4)), (3, 3), "max")


def test_a_mask_is_a_field_and_a_cell_with_any_unknown_pixel_is_unknown():
    mask = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0].set(1.0)
    assert timefield.from_mask(mask, 0.7)[0, 0, 0, 0] == np.float32(0.7)
    assert timefield.from_mask(mask, 0.7).sum() == pytest.approx(0.7)
    coarse = timefield.from_mask(mask, 0.7, known=0.1, grid=(2, 2))
    np.testing.assert_allclose(coarse[0, :, :, 0], [[0.7, 0.1], [0.1, 0.1]], rtol=1e-6)
