from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import timefield
from asyncpatch_jax.process import Cosine, Discrete, RectifiedFlow
from asyncpatch_jax.training.elbo import Diagonal, Path, RandomEnvironment, Raster, bits_per_dim, elbo
from asyncpatch_jax.types import Prediction
from tests.oracles import Gaussian, gaussian

T_MIN = 0.02
PATHS = [Diagonal(), Raster((2, 2)), RandomEnvironment((2, 2))]


@partial(jax.jit, static_argnames=("process", "path", "num_samples"))
def estimate(key, x0, mean, cov, *, process, path, num_samples):
    denoise = Gaussian(mean, cov, x0.shape[1:]).denoiser(process)
    return elbo(key, x0, denoise, process, path, num_samples=num_samples, t_min=T_MIN, levels=0)


def reconstruction_gap(data, process, x0):
    """By how many nats N(x / alpha, ratio^2) guesses x0 worse than its exact posterior at T_MIN: linear algebra."""
    t = jnp.float32(T_MIN)
    r = float(process.sigma(t) / process.alpha(t))
    x0 = np.asarray(x0, np.float64).reshape(len(x0), -1)
    n = x0.shape[1]
    precision = np.linalg.inv(data.cov)
    cov = np.linalg.inv(precision + np.eye(n) / r**2)
    d = x0 - (precision @ data.mean + x0 / r**2) @ cov
    exact = 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]
    exact = exact + 0.5 * ((d @ np.linalg.inv(cov) * d).sum(1) + np.trace(cov) / r**2)
    return 0.5 * n * np.log(2 * np.pi * np.e * r**2) - exact


def check(data, process, path, x0):
    # a point on these paths says less, for only some cells move
    num_samples = 16 if path == Diagonal() else 48
    moments = jnp.float32(data.mean), jnp.float32(data.cov)
    bound = estimate(jax.random.key(5), x0, *moments, process=process, path=path, num_samples=num_samples)
    off = np.asarray(bound.nats, np.float64) + data.log_prob(x0) - reconstruction_gap(data, process, x0)
    error = np.sqrt((np.asarray(bound.error, np.float64) ** 2).sum()) / len(x0)
    # small enough to see a factor of 1.02 in the integral; and the bound is the likelihood to within its error
    assert error < 0.004 * bound.diffusion.mean()
    assert abs(off.mean()) < 4 * error, (off.mean(), error)
    # the error that each image states is the error that it has
    np.testing.assert_allclose((off**2).mean(), (np.asarray(bound.error) ** 2).mean(), rtol=0.2)
    np.testing.assert_allclose(bound.nats, bound.prior + bound.reconstruction + bound.diffusion, rtol=1e-4, atol=1e-4)
    return bound.nats.mean(), error


@pytest.mark.parametrize("process", [RectifiedFlow(), Cosine()], ids=repr)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_bound_of_the_perfect_denoiser_is_the_likelihood(process, path):
    data = gaussian((2, 2, 1))
    check(data, process, path, data.draw(jax.random.key(1), 3000))


@pytest.mark.parametrize("path", [Raster((1, 2)), RandomEnvironment((1, 2))], ids=repr)
def test_a_cell_may_hold_pixels_and_channels(path):
    data = gaussian((1, 4, 2))
    check(data, RectifiedFlow(), path, data.draw(jax.random.key(1), 3000))


def test_a_wrong_denoiser_has_a_larger_bound():
    """One that ignores correlations is perfect for independent pixels: the excess is how badly these fit the data."""
    data = gaussian((2, 2, 1))
    x0 = data.draw(jax.random.key(1), 3000)
    blind = data._replace(cov=np.diag(np.diag(data.cov)))
    bound, error = check(blind, RectifiedFlow(), PATHS[2], x0)
    assert bound > -data.log_prob(x0).mean() + 5 * error


