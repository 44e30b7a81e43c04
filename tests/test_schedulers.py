"""scheduler_config.json: grids, times and whole runs against diffusers' schedulers."""

import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.pretrained.folders.schedulers import from_config, notes
from asyncpatch_jax.process import RectifiedFlow, predict
from asyncpatch_jax.sampling import loop
from asyncpatch_jax.sampling.schedules.grids import Synchronous
from asyncpatch_jax.sampling.solvers import DDIM, Euler
from asyncpatch_jax.types import Prediction

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
SHAPE = (2, 4, 6, 3)


def _ddim(**settings):
    return diffusers.DDIMScheduler(**{**STABLE_DIFFUSION, **settings})


def _ours(theirs, **more):
    return from_config({"_class_name": type(theirs).__name__, **theirs.config}, **more)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 4, 7, 50])
def test_levels_are_ddims(spacing, steps):
    theirs = _ddim(timestep_spacing=spacing, steps_offset=1)
    theirs.set_timesteps(steps)
    ours = _ours(theirs)
    grid = ours.grid(steps)
    assert grid.shape == (steps + 1,)
    assert grid.dtype == jnp.float32
    # exactly: what the network is told is a whole number
    assert ours.timestep(grid[:-1]).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize(
    ("to_one", "offset", "end"), [(True, 0, 0.0), (False, 0, 0.01), (False, 1, 0.01), (True, 1, 0)]
)
def test_the_last_move(to_one, offset, end):
    theirs = _ddim(num_train_timesteps=100, set_alpha_to_one=to_one, steps_offset=offset)
    assert _ours(theirs).grid(10)[-1] == pytest.approx(end)


def test_clean_data_is_told_the_first_level():
    assert _ours(_ddim()).timestep(jnp.asarray([0.0, 0.0005, 0.001, 0.0025, 1.0])).tolist() == [0, 0, 0, 1.5, 999]


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_other_samplers_of_the_same_process(name):
    """On DDIM's grid; what is not set is as the named class has it."""
    theirs = getattr(diffusers, name)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ddim = _ddim(timestep_spacing=theirs.config.timestep_spacing)
    ddim.set_timesteps(5)
    full, bare = _ours(theirs), from_config({"_class_name": name, "beta_start": 0.00085, "beta_end": 0.012})
    assert full.timestep(full.grid(5)[:-1]).tolist() == ddim.timesteps.tolist()
    np.testing.assert_array_equal(full.grid(5), bare.grid(5))


SOLVERS = [
    "UniPCMultistepScheduler", "DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler",
    "LMSDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler",
]  # fmt: skip


@pytest.mark.parametrize("name", SOLVERS)
def test_what_a_solver_does_not_say_is_its_class_s(name, monkeypatch):
    """The levels of the process itself, from settings that leave out all and from diffusers' own, written out."""
    solver = getattr(diffusers, name)
    place = solver.set_timesteps  # of 1,000 steps at first, which takes two seconds
    monkeypatch.setattr(solver, "set_timesteps", lambda self, steps, *more, **named: place(self, 10, *more, **named))
    theirs = solver()
    for ours in (_ours(theirs), from_config({"_class_name": name})):
        t = jnp.arange(1, 1001, dtype=jnp.float32) / 1000
        np.testing.assert_allclose(ours.process.alpha(t) ** 2, theirs.alphas_cumprod.numpy(), rtol=2e-5)
        assert ours.spaced.spacing == theirs.config.get("timestep_spacing", "linspace")
    (note,) = notes({"_class_name": name})
    assert note.startswith(
        f"{name} is a solver: its process is sampled by the solver that is asked for, at DDIM's times"
    )


@pytest.mark.parametrize(
    "setting", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"]
)
def test_where_another_solver_steps_is_noted(setting):
    plain = {"_class_name": "DPMSolverMultistepScheduler"}
    assert from_config({**plain, setting: True}) == from_config(plain)
    assert notes({**plain, setting: True})[1:] == [f"{setting} is not followed: it places the steps of another solver"]
    assert notes({"_class_name": "DDIMScheduler", "clip_sample": False, setting: False}) == []


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_flow_times_are_diffusers(dynamic, whole, kind):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=dynamic, time_shift_type=kind, max_image_seq_len=1024
    )
    mu = diffusers.pipelines.flux.pipeline_flux.calculate_shift(600, 256, 1024, 0.5, 1.15)
    sigmas = np.linspace(1.0, 1 / 6, 6) if whole else None
    theirs.set_timesteps(6, sigmas=sigmas, **({"mu": mu} if dynamic else {}))
    ours = _ours(theirs, whole=whole)
    np.testing.assert_allclose(ours.grid(6, tokens=600), theirs.sigmas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.timestep(ours.grid(6, 600)[:-1]), theirs.timesteps.numpy(), rtol=1e-6)
    assert isinstance(ours.process, RectifiedFlow)
    assert ours.kind == "velocity"


