"""The mechanism behind `expected ..., got ...`: what is known is looked at once, what is traced under `checkify`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify

from asyncpatch_jax import checks, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.process import RectifiedFlow
from asyncpatch_jax.sampling import (
    DDPM,
    Autoregressive,
    Concave,
    ConstantDeviation,
    DualLoop,
    Dynamic,
    Fixed,
    Graded,
    Inpaint,
    SamplerState,
    Synchronous,
    Table,
    UncertaintyGuided,
    classifier_free,
    everywhere,
    input_guidance,
    linear,
    raster,
    repaint,
    two_calls,
)
from asyncpatch_jax.sampling.schedules.base import CLEAN
from asyncpatch_jax.types import Prediction, Times

GRID, MASK = linear(4), jnp.ones((2, 4, 4, 1))
STRUCTS = {
    "synchronous": Synchronous(GRID),
    "table": Table(GRID.reshape(5, 1, 1, 1)),
    "inpaint": Inpaint(MASK, GRID),
    "graded": Graded(MASK, GRID),
    "autoregressive": Autoregressive(jnp.asarray(raster((2, 2))), GRID, 4),
    "uncertainty": UncertaintyGuided(GRID, (2, 2), MASK),
    "dual": DualLoop(GRID, (2, 2), MASK),
    "concave": Concave(GRID, jnp.float32(0.5), everywhere(), (4, 4), shift=jnp.float32(1.0), mask=MASK),
    "deviation": ConstantDeviation(Inpaint(MASK, GRID), jnp.float32(0.4), jnp.float32(1.0)),
    "dynamic": Dynamic(jnp.float32(1.0)),
    "fixed": Fixed(MASK),
    "repaint": repaint(RectifiedFlow(), GRID, MASK, MASK, jump=2, resample=2)[1],
    "path": repaint(RectifiedFlow(), GRID, MASK, MASK, jump=2, resample=2)[0],
}
SCHEDULES = [name for name, struct in STRUCTS.items() if hasattr(struct, "next")]


def net(x, times):
    return Prediction(x, x, {"log_variance": x[..., :1]})


@pytest.mark.parametrize("struct", STRUCTS.values(), ids=STRUCTS)
def test_what_jax_rebuilds_is_not_looked_at(struct, monkeypatch):
    """jit, vmap and tree.map put placeholders, shapes, gradients and batches in an object's place."""

    def read(value):
        raise AssertionError("a value was read")

    leaves, tree = jax.tree.flatten(struct)
    monkeypatch.setattr(checks, "known", read)
    monkeypatch.setattr(checks, "shaped", read)
    for other in (None, object(), jax.ShapeDtypeStruct((), "float32"), 7, "name", jnp.full((3, 1), jnp.nan)):
        rebuilt = jax.tree.unflatten(tree, [other] * len(leaves))
        assert type(rebuilt) is type(struct)
    assert jax.tree.structure(jax.tree.map(jnp.zeros_like, struct)) == tree
    assert jax.tree.structure(jax.eval_shape(lambda s: s, struct)) == tree
    # in as an argument, mapped over, differentiated, and carried by a loop
    assert jax.tree.structure(jax.eval_shape(jax.vmap(lambda s: s), jax.tree.map(lambda a: a[None], struct))) == tree
    total = lambda s: sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(s))  # noqa: E731
    jax.eval_shape(jax.grad(total, allow_int=True), struct)
    jax.eval_shape(lambda s: jax.lax.scan(lambda carry, _: (carry, None), s, None, length=2), struct)
    paths, _ = jax.tree_util.tree_flatten_with_path(struct)
    assert len(paths) == len(leaves)
    assert all(hasattr(struct, path[0].name) for path, _ in paths)


def test_a_changed_copy_is_looked_at_again():
    with pytest.raises(ValueError, match="expected a grid of times that falls"):
        Inpaint(MASK, GRID).replace(grid=GRID[::-1])
    assert Inpaint(MASK, GRID).replace(grid=GRID[1:]).num_steps == 3


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_step_reads_an_array(name, monkeypatch):
    """Reading an array waits for the device: constructors may, what is called at every step may not."""
    schedule, x, keys = STRUCTS[name], jnp.zeros((2, 4, 4, 1)), keys_lib.per_image(jax.random.key(0), 2)
    solver, key = DDPM(RectifiedFlow()), jax.random.key(1)
    guided = classifier_free(two_calls(net, net), jnp.asarray([1.0, 2.0]), (0.1, 0.9))
    guided = input_guidance(guided, RectifiedFlow(), "x0", MASK, key, jnp.float32(0.5))

    known = checks.known

    def read(value):
        assert not isinstance(value, jax.Array), "an array was read"
        return known(value)

    monkeypatch.setattr(checks, "known", read)

    def step(x):
        times, carry = schedule.init(keys, x)
        pred = guided(x, times)
        after, carry = schedule.next(jnp.int32(0), SamplerState(x, times, None, carry), pred, keys)
        return solver.step(guided, pred, x, times, after, keys, None)[0]

    jax.eval_shape(step, x)