@pytest.mark.parametrize("path", [Diagonal(), RandomEnvironment((2, 3))], ids=repr)
def test_discrete_data_have_a_probability(path):
    """Independent pixels of three levels: the posterior mean is a softmax, and so is the likelihood known."""
    levels, log_p = jnp.array([-1.0, 0.0, 1.0]), jnp.log(jnp.array([0.5, 0.2, 0.3]))
    process = Cosine()

    def denoise(x, times):
        t = jnp.broadcast_to(timefield.like(times.told, x), x.shape)[..., None]
        alpha, sigma = process.alpha(t), process.sigma(t)
        logits = (
            log_p.reshape(1, 1, 1, 1, 3) - 0.5 * ((x[..., None] - alpha * levels.reshape(1, 1, 1, 1, 3)) / sigma) ** 2
        )
        return Prediction((jax.nn.softmax(logits) * levels.reshape(1, 1, 1, 1, 3)).sum(-1), x, {})

    index = jax.random.categorical(jax.random.key(0), log_p, shape=(4000, 2, 3, 1))
    run = jax.jit(lambda x0: elbo(jax.random.key(1), x0, denoise, process, path, num_samples=8, t_min=0.05, levels=3))
    bound = run(levels[index])
    off = np.asarray(bound.nats + log_p[index].sum((1, 2, 3)), np.float64)
    error = np.sqrt((np.asarray(bound.error, np.float64) ** 2).sum()) / 4000
    assert abs(off.mean()) < 4 * error
    assert error < 0.01 * -log_p[index].sum((1, 2, 3)).mean()
    assert jnp.abs(bound.reconstruction).max() < 1e-3  # ratio 0.08 against steps of 1


def test_reconstruction_of_levels_is_a_choice_among_them():
    """With a t_min that hides the levels, it is the surprise under a softmax of squared distances."""
    x0 = jnp.linspace(-1, 1, 5).reshape(1, 1, 5, 1).repeat(4000, 0)
    zero = lambda x, times: Prediction(x, x, {})  # noqa: E731
    bound = jax.jit(
        lambda x0: elbo(jax.random.key(0), x0, zero, RectifiedFlow(), Diagonal(), num_samples=2, t_min=0.4, levels=5)
    )(x0)
    rng, levels, r = np.random.default_rng(0), np.linspace(-1, 1, 5), 0.4 / 0.6
    x = levels + r * rng.normal(size=(40_000, 5))
    logits = -0.5 * ((x[..., None] - levels) / r) ** 2
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.einsum("nii->n", log_p).mean()
    np.testing.assert_allclose(bound.reconstruction.mean(), expected, rtol=0.01)


def test_prior_is_a_divergence():
    """Of N(alpha x0, sigma^2) from N(0, 1), by quadrature; only a process that keeps some signal has one."""
    x0 = jnp.array([0.9, -0.3]).reshape(1, 1, 2, 1)
    perfect = lambda x, times: Prediction(jnp.broadcast_to(x0, x.shape), x, {})  # noqa: E731
    run = lambda process: elbo(jax.random.key(0), x0, perfect, process, Diagonal(), num_samples=2)  # noqa: E731
    assert run(RectifiedFlow()).prior == run(Cosine()).prior == 0
    process = Discrete(num_steps=50)
    one = jnp.float32(1.0)
    a, s = float(process.alpha(one)), float(process.sigma(one))
    z = np.linspace(-8, 8, 4001)
    q = lambda m, s: np.exp(-0.5 * ((z - m) / s) ** 2) / (s * np.sqrt(2 * np.pi))  # noqa: E731
    expected = sum(np.trapezoid(q(a * v, s) * np.log(q(a * v, s) / q(0, 1)), z) for v in (0.9, -0.3))
    bound = run(process)
    np.testing.assert_allclose(bound.prior, expected, rtol=1e-4)
    assert bound.diffusion == 0


def test_random_environment_agrees_with_its_density():
    """rho integrates to 1, and with its transition weights gives the mean of any function along the paths."""
    axis = np.linspace(np.log(1e-7), np.log(1e7), 1401)
    depth = np.exp(np.stack(np.meshgrid(axis, axis, indexing="ij")))
    with np.errstate(under="ignore"):
        t, rest = -np.expm1(-depth), np.exp(-depth)
    total, s = depth.sum(0), (rest * depth).sum(0)
    # rho(t) dt, with dt_i = (1 - t_i) l_i d(log l_i); R = prod (1 - t_i) cancels
    mass = s / (2 * total**2) * depth.prod(0) * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(mass.sum(), 1.0, rtol=2e-3)

    def f(t):  # per cell; symmetric in nothing
        return np.stack([t[0] * (1 + t[1] ** 2), 3 * t[1] * (1 - t[0] * t[1])])

    share = np.where(s > 0, rest * depth / np.where(s > 0, s, 1), 0)
    expected = 2 * (mass * (share * f(t)).sum(0)).sum()
    n, log_range = 200_000, float(np.log(1e4))
    u = (jnp.arange(n) + 0.5) / n
    field, count = jax.jit(lambda k, u: RandomEnvironment((1, 2))(k, u, log_range))(
        jax.random.split(jax.random.key(0), n), u
    )
    field, count = (np.asarray(a, np.float64)[:, 0, :, 0].T for a in (field, count))
    # along dt = t d(log t)
    got = (count * field * f(field)).sum(0)
    assert abs(got.mean() - expected) < 4 * got.std() / np.sqrt(n) + 2e-3 * expected
    assert got.std() / np.sqrt(n) < 0.01 * expected