def _network(x, t, library):
    """A toy network of image and time, in both libraries."""
    return library.tanh(0.7 * x + 0.3 * library.sin(0.01 * t)) + 0.1 * x


def _run(ours, solver, steps, x, key, tokens=None):
    def denoise(x, times):
        out = _network(x, ours.timestep(times.told), jnp)
        return Prediction(*predict(ours.process, ours.kind, out, x, times.level)[:2], {})

    schedule = Synchronous(ours.grid(steps, tokens))
    return loop.sample(denoise, solver, schedule, key, jnp.asarray(x), num_steps=steps)[0].x


@functools.partial(jax.jit, static_argnums=1)
def _noise(key, steps):
    """The noise that `sample` draws for each step."""
    keys = keys_lib.per_image(key, SHAPE[0])
    of_step = lambda i: keys_lib.split(keys_lib.fold_in(keys, loop._STEP + i), 2)[1]  # noqa: E731
    return jax.vmap(lambda i: keys_lib.normal(of_step(i), SHAPE[1:]))(jnp.arange(steps))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("to_one", [False, True])
def test_a_run_of_ddim(eta, prediction, to_one):
    steps, key = 8, jax.random.key(3)
    theirs = _ddim(prediction_type=prediction, steps_offset=1, set_alpha_to_one=to_one)
    theirs.set_timesteps(steps)
    start = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    x = torch.from_numpy(start)
    for t, noise in zip(theirs.timesteps, np.asarray(_noise(key, steps)), strict=True):
        x = theirs.step(_network(x, t, torch), t, x, eta=eta, variance_noise=torch.tensor(noise)).prev_sample
    ours = _ours(theirs)
    np.testing.assert_allclose(_run(ours, DDIM(ours.process, eta), steps, start, key), x, rtol=2e-4, atol=2e-4)


def test_a_run_of_ddim_from_zero_signal():
    theirs = _ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    theirs.set_timesteps(5)
    start = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    x = torch.from_numpy(start)
    for t in theirs.timesteps:
        x = theirs.step(_network(x, t, torch), t, x).prev_sample
    ours = _ours(theirs)
    np.testing.assert_allclose(_run(ours, DDIM(ours.process), 5, start, jax.random.key(0)), x, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_run_of_flow_match_euler(dynamic):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    theirs.set_timesteps(6, **({"mu": 0.5} if dynamic else {}))
    start = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    x = torch.from_numpy(start)
    for t in theirs.timesteps:
        x = theirs.step(_network(x, t, torch), t, x).prev_sample
    ours = _ours(theirs)
    np.testing.assert_allclose(
        _run(ours, Euler(ours.process), 6, start, jax.random.key(0), tokens=256), x, rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_class_name": "EDMEulerScheduler"},
            "expected a scheduler out of DDIMScheduler, .*EDMEulerScheduler",
        ),
        ({"_class_name": "DDIMScheduler"}, "expected clip_sample = False"),
        ({"_class_name": "PNDMScheduler", "trained_betas": [0.1]}, "expected trained_betas = None"),
        (
            {"_class_name": "PNDMScheduler", "beta_schedule": "sigmoid"},
            "beta_schedule as one of 'linear', .* got 'sigmoid'",
        ),
        (
            {"_class_name": "PNDMScheduler", "prediction_type": "flow_prediction"},
            "prediction_type as one of 'epsilon', .* got 'flow_prediction'",
        ),
        (
            {"_class_name": "PNDMScheduler", "timestep_spacing": "karras"},
            "timestep_spacing as one of 'leading', .* got 'karras'",
        ),
        ({"_class_name": "PNDMScheduler", "surprise": 3}, "unknown setting surprise = 3"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "expected invert_sigmas"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0.0},
            "shift as float > 0.0 in the scheduler_config.json of FlowMatchEulerDiscreteScheduler, got 0.0",
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "time_shift_type": "cubic"}, "time_shift_type as one of"),
    ],
)
def test_what_is_not_implemented_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        from_config(config)


def test_impossible_runs_are_refused():
    leveled = _ours(_ddim(num_train_timesteps=10, steps_offset=1))
    with pytest.raises(ValueError, match="expected 1 to 10 steps, got 11"):
        leveled.grid(11)
    with pytest.raises(ValueError, match="10 begin above 9"):
        leveled.grid(10)
    flow = from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True})
    with pytest.raises(ValueError, match="number of tokens"):
        flow.grid(4)
    with pytest.raises(ValueError, match="one step or more"):
        flow.grid(0, tokens=16)
