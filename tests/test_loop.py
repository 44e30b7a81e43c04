"""The loop's promises: an image depends on itself alone, held cells stay, nothing recompiles, mistakes are named."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental import checkify

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import timefield
from asyncpatch_jax.denoiser import bind
from asyncpatch_jax.process import Cosine, Discrete, RectifiedFlow
from asyncpatch_jax.sampling import (
    DDIM,
    DDPM,
    Autoregressive,
    DPMSolver2M,
    Graded,
    Heun,
    Inpaint,
    Synchronous,
    Table,
    UncertaintyGuided,
    classifier_free,
    input_guidance,
    linear,
    loop,
    paste_back,
    raster,
    repaint,
    sample,
    start,
    two_calls,
)
from asyncpatch_jax.types import Condition, Prediction, Times
from tests import drawn

PROCESS = RectifiedFlow()
IMAGE = (4, 4, 2)


def elementwise(x, times):
    t = timefield.like(times.told, x)
    return Prediction(jnp.sin(3 * x) + t, jnp.cos(5 * x) - t, {"log_variance": jnp.sin(7 * x[..., :1])})


class Network(nn.Module):
    """A small real network: pixels see each other, the field and the class."""

    @nn.compact
    def __call__(self, x, t, cond=None, *, train=False):
        told = jnp.broadcast_to(timefield.like(t, x), (*x.shape[:3], 1))
        label = jnp.broadcast_to(nn.Embed(5, 3)(cond.label)[:, None, None], (*x.shape[:3], 3))
        hidden = nn.gelu(nn.Conv(8, (3, 3))(jnp.concatenate([x, told, label], -1)))
        return nn.Conv(x.shape[-1], (3, 3))(hidden), {}


@functools.cache
def network_params():
    return drawn.params(Network(), KNOWN, timefield.constant(0.5, 3), Condition(label=jnp.zeros(3, jnp.int32)))


def generate(denoise, solver, schedule, key, known):
    x = start(PROCESS, schedule, key, known)
    return sample(denoise, solver, schedule, key, x, num_steps=schedule.num_steps)[0].x


def schedules(masks):
    """One schedule of each sort; `masks` are [b, 4, 4, 1], another for each image."""
    return {
        "synchronous": lambda: Synchronous(linear(4)),
        "inpaint": lambda: Inpaint(masks, linear(4)),
        "graded": lambda: Graded(0.7 * masks, linear(4)),
        "autoregressive": lambda: Autoregressive(jnp.where(masks > 0, raster((4, 4), (2, 2)), -1), linear(2), 4),
        "uncertainty": lambda: UncertaintyGuided(linear(4), (2, 2), masks),
    }


MASKS = jax.device_put((np.asarray(drawn.uniform(3, 4, 4, 1, seed=9)) > 0.4).astype(np.float32))
KNOWN = drawn.normal(3, *IMAGE, seed=1)


@pytest.mark.parametrize(
    ("make", "name"),
    [*((DDPM, name) for name in schedules(MASKS)), (Heun, "autoregressive"), (DPMSolver2M, "autoregressive")],
)
def test_an_image_does_not_depend_on_its_batch(make, name):
    @jax.jit
    def run(keys, known, masks):
        return generate(elementwise, make(PROCESS), schedules(masks)[name](), jax.random.wrap_key_data(keys), known)

    keys = jax.random.key_data(jax.random.split(jax.random.key(2), 3))
    inputs = [np.asarray(part) for part in (keys, KNOWN, MASKS)]
    together = np.asarray(run(*inputs))
    one = slice(1, 2)
    assert (together[one] == np.asarray(run(*(part[one] for part in inputs)))).all()
    assert np.isfinite(together).all()


def test_a_network_s_image_does_not_depend_on_its_batch_beyond_rounding():
    keys, labels = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(2), 3))), np.int32([0, 3, 1])
    model = Network()
    params = network_params()

    @jax.jit
    def run(keys, known, masks, labels, scale):
        b = known.shape[0]
        free = bind(model, params, PROCESS, "velocity", Condition(label=jnp.full((b,), 4)))
        with_class = bind(model, params, PROCESS, "velocity", Condition(label=labels))
        denoise = input_guidance(
            classifier_free(two_calls(with_class, free), scale), PROCESS, "velocity", masks, jax.random.key(3), 0.5
        )
        return generate(denoise, DDPM(PROCESS), Inpaint(masks, linear(4)), jax.random.wrap_key_data(keys), known)

    def with_second(values, second):
        values = values.copy()
        values[1] = second
        return values

    scale = np.float32([1.0, 2.0, 3.0])
    known, masks = np.asarray(KNOWN), np.asarray(MASKS)
    together = np.asarray(run(keys, known, masks, labels, scale))
    # the first image, since the guidance's own key is folded with the image's index
    alone = run(keys[:1], known[:1], masks[:1], labels[:1], scale[:1])
    np.testing.assert_allclose(together[:1], alone, rtol=1e-4, atol=1e-5)
    # and each of key, mask, class and guidance is per image: changing image 1's leaves the others
    for other in (
        run(with_second(keys, keys[0]), known, masks, labels, scale),
        run(keys, known, with_second(masks, 1 - masks[1]), labels, scale),
        run(keys, known, masks, with_second(labels, 2), scale),
        run(keys, known, masks, labels, with_second(scale, 5.0)),
    ):
        changed = (np.asarray(other) != together).any((1, 2, 3))
        assert changed.tolist() == [False, True, False]


def test_nothing_but_shapes_is_compiled_in():
    model, traces = Network(), []
    known, label, params = np.asarray(KNOWN)[:2], np.int32([0, 1]), network_params()
    masks, steps = np.asarray(MASKS)[:2], np.asarray(linear(3))

    @functools.partial(jax.jit, static_argnames="num_steps")
    def run(params, schedule, mask, label, scale, hint_scale, interval, key, known, num_steps):
        traces.append(num_steps)
        cond = bind(model, params, PROCESS, "velocity", Condition(label=label))
        free = bind(model, params, PROCESS, "velocity", Condition(label=jnp.full_like(label, 4)))
        denoise = classifier_free(two_calls(cond, free), scale, interval)
        denoise = input_guidance(denoise, PROCESS, "velocity", mask, key, hint_scale)
        x = start(PROCESS, schedule, key, known)
        return sample(denoise, DDIM(PROCESS, 0.5), schedule, key, x, num_steps=num_steps)[0].x

    def call(scale=2.0, mask=masks, grid=steps, label=label, params=params, key=0, interval=(0.1, 0.9)):
        return run(
            params, Inpaint(mask, grid), mask, label, scale, 0.5, interval, jax.random.key(key), known, num_steps=3
        )

    first = call()
    changed = [
        call(scale=3.0),
        call(mask=1 - masks),
        call(grid=steps**2),
        call(label=label + 1),
        call(params=jax.tree.map(lambda w: np.float32(1.1) * np.asarray(w), params)),
        call(key=1),
        call(interval=(0.5, 0.6)),
    ]
    assert len(traces) == 1
    assert all(not np.array_equal(first, other) for other in changed)


@pytest.mark.parametrize("make", [DDPM, Heun, DPMSolver2M], ids=lambda s: s.__name__)
def test_a_constant_field_is_the_scalar(make):
    # bit for bit as users compile it; the emitters of these tests round what they fuse
    @functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})
    def run(schedule):
        return generate(elementwise, make(PROCESS), schedule, jax.random.key(0), jnp.zeros((2, *IMAGE)))

    constant = np.tile(np.asarray(linear(5)).reshape(-1, 1, 1, 1), (1, 1, 4, 4))
    np.testing.assert_array_equal(run(Synchronous(linear(5))), run(Table(constant)))


def test_known_pixels_never_change_and_what_lies_under_the_mask_never_matters():
    @functools.partial(jax.jit, static_argnums=0)
    def run(process, hidden):
        schedule = Inpaint(MASKS, linear(3))
        x = start(process, schedule, jax.random.key(0), hidden)
        end = sample(elementwise, DDPM(process), schedule, jax.random.key(0), x, num_steps=3)[0].x
        return x, end, paste_back(end, hidden, MASKS)

    known = np.asarray(KNOWN)
    kept = np.broadcast_to(np.asarray(MASKS) == 0, known.shape)
    for process in (RectifiedFlow(), Cosine(), Discrete()):
        x, end, pasted = jax.device_get(run(process, np.where(kept, known, np.nan)))
        assert np.isfinite(x).all()
        assert (end[kept] == known[kept]).all()
        assert (pasted == end).all()


def test_the_start_is_the_schedules_own():
    known = np.asarray(drawn.normal(64, *IMAGE, seed=1))
    strength = np.float32([[0.0, 0.5], [0.9, 1.0]]).reshape(1, 2, 2, 1)
    made = jax.jit(lambda strength, known: start(PROCESS, Graded(strength, linear(3)), jax.random.key(0), known))
    x = np.asarray(made(strength, known))
    noise = x - known * (1 - strength.repeat(2, 1).repeat(2, 2))
    assert (x[:, :2, :2] == known[:, :2, :2]).all()
    for cell, level in (((slice(0, 2), slice(2, 4)), 0.5), ((slice(2, 4), slice(0, 2)), 0.9)):
        assert noise[:, cell[0], cell[1]].std() == pytest.approx(level, rel=0.1)
    assert x[:, 2:, 2:].std() == pytest.approx(1.0, rel=0.1)


def test_the_trace_sees_every_state_before_its_step():
    key = jax.random.key(0)
    end, (levels, x0) = sample(
        elementwise,
        DDIM(PROCESS),
        Synchronous(linear(3)),
        key,
        jnp.ones((1, *IMAGE)),
        num_steps=3,
        trace=lambda state, pred: (state.times.level, pred.x0),
    )
    np.testing.assert_array_equal(levels.reshape(-1), linear(3)[:-1])
    np.testing.assert_allclose(end.x, x0[-1], rtol=1e-6)


# ----------------------------------------------------------------------------------------------------- mistakes
def run_with(schedule, num_steps=2):
    x = jax.device_put(np.ones((2, *IMAGE), np.float32))
    return sample(elementwise, DDIM(PROCESS), schedule, jax.random.key(0), x, num_steps=num_steps)


def test_another_number_of_steps_is_refused():
    for schedule in (
        Synchronous(linear(3)),
        Inpaint(MASKS[:2], linear(3)),
        Autoregressive(raster((2, 2)), linear(3), 4),
    ):
        with pytest.raises(ValueError, match="expected num_steps = "):
            run_with(schedule)


@pytest.mark.parametrize("repainted", [False, True])
def test_noise_that_is_given_is_that_which_is_drawn(repainted):
    key, known = jax.random.key(3), KNOWN
    schedule, solver = Synchronous(linear(4)), DDPM(PROCESS)
    if repainted:
        schedule, solver = repaint(PROCESS, linear(4), known, MASKS, jump=2, resample=2)
    steps, draws = schedule.num_steps, 3 if repainted else 1

    def drawn_in(i):
        own = keys_lib.split(keys_lib.fold_in(keys_lib.per_image(key, 3), loop._STEP + i), 2)[1]
        each = keys_lib.split(own, 3) if repainted else [own]
        return jnp.stack([keys_lib.normal(keys, IMAGE) for keys in each])

    recorded = np.asarray(jax.jit(jax.vmap(drawn_in))(np.arange(steps)))
    recorded = recorded if draws > 1 else recorded[:, 0]

    @jax.jit
    def run(key, noise):
        return sample(elementwise, solver, schedule, key, known, num_steps=steps, noise=noise)[0].x

    own = np.asarray(run(key, None))
    np.testing.assert_allclose(run(jax.random.key(0), recorded), own, rtol=1e-5, atol=1e-5)
    assert not np.allclose(run(key, -recorded), own, atol=1e-2)
    with pytest.raises(ValueError, match=r"expected noise of shape \(.*\), one for each step, got \("):
        run(key, recorded[1:])


@pytest.mark.parametrize("solver", [DDIM(PROCESS), Heun(PROCESS), DPMSolver2M(PROCESS)])
def test_noise_for_a_solver_that_draws_none_is_refused(solver):
    x = jnp.ones((1, *IMAGE))
    with pytest.raises(ValueError, match=f"expected a solver that draws noise.* got noise for {type(solver).__name__}"):
        sample(elementwise, solver, Synchronous(linear(2)), jax.random.key(0), x, num_steps=2, noise=x[None])


def test_a_field_that_does_not_fit_the_image_is_refused():
    for shape, message in (((1, 3, 3, 1), "tiles 4x4 pixels"), ((3, 2, 2, 1), "expected a time field")):
        mask = jax.device_put(np.ones(shape, np.float32))
        with pytest.raises(ValueError, match=message):
            run_with(Inpaint(mask, linear(2)))


def test_a_field_that_changes_its_grid_is_refused():
    class Growing(Synchronous):
        def next(self, i, state, pred, keys):
            level = jnp.zeros((2, 2, 2, 1))
            return Times(level, level), None

    with pytest.raises(ValueError, match=r"fields stay \(2, 1, 1, 1\), got \(2, 2, 2, 1\)"):
        run_with(Growing(linear(2)))


def test_a_schedule_is_held_to_the_times_that_it_declares():
    class Many(Inpaint):
        def field(self, i):
            few = super().field(i)
            return few._replace(values=jnp.concatenate([few.values, few.values], 1))

    with pytest.raises(
        ValueError, match="expected at most 2 distinct times, which this Many declares, got a field of 4"
    ):
        run_with(Many(MASKS[:2], linear(2)))

    class Written(Graded):
        distinct = 2

    def end(schedule):
        return jax.jit(lambda: run_with(schedule)[0].x)

    strength = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4, 1)
    schedule = Written(strength, linear(2))
    np.testing.assert_array_equal(end(schedule)(), end(Graded(strength, linear(2)))())
    error, _ = checkify.checkify(end(schedule))()
    assert "expected at most 2 distinct times, which this Written declares, got 16" in error.get()
    error, _ = checkify.checkify(end(Written(np.round(strength), linear(2))))()
    assert error.get() is None


def test_keys_of_another_batch_are_refused():
    with pytest.raises(ValueError, match="one per image"):
        sample(
            elementwise,
            DDIM(PROCESS),
            Synchronous(linear(2)),
            keys_lib.per_image(jax.random.key(0), 3),
            jnp.ones((2, *IMAGE)),
            num_steps=2,
        )
