"""What is promised holds under other settings of JAX: another default generator, and 64-bit types."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asyncpatch_jax import beta, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.data import masks
from asyncpatch_jax.denoiser import bind
from asyncpatch_jax.models import DiT, UNet
from asyncpatch_jax.process import Cosine, Discrete, RectifiedFlow, diffuse, target
from asyncpatch_jax.sampling import (
    DDIM,
    DDPM,
    Autoregressive,
    Concave,
    ConstantDeviation,
    DPMSolver2M,
    DualLoop,
    Euler,
    Graded,
    Heun,
    Inpaint,
    Synchronous,
    Table,
    UncertaintyGuided,
    ZSampling,
    classifier_free,
    everywhere,
    input_guidance,
    linear,
    look_ahead,
    paste_back,
    raster,
    repaint,
    sample,
    shuffled,
    start,
    two_calls,
)
from asyncpatch_jax.training import times
from asyncpatch_jax.training.elbo import Diagonal, RandomEnvironment, Raster, elbo
from asyncpatch_jax.training.losses import SiD2, drop_labels, loss
from asyncpatch_jax.types import Condition, Prediction, Times
from tests import mains

IMPLS = ("threefry2x32", "rbg", "unsafe_rbg")
FLOW, IMAGE = RectifiedFlow(), (4, 4, 1)
X, HALF = jnp.zeros((3, *IMAGE)), jnp.full((3, 1, 1, 1), 0.5)
TIMES = Times(HALF, HALF)
SAMPLERS = (
    times.Synchronous("logit_normal"),
    times.Independent(),
    times.Patchwise(),
    times.Perlin(),
    times.UniformMean(),
    times.LogitNormalTruncated(),
    times.AsyncPatch(),
)
PATHS = (Diagonal(), Raster((2, 2)), RandomEnvironment((2, 2)))


def elementwise(x, times):
    t = timefield.like(times.told, x)
    return Prediction(jnp.sin(3 * x) + t, jnp.cos(5 * x) - t, {"log_variance": jnp.sin(7 * x[..., :1])})


def generate(denoise, solver, schedule, key, known):
    x = start(FLOW, schedule, key, known)
    return sample(denoise, solver, schedule, key, x, num_steps=schedule.num_steps)[0].x


def data(key):
    return np.asarray(jax.random.key_data(key))


# ------------------------------------------------------------------------------------------------------- seeds
def test_a_seed_is_taken_whole():
    seeds = [0, 5, 2**32 - 1, 2**32, 2**32 + 5, 2**63, 2**64 - 1]
    keys = [data(keys_lib.of_seed(seed)) for seed in seeds]
    assert len({key.tobytes() for key in keys}) == len(seeds)
    for seed, key in zip(seeds[:3], keys, strict=False):
        assert (key == data(jax.random.key(seed))).all()
    with jax.enable_x64(True):  # where JAX takes them whole too
        assert (data(jax.random.key(2**32 + 5)) == keys[4]).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_a_seed_is_the_same_image_under_any_default_generator(impl):
    want = data(keys_lib.per_image(keys_lib.of_seed(3), 2))
    with jax.default_prng_impl(impl):
        assert (data(keys_lib.per_image(jax.random.key(3), 2)) == want).all()
        assert (data(keys_lib.per_image(keys_lib.of_seed(3), 2)) == want).all()
        # a mask that is drawn from noise too
        drawn = masks.draw("perlin", 3, 1, 8)
    assert (drawn == masks.draw("perlin", 3, 1, 8)).all()


# -------------------------------------------------------------------------------------------------- generators
def drawn_by(jaxpr, found):
    """(operation, kind of key) of everything random in a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("random_bits", "random_gamma", "rng_bit_generator"):
            found.add((eqn.primitive.name, str(eqn.invars[0].aval.dtype)))
        for inner in jax.core.jaxprs_in_params(eqn.params):
            drawn_by(inner, found)
    return found


