"""Solvers against exact trajectories, exact variances, and the schedulers of PyTorch diffusers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import timefield
from asyncpatch_jax.process import Cosine, Discrete, RectifiedFlow, diffuse, predict, renoise
from asyncpatch_jax.sampling import DDIM, DDPM, DPMSolver2M, Euler, Heun, Synchronous, Table, linear, sample, start
from asyncpatch_jax.types import Prediction, Times
from tests import drawn
from tests.oracles import gaussian

PROCESSES = (RectifiedFlow(), Cosine(), Discrete())
SOLVERS = (DDIM, DDPM, Euler, Heun, DPMSolver2M)
SHAPE = (2, 2, 1)


def paths(n):
    """Runs of a 2x2 field in n steps (n a multiple of 8), as functions of progress s: together, delayed, paused."""
    s = np.linspace(0, 1, n + 1)
    together = np.stack([1 - s] * 4, -1)
    delayed = np.stack([1 - np.clip((s - d) / (1 - d), 0, 1) for d in (0, 0.25, 0.5, 0.5)], -1)
    stops = ([0, 1], [0, 0.5, 0.75, 1], [0, 0.25, 0.5, 1], [0, 0.125, 0.625, 1])
    values = ([1, 0], [1, 0.4, 0.4, 0], [1, 0.7, 0.7, 0], [1, 0.8, 0.8, 0])
    paused = np.stack([np.interp(s, *pair) for pair in zip(stops, values, strict=True)], -1)
    return {"together": together, "delayed": delayed, "paused": paused}


def logsnr_paths(n):
    """The same, smooth in log-SNR, as multistep methods want it: from 1 to 0 on linear times they lose a logarithm."""
    return {name: 1 / (1 + np.exp(3 - 6 * levels)) for name, levels in paths(n).items()}


def reference(data, process, levels, x):
    """The probability-flow ODE along a field's path, in float64 by Runge-Kutta of order 4."""

    def rates(t):
        if isinstance(process, RectifiedFlow):
            return 1 - t, t, -np.ones_like(t), np.ones_like(t)
        s, c = np.sin(np.pi * t / 2), np.sin(np.pi * (1 - t) / 2)
        return c, s, -np.pi / 2 * s, np.pi / 2 * c

    def slope(x, t, speed):
        a, s, da, ds = rates(np.maximum(t, 1e-7))
        joint = a[:, None] * data.cov * a[None, :] + np.diag(s**2)
        x0 = data.mean + np.linalg.solve(joint, (x - a * data.mean).T).T @ (data.cov * a[None, :]).T
        return speed * (da * x0 + ds * (x - a * x0) / s)

    for t, t_next in itertools.pairwise(levels):
        v = t_next - t
        k1 = slope(x, t, v)
        k2 = slope(x + k1 / 2, t + v / 2, v)
        k3 = slope(x + k2 / 2, t + v / 2, v)
        x = x + (k1 + 2 * k2 + 2 * k3 + slope(x + k3, t_next, v)) / 6
    return x


