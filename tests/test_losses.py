import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax.process import KINDS, Cosine, Discrete, RectifiedFlow
from asyncpatch_jax.training.losses import SiD2, Uniform, drop_labels, loss
from asyncpatch_jax.training.times import AsyncPatch, Independent, Synchronous
from asyncpatch_jax.types import Condition
from tests import drawn

PROCESSES = [RectifiedFlow(), Cosine(), Discrete()]


class Net(nn.Module):
    """A body and a head; the head's gradient stops where it leaves the body, as in the library's networks."""

    head: bool = True

    @nn.compact
    def __call__(self, x, t, cond=None, *, train=False):
        features = nn.Dense(8, name="body")(x)
        aux = {"log_variance": nn.Dense(1, name="log_variance")(jax.lax.stop_gradient(features))} if self.head else {}
        return nn.Dense(x.shape[-1], name="out")(features), aux


class Blind(nn.Module):
    """Answers zeros: the squared error is that of the target itself."""

    @nn.compact
    def __call__(self, x, t, cond=None, *, train=False):
        return self.param("zero", nn.initializers.zeros, ()) * jnp.ones_like(x), {}


@pytest.fixture(scope="module")
def x0():
    return drawn.normal(3, 4, 6, 2)


def setup(**settings):
    base = {"model": Net(), "process": RectifiedFlow(), "kind": "velocity", "times": Independent(), "grid": ()}
    return {**base, "weight": Uniform(), **settings}


def init(model, x0):
    return drawn.params(model, x0, jax.ShapeDtypeStruct((x0.shape[0], 1, 1, 1), jnp.float32))


def of(params, key, x0, **settings):
    """The loss and its metrics, as one program."""
    return jax.device_get(jax.jit(functools.partial(loss, cond=None, **settings))(params, key, x0))


def times64(process):
    t = np.linspace(0.001, 0.999, 301).reshape(1, 301, 1, 1)
    return jnp.asarray(t, jnp.float64 if not isinstance(process, Discrete) else jnp.float32)


def logsnr_slope(process, t):
    return jax.grad(lambda t: process.logsnr(t).sum())(t)


@pytest.mark.parametrize("process", [RectifiedFlow(), Cosine()])
@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_sid2_weighs_every_kind_like_x0(process, bias, kind):
    with jax.enable_x64(True):
        t = times64(process)
        weight = SiD2(bias)(process, kind, t)
        in_x0 = -logsnr_slope(process, t) * np.exp(bias) * jax.nn.sigmoid(process.logsnr(t) - bias)
        # an error of 1 in x0 at fixed x is an error of -alpha / sigma in eps; what is it in this kind?
        one, ratio = jnp.ones_like(t), -process.alpha(t) / process.sigma(t)
        error = _error(process, kind, one, ratio, t)
        np.testing.assert_allclose(weight * error**2, in_x0, rtol=1e-12)