def test_arrays_of_other_processes_are_let_pass():
    assert checks.known(jax.ShapeDtypeStruct((2,), "float32")) is None
    held = jnp.asarray([jnp.nan])
    held.delete()
    assert checks.known(held) is None
    checks.numbers("x", held, 0, 1)


TRACED = {
    "grid": (lambda v: Synchronous(v).field(0), GRID, GRID.at[1].set(jnp.nan), "expected 0 <= a grid of times <= 1"),
    "rising": (lambda v: Synchronous(v).field(0), GRID, GRID[::-1], "expected a grid of times that falls"),
    "end": (lambda v: Synchronous(v).field(0), GRID, 0.5 + GRID / 2, "expected a grid of times that ends at 0"),
    "table": (lambda v: Table(v.reshape(5, 1, 1, 1)).field(0), GRID, 1 - GRID, "expected a table of fields that ends"),
    "mask": (lambda v: Inpaint(v, GRID).field(0), MASK, MASK.at[0, 0, 0, 0].set(jnp.nan), "expected 0 <= mask <= 1"),
    "strength": (lambda v: Graded(v, GRID).field(0), MASK, 2 * MASK, "expected 0 <= strength <= 1"),
    "order": (
        lambda v: Autoregressive(v, GRID, 4).field(0),
        jnp.asarray(raster((2, 2))),
        jnp.asarray(raster((2, 2))) + 1,
        "expected ranks below groups = 4",
    ),
    "threshold": (lambda v: Dynamic(v).threshold, jnp.float32(1), jnp.float32(-1), "expected threshold >= 0"),
    "rho": (lambda v: ConstantDeviation(Synchronous(GRID), v).rho, GRID[1:], 2 * GRID[1:], "expected 0 <= rho <= 1"),
    "scale": (
        lambda v: classifier_free(two_calls(net, net), v)(MASK, Times(MASK, MASK)).x0,
        jnp.float32(2),
        jnp.float32(jnp.inf),
        "expected a finite scale",
    ),
    "time": (lambda v: timefield.constant(v, 2), jnp.float32(0.5), jnp.float32(500), "expected 0 <= t <= 1, got 500"),
}


@pytest.mark.parametrize("name", TRACED)
def test_what_is_traced_is_an_error_under_checkify_alone(name):
    make, good, bad, message = TRACED[name]
    jax.eval_shape(make, bad)  # no error while tracing
    checked = checkify.checkify(jax.jit(make))
    assert message in checked(bad)[0].get()
    assert checked(good)[0].get() is None


# what a run may not do, whatever it is made of: leave a cell as noise, or tell a time that is none
TIME = st.one_of(st.sampled_from([0.0, 1.0, 0.5, np.nan, np.inf, -0.25, 2.0]), st.floats(0, 1, width=32))
LEVELS = st.lists(TIME, min_size=4, max_size=4).map(lambda row: np.asarray(row, np.float32))
FALLING = st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3).map(
    lambda row: np.asarray([*sorted(row, reverse=True), 0], np.float32)
)
RANKS = st.lists(st.integers(-2, 5), min_size=4, max_size=4).map(lambda row: np.asarray(row).reshape(1, 2, 2, 1))
VALUES = st.lists(TIME, min_size=4, max_size=4).map(lambda row: np.asarray(row, np.float32).reshape(1, 2, 2, 1))


@settings(max_examples=60, deadline=None)
@given(st.one_of(LEVELS, FALLING), RANKS, VALUES, st.integers(-1, 6))
def test_what_is_accepted_ends_clean(grid, order, values, groups):
    makers = {
        "synchronous": lambda: Synchronous(grid),
        "inpaint": lambda: Inpaint(values, grid),
        "graded": lambda: Graded(values, grid),
        "autoregressive": lambda: Autoregressive(order, grid, groups),
        "table": lambda: Table(np.stack([values[..., 0], np.zeros((1, 2, 2), np.float32)])),
    }
    is_grid = bool(np.isfinite(grid).all() and (np.diff(grid) <= 0).all() and 0 <= grid[-1] <= CLEAN and grid[0] <= 1)
    is_mask = bool(np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all())
    is_order = groups >= 1 and -1 < order.max() < groups and (order.min() < 0 or len(np.unique(order)) == groups)
    allowed = {
        "synchronous": is_grid,
        "inpaint": is_grid and is_mask,
        "graded": is_grid and is_mask,
        "autoregressive": is_grid and is_order,
        "table": is_mask,
    }
    for name, make in makers.items():
        if not allowed[name]:
            with pytest.raises(ValueError, match=r"expected .*got "):
                make()
            continue
        schedule = make()
        for i in (0, schedule.num_steps):
            field = np.asarray(timefield.dense(schedule.field(i)))
            assert np.isfinite(field).all()
            assert field.min() >= 0
            assert field.max() <= (1 if i == 0 else CLEAN)