USES = {
    "start": lambda key: start(FLOW, Synchronous(linear(2)), key, jnp.zeros((3, *IMAGE))),
    "sample": lambda key: generate(elementwise, DDPM(FLOW), Synchronous(linear(2)), key, jnp.zeros((3, *IMAGE))),
    "noise": lambda key: keys_lib.normal(jax.random.split(key, 3), (4,)),
    "uniform": lambda key: keys_lib.uniform(jax.random.split(key, 3)),
    "folded": lambda key: keys_lib.normal(keys_lib.fold_in(jax.random.split(key, 3), 5), (4,)),
    "split": lambda key: keys_lib.normal(keys_lib.split(jax.random.split(key, 3), 2)[1], (4,)),
    "labels": lambda key: drop_labels(key, Condition(jnp.zeros(3, jnp.int32)), 0.5, 9).label,
    "hint": lambda key: input_guidance(elementwise, FLOW, "x0", jnp.ones((1, 4, 4, 1)), key, 1.0)(X, TIMES).x0,
    "shuffled": lambda key: shuffled(key, jnp.asarray(raster((4, 4))), 16),
    "deviation": lambda key: beta.sample(keys_lib.per_image(key, 3), beta.Beta(2 * HALF[:, 0], 2 * HALF[:, 0])),
    **{type(s).__name__: lambda key, s=s: timefield.dense(s(key, 3, (4, 4))) for s in SAMPLERS},
    **{
        f"elbo.{type(p).__name__}": lambda key, p=p: elbo(key, X, elementwise, FLOW, p, num_samples=2).nats
        for p in PATHS
    },
}


@pytest.mark.parametrize("use", USES)
def test_all_that_an_image_draws_comes_from_threefry(use):
    """JAX's rbg draws a batch with its first key: the same image then has other noise in another batch."""
    for impl in IMPLS[1:]:
        found = drawn_by(jax.make_jaxpr(USES[use])(jax.random.key(0, impl=impl)).jaxpr, set())
        assert {kind for _, kind in found} == {"key<fry>"}


@pytest.mark.parametrize("impl", IMPLS[1:])
def test_an_image_does_not_depend_on_its_batch_whatever_the_generator(impl):
    run = jax.jit(lambda key, known: generate(elementwise, DDPM(FLOW), Synchronous(linear(2)), key, known))
    together = run(jax.random.key(0, impl=impl), jnp.zeros((3, *IMAGE)))
    alone = run(jax.random.key(0, impl=impl), jnp.zeros((1, *IMAGE)))
    np.testing.assert_allclose(together[:1], alone, rtol=2e-6, atol=2e-6)
    # and it is the default generator's
    np.testing.assert_array_equal(together, run(jax.random.key(0, impl="threefry2x32"), jnp.zeros((3, *IMAGE))))
    assert np.ptp(together, axis=0).min() > 1e-4


def test_floats_to_rounding_and_grey_levels_with_them():
    """What "does not depend on its batch" means for a network, whose sums a compiler may order by the batch."""
    model = DiT(patch=2, width=16, depth=1, heads=2)
    known = jnp.zeros((5, 8, 8, 1))
    rng = np.random.default_rng(0)
    params = jax.eval_shape(model.init, jax.random.key(0), known[:1], jnp.ones((1, 1, 1, 1)))["params"]
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.1, p.shape), jnp.float32), params)

    @jax.jit
    def run(keys, known):
        return generate(bind(model, params, FLOW, "velocity"), DDPM(FLOW), Synchronous(linear(4)), keys, known)

    keys = keys_lib.per_image(jax.random.key(1), 5)
    together, alone = (np.asarray(run(keys[:n], known[:n])) for n in (5, 1))
    assert np.abs(together[:1] - alone).max() < 2e-6
    grey = [np.clip(np.round((x + 1) * 127.5), 0, 255) for x in (together[:1], alone)]
    assert (grey[0] == grey[1]).all()
    assert together.std() > 0.1


# ---------------------------------------------------------------------------------------------------- 64 bits
@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