def _error(process, kind, in_x0, in_eps, t):
    """The target is linear in (x0, eps), so errors in the pair become an error in it."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    alpha_rate, sigma_rate = process.rates(t)
    return {
        "x0": in_x0,
        "eps": in_eps,
        "v": alpha * in_eps - sigma * in_x0,
        "velocity": alpha_rate * in_x0 + sigma_rate * in_eps,
        "score": -in_eps / sigma,
    }[kind]


@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
def test_sid2_is_the_published_weight_of_the_rectified_flow_velocity(bias):
    with jax.enable_x64(True):
        t, e = times64(RectifiedFlow()), np.exp(bias)
        published = 2 * e * t * (1 - t) / ((1 - t) ** 2 + e * t**2)
        np.testing.assert_allclose(SiD2(bias)(RectifiedFlow(), "velocity", t), published, rtol=1e-13)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("kind", KINDS)
def test_sid2_is_finite_everywhere_and_zero_on_known_cells(process, kind):
    t = jax.device_put(np.linspace(0, 1, 101, dtype=np.float32).reshape(1, 101, 1, 1))
    weight = np.asarray(SiD2()(process, kind, t))
    assert np.isfinite(weight).all()
    assert (weight >= 0).all()
    assert weight[0, 0, 0, 0] == 0
    assert (weight[0, 1:-1] > 0).all()


@functools.cache
def blind(process):
    """Loss, metrics and the mean powers of what its target is made of, for every kind in one program."""

    @jax.jit
    def run(key, data, t):
        found = {}
        for kind in KINDS:
            settings = setup(model=Blind(), process=process, kind=kind)
            pairs = ((1.0, 0.0), (0.0, 1.0))
            powers = [_error(process, "eps" if kind == "score" else kind, *pair, t) ** 2 for pair in pairs]
            means = [(power * jnp.ones_like(t)).mean() for power in powers]
            found[kind] = loss({"zero": jnp.zeros(())}, key, data, None, **settings), means
        return found

    t = np.linspace(0, 1, 20_001, dtype=np.float32)[1:].reshape(1, -1, 1, 1)
    return jax.device_get(run(jax.random.key(3), drawn.normal(64, 16, 16, 1, seed=2), t))


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_blind_network_pays_the_power_of_its_target(process, kind):
    """With data and noise of unit variance, E|a x0 + b eps|^2 = a^2 + b^2 (a score is compared as noise)."""
    (value, metrics), powers = blind(process)[kind]
    # the velocity of the discrete process has a heavy tail at t = 0
    np.testing.assert_allclose(value, sum(powers), rtol=0.2 if isinstance(process, Discrete) else 0.03)
    np.testing.assert_allclose(metrics["mse"], value, rtol=1e-6)


@functools.cache
def on_one_cell(process):
    """Values and gradients for every kind in one program, for two images that differ where nothing counts."""

    def half(key, batch, grid):
        t = jnp.zeros((batch, *grid, 1))
        return t.at[:, 1, 2].set(0.7)

    @jax.jit
    def run(params, key, x0):
        value = jax.value_and_grad(loss, has_aux=True)
        settings = {"process": process, "times": half, "uncertainty": 0.01}
        return {kind: value(params, key, x0, None, **setup(kind=kind, **settings)) for kind in KINDS}

    x0 = np.array(drawn.normal(3, 4, 6, 2))
    params = init(Net(), x0)
    first = run(params, jax.random.key(0), x0)
    x0[:, 0] += 3
    x0[:, 3] -= 1
    return jax.device_get((first, run(params, jax.random.key(0), x0)))


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("kind", KINDS)
def test_known_cells_carry_no_loss_and_no_gradient(process, kind):
    """All cells at 0 but one: nothing but that cell counts, and infinite targets at 0 make no NaN."""
    ((total, metrics), grads), ((same, _), same_grads) = (found[kind] for found in on_one_cell(process))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((total, metrics, grads)))
    assert total == same
    jax.tree.map(np.testing.assert_array_equal, grads, same_grads)
    assert metrics["mse_t0"] == metrics["mse_t1"] == metrics["mse_t3"] == 0
    np.testing.assert_allclose(metrics["mse_t2"], metrics["mse"])


def test_weights_apply_per_cell_before_the_mean(x0):
    """A weight that is 1 on one row and 0 elsewhere gives the share of that row."""

    def rows(key, batch, grid):
        return jnp.broadcast_to(jnp.linspace(0.1, 0.9, grid[0]).reshape(1, -1, 1, 1), (batch, *grid, 1))

    def only(which):
        return lambda process, kind, t: (jnp.abs(t - which) < 1e-6).astype(jnp.float32)

    params, key = init(Net(), x0), jax.random.key(0)
    parts = [of(params, key, x0, **setup(times=rows, weight=only(w)))[0] for w in np.linspace(0.1, 0.9, 4)]
    whole = of(params, key, x0, **setup(times=rows))[0]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)
    assert len({round(float(p), 5) for p in parts}) == 4


def test_a_field_on_a_coarse_grid_noises_and_weighs_whole_patches(x0):
    """The loss on a 2x3 grid is the loss per pixel of the same field, repeated."""
    coarse = Independent()

    def repeated(key, batch, grid):
        return coarse(key, batch, (2, 3)).repeat(2, 1).repeat(2, 2)

    params, key = init(Net(), x0), jax.random.key(5)
    a = of(params, key, x0, **setup(times=coarse, grid=(2, 3), weight=SiD2()))[0]
    b = of(params, key, x0, **setup(times=repeated, weight=SiD2()))[0]
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_likelihood_trains_the_head_and_only_the_head(x0):
    params, key = init(Net(), x0), jax.random.key(0)

    @functools.partial(jax.jit, static_argnums=1)
    def grad(params, uncertainty):
        return jax.grad(loss, has_aux=True)(params, key, x0, None, **setup(uncertainty=uncertainty))[0]

    with_head, without = jax.device_get((grad(params, 0.01), grad(params, 0.0)))
    for name in ("body", "out"):
        jax.tree.map(np.testing.assert_array_equal, with_head[name], without[name])
    assert all((g == 0).all() for g in jax.tree.leaves(without["log_variance"]))
    assert any(np.abs(g).max() > 1e-5 for g in jax.tree.leaves(with_head["log_variance"]))


def test_the_likelihood_is_a_gaussians(x0):
    """Against scipy's density, and least where the variance is the squared error."""
    stats = pytest.importorskip("scipy.stats")
    params, key = init(Net(), x0), jax.random.key(0)

    @jax.jit
    def head(s):
        of_s = {"kernel": jnp.zeros((8, 1)), "bias": s.reshape(1)}
        return loss({**params, "log_variance": of_s}, key, x0, None, **setup(uncertainty=1.0))

    slope, metrics = jax.device_get(jax.jit(jax.grad(head, has_aux=True))(np.float32(0.3)))
    constant = 0.5 * np.log(2 * np.pi)
    expected = -stats.norm(0, np.exp(0.15)).logpdf(np.sqrt(metrics["mse"])) - constant
    np.testing.assert_allclose(metrics["nll"], expected, rtol=1e-5)
    assert abs(slope) > 1e-2
    slope, _ = jax.jit(jax.grad(head, has_aux=True))(np.log(metrics["mse"]))
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)