@pytest.mark.parametrize(
    ("solver", "order", "paths"),
    [
        (DDIM(RectifiedFlow()), 1, paths),  # Euler is the same there
        (DDIM(Cosine()), 1, paths),
        (Euler(Cosine()), 1, paths),
        (Heun(RectifiedFlow()), 2, paths),
        (Heun(Cosine()), 2, paths),
        (DPMSolver2M(RectifiedFlow()), 2, logsnr_paths),
        (DPMSolver2M(Cosine()), 2, logsnr_paths),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_order_of_convergence_of_every_cell(solver, order, paths):
    process = solver.process
    data = gaussian(SHAPE)
    x = drawn.normal(4, *SHAPE)

    @functools.partial(jax.jit, static_argnames="n")
    def run(levels, n):
        end, _ = sample(data.denoiser(process), solver, Table(levels), jax.random.key(0), x, num_steps=n)
        return end.x

    exact = {
        name: reference(data, process, levels, np.asarray(x, np.float64).reshape(4, -1))
        for name, levels in paths(512).items()
    }
    for name in exact:
        error = []
        for n in (32, 64):
            levels = paths(n)[name].astype(np.float32).reshape(n + 1, 1, 2, 2)
            error.append(np.abs(np.asarray(run(levels, n)).reshape(4, -1) - exact[name]).max())
        measured = np.log2(error[0] / error[1])
        assert order - 0.2 < measured < order + 0.9, (name, error)


def test_ancestral_variance_is_that_of_the_exact_posterior_chain():
    # Gaussian data of variance v: every step is linear, so the variance of the chain is a recursion. It falls short of
    # v by a share that halves with the step size; the variance-preserving formula for s would lose it with the root
    v, process = 0.5, RectifiedFlow()

    def denoise(x, times):
        t = timefield.like(times.level, x)
        x0 = (1 - t) * v / ((1 - t) ** 2 * v + t**2) * x
        return Prediction(x0, jnp.where(t == 0, 0.0, (x - (1 - t) * x0) / jnp.where(t == 0, 1.0, t)), {})

    def chain(n):
        variance = 1.0
        for t, t_next in itertools.pairwise(np.linspace(1, 0, n + 1)):
            # q(x' | x, x0) by Bayes' rule from x' ~ N(a' x0, t'^2) and x | x' ~ N(r x', w)
            a, a_next = 1 - t, 1 - t_next
            r, gain = a / a_next, a * v / (a * a * v + t * t)
            w = t**2 - (r * t_next) ** 2
            s2 = t_next**2 * w / (w + r**2 * t_next**2)
            from_x, from_x0 = s2 * r / w, 1 - s2 * r**2 / w
            variance = (from_x + from_x0 * a_next * gain) ** 2 * variance + s2
        return variance

    x = drawn.normal(64, 16, 16, 1, seed=1)
    for n in (8, 32):
        end, _ = jax.jit(
            lambda n: sample(denoise, DDPM(process), Synchronous(linear(n)), jax.random.key(0), x, num_steps=n),
            static_argnums=0,
        )(n)
        assert np.var(np.asarray(end.x)) == pytest.approx(chain(n), rel=0.04)
    loss = [1 - chain(n) / v for n in (64, 256, 1024)]
    assert 3 < loss[0] / loss[1] < 4.2
    assert 3.5 < loss[1] / loss[2] < 4.2


def noisy(x, times):
    """A denoiser without structure, elementwise, whose answers are consistent with no data at all."""
    t = timefield.like(times.told, x)
    return Prediction(jnp.sin(3 * x) + t, jnp.cos(5 * x) - t, {})


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("make", SOLVERS, ids=lambda s: s.__name__)
def test_a_clean_image_goes_up_with_all_its_noise(make, process):
    """One step from t = 0 to .5 with a given noise is `diffuse`: a clean image holds none that could be scaled."""
    x0, eps = jnp.full((1, 2, 2, 1), 0.8), jnp.ones((1, 2, 2, 1))
    low, high = (timefield.constant(t, 1) for t in (0.0, 0.5))
    solver, given = make(process), Prediction(x0, eps, {})
    keys = keys_lib.per_image(jax.random.key(0), 1)
    step = solver.step(lambda x, times: given, given, x0, Times(low, low), Times(high, high), keys, solver.init(x0))
    np.testing.assert_allclose(step[0], diffuse(process, x0, eps, high), rtol=1e-5)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("make", SOLVERS, ids=lambda s: s.__name__)
def test_held_cells_are_bit_identical_and_nothing_is_infinite(make, process):
    levels = np.float32(
        [[0, 1, 1, 0.5], [0, 1, 0, 0.5], [0, 0.6, 0, 0.2], [0, 0.6, 0, 0.2], [0, 0.7, 0, 0], [0, 0, 0, 0]]
    ).reshape(6, 1, 2, 2)

    @jax.jit
    def run(known, levels):
        schedule = Table(levels)
        x = start(process, schedule, jax.random.key(1), known)
        return sample(noisy, make(process), schedule, jax.random.key(0), x, num_steps=5, trace=lambda state, _: state.x)

    end, xs = jax.device_get(run(drawn.normal(3, 4, 4, 2), levels))
    xs = np.concatenate([xs, end.x[None]])
    assert np.isfinite(xs).all()
    fields = levels.repeat(2, 2).repeat(2, 3)[..., None]
    for k in range(5):
        held = np.broadcast_to(fields[k] == fields[k + 1], xs[k].shape)
        assert (xs[k][held] == xs[k + 1][held]).all()
        assert (xs[k][~held] != xs[k + 1][~held]).all()


@pytest.mark.parametrize("make", [DDIM, Euler, DPMSolver2M], ids=lambda s: s.__name__)
def test_moves_to_zero_and_first_moves_from_pure_noise_are_exact(make):
    @functools.partial(jax.jit, static_argnums=0)
    def run(process, x):
        solver = make(process)
        times = [Times(t, t) for t in (timefield.constant(t, 2) for t in (1.0, 0.7, 0.0))]
        pred = predict(process, "v", jnp.sin(x), x, times[0].level)
        keys = keys_lib.per_image(jax.random.key(0), 2)
        to_zero, moved = (solver.step(noisy, pred, x, times[0], times[k], keys, solver.init(x))[0] for k in (2, 1))
        a, s = process.alpha(jnp.float32(0.7)), process.sigma(jnp.float32(0.7))
        return pred.x0, to_zero, moved, a * pred.x0 + s * pred.eps

    for process in PROCESSES:
        x0, to_zero, moved, expected = run(process, drawn.normal(2, 2, 2, 1))
        np.testing.assert_allclose(to_zero, x0, rtol=1e-5, atol=1e-6)
        if make is not Euler or isinstance(process, RectifiedFlow):
            np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-5)


def test_multistep_starts_afresh_after_a_pause():
    process = RectifiedFlow()
    solver, ddim = DPMSolver2M(process), DDIM(process)
    x = drawn.normal(1, 1, 3, 1)
    keys = keys_lib.per_image(jax.random.key(0), 1)
    # the first cell moves all the time, the second pauses, the third wakes up at last
    levels = [[0.9, 0.9, 0.9], [0.8, 0.8, 0.9], [0.6, 0.8, 0.9], [0.5, 0.7, 0.8]]
    fields = [jnp.asarray(row, jnp.float32).reshape(1, 1, 3, 1) for row in levels]
    carry = solver.init(x)
    for k, (t, t_next) in enumerate(itertools.pairwise(fields)):
        x0 = jnp.sin(3 * x) + k  # the others move on, so that a waiting cell's prediction changes too
        pred = Prediction(x0, (x - (1 - t) * x0) / t, {})
        first, _ = ddim.step(noisy, pred, x, Times(t, t), Times(t_next, t_next), keys, None)
        second, carry = solver.step(noisy, pred, x, Times(t, t), Times(t_next, t_next), keys, carry)
        x = jnp.where(t == t_next, x, second)
    same = np.isclose(first, second, rtol=1e-5, atol=1e-6).reshape(-1)
    assert same.tolist() == [False, True, True]


def test_renoising_is_the_forward_process():
    x0, eps, more = jax.random.normal(jax.random.key(0), (3, 1, 1, 3, 1))
    t = jnp.asarray([0.0, 0.4, 0.6], jnp.float32).reshape(1, 1, 3, 1)
    t_next = jnp.asarray([0.5, 0.9, 0.3], jnp.float32).reshape(1, 1, 3, 1)
    for process in PROCESSES:

        def at(x, eps, process=process):
            return renoise(process, x, eps, t, t_next)

        x = process.alpha(t) * x0 + process.sigma(t) * eps
        zero = jnp.zeros_like(x)
        of_data, of_noise = at(process.alpha(t) * x0, zero) / x0, at(process.sigma(t) * eps, zero) / eps
        fresh = at(zero, more) / more
        up = np.asarray([True, True, False]).reshape(1, 1, 3, 1)
        np.testing.assert_allclose(of_data[up], process.alpha(t_next)[up], rtol=1e-5)
        np.testing.assert_allclose((of_noise**2 + fresh**2)[up], process.sigma(t_next)[up] ** 2, rtol=1e-5)
        assert (at(x, more)[~up] == x[~up]).all()


# ------------------------------------------------------------------------------------------- PyTorch diffusers
STEPS, IMAGE = 7, (2, 4, 4, 3)


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def outputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(STEPS + 1, *IMAGE)).astype(np.float32)