@pytest.mark.parametrize("path", [*PATHS, Raster((2, 3)), RandomEnvironment((1, 1))], ids=repr)
def test_paths_count_each_cells_log_time_once(path):
    """With the integrand 1 every cell counts the whole range; fields are times; one cell is ordinary diffusion."""
    assert isinstance(path, Path)
    keys, u = jax.random.split(jax.random.key(0), 60_000), (jnp.arange(60_000) + 0.5) / 60_000
    t, count = jax.jit(lambda keys, u: path(keys, u, 3.0))(keys, u)
    t = timefield.dense(t)
    assert ((t >= 0) & (t <= 1)).all()
    assert (count >= 0).all()
    assert (t[count > 0] >= np.exp(-3) * (1 - 1e-6)).all()
    np.testing.assert_allclose(count.mean(0), 3.0, rtol=0.03)


def test_raster_goes_row_by_row_from_noise_to_data():
    """As in generation: cell k of 6 comes down from 1 while 6 u goes from k to k + 1."""
    u = jnp.array([0.0, 0.5, 1.9, 5.999]) / 6
    t, count = Raster((2, 3))(jax.random.split(jax.random.key(0), 4), u, 2.0)
    t = timefield.dense(t)
    e = np.exp
    expected = [[1, 1, 1, 1, 1, 1], [e(-1), 1, 1, 1, 1, 1], [0, e(-1.8), 1, 1, 1, 1], [0, 0, 0, 0, 0, e(-2)]]
    np.testing.assert_allclose(t.reshape(4, 6), expected, rtol=3e-3)
    np.testing.assert_array_equal((count > 0).reshape(4, 6).argmax(1), [0, 0, 1, 5])
    np.testing.assert_allclose(count.sum((1, 2, 3)), 12.0)


def test_edges_of_the_unit_interval_are_finite():
    for path in PATHS:
        for u in (0.0, 1.0 - 2.0**-24):
            keys = jax.random.split(jax.random.key(0), 8)
            t, count = jax.jit(lambda keys, u, path=path: path(keys, u, 7.0))(keys, jnp.full((8,), u))
            t = timefield.dense(t)
            assert jnp.isfinite(t).all()
            assert jnp.isfinite(count).all()


def test_an_image_does_not_depend_on_its_batch():
    data = gaussian((2, 2, 1))
    x0, keys = data.draw(jax.random.key(1), 4), jax.random.split(jax.random.key(2), 4)
    moments = jnp.float32(data.mean), jnp.float32(data.cov)
    run = partial(estimate, process=RectifiedFlow(), path=PATHS[2], num_samples=4)
    for a, b in zip(run(keys, x0, *moments), run(keys[1:3], x0[1:3], *moments), strict=True):
        np.testing.assert_allclose(a[1:3], b, rtol=1e-5)


def test_bits():
    np.testing.assert_allclose(bits_per_dim(jnp.array([64 * np.log(2)]), (8, 8, 1)), 1.0, rtol=1e-6)


def test_mistakes_are_named():
    data = gaussian((2, 2, 1))
    x0 = data.draw(jax.random.key(1), 2)
    run = partial(elbo, jax.random.key(0), x0, data.denoiser(Cosine()), Cosine())
    with pytest.raises(ValueError, match="even number"):
        run(Diagonal(), num_samples=3)
    with pytest.raises(ValueError, match="t_min"):
        run(Diagonal(), num_samples=2, t_min=0.0)
    with pytest.raises(ValueError, match="levels"):
        run(Diagonal(), num_samples=2, levels=1)
    with pytest.raises(ValueError, match="tiles 2x2"):
        run(Raster((3, 1)), num_samples=2)