MASK = jnp.ones((2, 4, 4, 1))
SCHEDULES = {
    "synchronous": lambda: Synchronous(np.linspace(1, 0, 3)),
    "table": lambda: Table(np.linspace(1, 0, 3).reshape(3, 1, 1, 1)),
    "inpaint": lambda: Inpaint(MASK, linear(2)),
    "graded": lambda: Graded(0.7 * MASK, linear(2)),
    "autoregressive": lambda: Autoregressive(jnp.repeat(raster((2, 2)), 2, 0), linear(2), 4),
    "uncertainty": lambda: UncertaintyGuided(linear(2), (2, 2), MASK),
    "dual": lambda: DualLoop(linear(2), (2, 2), MASK),
    "concave": lambda: Concave(np.linspace(1, 0, 3), 0.5, everywhere(), (4, 4)),
    "deviation": lambda: ConstantDeviation(Synchronous(linear(2)), np.float64(0.4)),
}
SOLVERS = {
    **{
        f"{type(process).__name__}.{make.__name__}": lambda make=make, process=process: make(process)
        for process in (FLOW, Cosine(), Discrete())
        for make in (DDIM, DDPM, Euler, Heun, DPMSolver2M)
    },
    "zigzag": lambda: ZSampling(FLOW, elementwise, 1),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_schedule_and_solver_runs_with_64_bit_types(wide, dtype):
    """Traced, not run: a loop whose types change from step to step is an error there."""
    known = jnp.zeros((2, *IMAGE), dtype)
    key = jax.random.key(0)

    def begin_and_run(solver, schedule, denoise=elementwise):
        return jax.eval_shape(lambda: generate(denoise, solver, schedule, key, known))

    for make in SCHEDULES.values():
        assert begin_and_run(DDPM(FLOW), make()).dtype == dtype
    for make in SOLVERS.values():
        assert begin_and_run(make(), Inpaint(MASK, linear(2))).dtype == dtype
    schedule, solver = repaint(FLOW, linear(6), known, MASK, jump=3, resample=2)
    assert begin_and_run(solver, schedule).dtype == dtype
    guided = classifier_free(two_calls(elementwise, elementwise), jnp.asarray([1.0, 2.0]), (0.1, 0.9))
    guided = look_ahead(input_guidance(guided, FLOW, "velocity", MASK, key, 0.5), FLOW, (2, 2))
    assert begin_and_run(Heun(FLOW), UncertaintyGuided(linear(2), (2, 2)), guided).dtype == dtype
    assert paste_back(known, known, MASK).dtype == dtype


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_training_times_are_float32_with_64_bit_types(wide, sampler):
    field = jax.eval_shape(lambda: timefield.dense(sampler(jax.random.key(0), 2, (4, 4))))
    assert field.dtype == "float32"


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_bounds_are_traced_with_64_bit_types(wide, path):
    x0 = jnp.zeros((2, *IMAGE))
    jax.eval_shape(lambda: elbo(jax.random.key(0), x0, elementwise, FLOW, path, num_samples=2))


@pytest.mark.parametrize(
    "model",
    [UNet(base=8, multipliers=(1,), blocks=1, attention=()), DiT(patch=4, width=8, depth=1, heads=1)],
    ids=lambda model: type(model).__name__,
)
def test_a_program_of_ones_own_runs_with_64_bit_types(wide, model):
    """The README's: arrays that it makes itself are float64 then, fields included."""
    images, optimizer, key = jnp.ones((2, 8, 8, 1)) * 0.5, optax.adam(1e-3), jax.random.key(0)
    assert images.dtype == "float64"
    params = jax.eval_shape(model.init, key, images, jnp.ones((2, 1, 1, 1)))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def own(params):
        noise, t = jax.random.normal(key, images.shape), times.AsyncPatch()(key, batch=2, grid=(8, 8))
        out, _ = model.apply({"params": params}, diffuse(FLOW, images, noise, t), t)
        return jnp.mean((out - target(FLOW, "velocity", images, noise, t)) ** 2)

    def ours(params):
        settings = {"process": FLOW, "kind": "velocity", "weight": SiD2(), "grid": ()}
        return loss(params, key, images, None, model=model, times=times.AsyncPatch(), **settings)[0]

    def step(params, state, of):
        updates, state = optimizer.update(jax.grad(of)(params), state)
        return optax.apply_updates(params, updates)

    for of in (own, ours):
        after = jax.eval_shape(functools.partial(step, of=of), params, jax.eval_shape(optimizer.init, params))
        assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, params)

    def run(params):
        schedule = Autoregressive(jnp.asarray(raster((2, 2))), linear(2), groups=4)
        return generate(bind(model, params, FLOW, "velocity"), DDIM(FLOW), schedule, key, images)

    assert jax.eval_shape(run, params).shape == images.shape


def test_an_image_is_the_same_with_64_bit_types():
    def image():
        known, schedule = jnp.zeros((2, *IMAGE), jnp.float32), Inpaint(jnp.ones((2, 4, 4, 1)), linear(3))
        run = jax.jit(lambda key: generate(elementwise, DDPM(FLOW), schedule, key, known))
        return np.asarray(run(jax.random.key(4)))

    narrow = image()
    with jax.enable_x64(True):
        np.testing.assert_allclose(image(), narrow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["times", "sample", "inpaint", "texture", "elbo", "judge", "evaluate", "text2image"])
def test_a_seed_that_would_be_another_s_is_refused_by_every_command(name, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    call = mains.command(monkeypatch, capfd)
    for seed in (-1, 2**64):
        code, _, err = call(name, f"--seed={seed}")
        assert code == 1
        assert f"expected 0 <= --seed <= 18446744073709551615 (2^64 - 1), got {seed}" in err
    assert not list(tmp_path.iterdir())