def ours(solver, process, kind, grid, outputs):
    """Our run with given network outputs, and the noise that each step drew."""
    x, carry, noise = jnp.asarray(outputs[-1]), solver.init(jnp.asarray(outputs[-1])), []
    for k in range(STEPS):
        t, t_next = (timefield.constant(float(grid[j]), IMAGE[0]) for j in (k, k + 1))
        keys = keys_lib.per_image(jax.random.key(k), IMAGE[0])
        noise.append(np.asarray(keys_lib.normal(keys, IMAGE[1:])))
        pred = predict(process, kind, jnp.asarray(outputs[k]), x, t)
        x, carry = solver.step(noisy, pred, x, Times(t, t), Times(t_next, t_next), keys, carry)
    return np.asarray(x), noise


def theirs(scheduler, outputs, **extra):
    import torch

    x = torch.from_numpy(outputs[-1])
    for k, t in enumerate(scheduler.timesteps):
        more = {
            name: torch.from_numpy(value[k].copy()) if isinstance(value, list) else value
            for name, value in extra.items()
        }
        x = scheduler.step(torch.from_numpy(outputs[k]), t, x, **more).prev_sample
    return x.numpy()


def stable_diffusion_grid(scheduler):
    return [(int(t) + 1) / 1000 for t in scheduler.timesteps] + [0.0]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_that_of_diffusers(diffusers, outputs, eta):
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True
    )
    # diffusers counts back by 1000 // steps, so only such timesteps are a grid
    scheduler.set_timesteps(STEPS)
    mine, noise = ours(DDIM(Discrete(), eta), Discrete(), "eps", stable_diffusion_grid(scheduler), outputs)
    np.testing.assert_allclose(mine, theirs(scheduler, outputs, eta=eta, variance_noise=noise), rtol=2e-4, atol=2e-4)