def test_an_image_does_not_depend_on_its_batch(x0):
    """The loss of a batch is the mean of the losses of its images, each with its own key."""
    params = init(Net(), x0)
    keys = jax.random.split(jax.random.key(0), 3)
    settings = setup(times=AsyncPatch(base="uniform"), grid=(2, 3), weight=SiD2())
    of = jax.jit(lambda keys, x0: loss(params, jax.random.wrap_key_data(keys), x0, None, **settings)[0])
    keys, x0 = np.asarray(jax.random.key_data(keys)), np.asarray(x0)
    alone = [of(keys[i : i + 1], x0[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(of(keys, x0), np.mean(alone), rtol=1e-5)


def test_low_precision_output_is_compared_in_float32(x0):
    class Half(Net):
        @nn.compact
        def __call__(self, x, t, cond=None, *, train=False):
            return nn.Dense(x.shape[-1], dtype=jnp.bfloat16)(x), {}

    settings = setup(model=Half(), times=Synchronous())
    total, metrics = jax.eval_shape(lambda p: loss(p, jax.random.key(0), x0, None, **settings), init(Half(), x0))
    assert {total.dtype, *(m.dtype for m in metrics.values())} == {jnp.dtype(jnp.float32)}


def test_mistakes_are_named(x0):
    params, key = init(Net(head=False), x0), jax.random.key(0)
    with pytest.raises(ValueError, match="log_variance=True"):
        loss(params, key, x0, None, **setup(model=Net(head=False), uncertainty=0.01))
    with pytest.raises(ValueError, match="tiles 4x6"):
        loss(params, key, x0, None, **setup(grid=(3, 3)))
    with pytest.raises(ValueError, match="labels"):
        drop_labels(key, Condition(), 0.1, 10)
    with pytest.raises(ValueError, match="rate"):
        drop_labels(key, Condition(jnp.zeros(3, jnp.int32)), 1.5, 10)


def test_labels_are_dropped_at_their_rate_and_by_their_own_key():
    label = np.arange(4000, dtype=np.int32) % 10
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), 4000)))

    @functools.partial(jax.jit, static_argnums=2)
    def run(keys, label, rate):
        return drop_labels(jax.random.wrap_key_data(keys), Condition(label), rate, 10).label

    dropped = np.asarray(run(keys, label, 0.1))
    assert abs((dropped == 10).mean() - 0.1) < 0.02
    assert ((dropped == label) | (dropped == 10)).all()
    np.testing.assert_array_equal(run(keys[7:9], label[7:9], 0.1), dropped[7:9])
    assert (np.asarray(run(keys, label, 1.0)) == 10).all()
    np.testing.assert_array_equal(run(keys, label, 0.0), label)