def network(x, t):
    """Of a kind that NumPy and PyTorch have too: noise that depends on the image and the level."""
    return (x * 1.7 + t / 500).sin() if hasattr(x, "sin") else np.sin(x * 1.7 + t / 500)


def replayed(scheduler, noise, x):
    """Our whole run on a scheduler's levels with the noise that another implementation drew."""

    def denoise(x, times):
        eps = jnp.sin(x * 1.7 + (times.told * 1000 - 1) / 500)
        return predict(Discrete(), "eps", eps, x, times.level)

    grid = jnp.asarray(stable_diffusion_grid(scheduler), jnp.float32)
    key = jax.random.key(5)  # of no use
    return sample(denoise, DDPM(Discrete()), Synchronous(grid), key, x, num_steps=STEPS, noise=noise)[0].x


def test_a_recorded_run_of_diffusers_is_replayed(diffusers, outputs):
    import torch

    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(STEPS)
    x = torch.from_numpy(outputs[-1].copy())
    for k, t in enumerate(scheduler.timesteps):
        drawn = torch.from_numpy(outputs[k].copy())
        x = scheduler.step(network(x, int(t)), t, x, eta=1.0, variance_noise=drawn).prev_sample
    mine = replayed(scheduler, jnp.asarray(outputs[:-1]), jnp.asarray(outputs[-1]))
    np.testing.assert_allclose(mine, x.numpy(), rtol=1e-3, atol=1e-3)
    # and the formula alone, in NumPy
    bars = np.append(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2), 1.0)
    x, levels = outputs[-1].astype(np.float64), [*scheduler.timesteps.tolist(), -1]
    for k, (t, after) in enumerate(itertools.pairwise(levels)):
        a, b = bars[t], bars[after]
        eps = network(x, t)
        spread = (1 - b) / (1 - a) * (1 - a / b)
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        x = np.sqrt(b) * x0 + np.sqrt(1 - b - spread) * eps + np.sqrt(spread) * outputs[k]
    np.testing.assert_allclose(mine, x, rtol=1e-3, atol=1e-3)


def test_dpm_solver_is_that_of_diffusers(diffusers, outputs):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(STEPS)
    mine, _ = ours(DPMSolver2M(Discrete()), Discrete(), "eps", stable_diffusion_grid(scheduler), outputs)
    np.testing.assert_allclose(mine, theirs(scheduler, outputs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", [Euler(RectifiedFlow()), DDIM(RectifiedFlow())], ids=["euler", "ddim"])
def test_euler_is_that_of_diffusers(diffusers, outputs, solver):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    grid = scheduler.sigmas.numpy()
    mine, _ = ours(solver, RectifiedFlow(), "velocity", grid, outputs)
    np.testing.assert_allclose(mine, theirs(scheduler, outputs), rtol=1e-5, atol=1e-5)


def test_negative_eta_is_refused():
    with pytest.raises(ValueError, match="expected eta >= 0"):
        DDIM(RectifiedFlow(), -1.0)
