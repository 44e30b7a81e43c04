"""Schedules that deviate from the image's times: their formulas, and no deviation is the base, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import beta, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.denoiser import bind
from asyncpatch_jax.models import TPM, DiT, UNet
from asyncpatch_jax.models.tpm import Observation, observe
from asyncpatch_jax.pretrained import binding
from asyncpatch_jax.pretrained.folders import schedulers
from asyncpatch_jax.pretrained.networks import flux, sd3
from asyncpatch_jax.process import Cosine, Discrete, RectifiedFlow, output, predict, scale_velocity
from asyncpatch_jax.sampling import (
    DDIM,
    Autoregressive,
    Concave,
    ConstantDeviation,
    DPMSolver2M,
    Euler,
    Fixed,
    Graded,
    Heun,
    Inpaint,
    Synchronous,
    Table,
    TPMSchedule,
    ZSampling,
    classifier_free,
    deviation,
    input_guidance,
    linear,
    look_ahead,
    one_call,
    raster,
    sample,
    shifted,
)
from asyncpatch_jax.types import Condition, FewTimes, Prediction
from tests.drawn import params_like

FLOW = RectifiedFlow()
STEPS = 4
GRID = np.asarray(shifted(STEPS, 3.0))
SIZE = (8, 8, 2)
MASK = np.zeros((1, 4, 4, 1), np.float32)
MASK[:, 1:, 2:] = 1.0
TPM_SETTINGS = {"patch": 2, "width": 8, "depth": 1, "heads": 2, "mlp_ratio": 1, "global_tokens": 2}
KEYS = keys_lib.per_image(jax.random.key(0), 4)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomised(module, *args):
    """Parameters that are random everywhere."""
    return params_like(jax.eval_shape(module.init, jax.random.key(0), *args)["params"])


@functools.cache
def network(name):
    """(module, parameters), which answer to a class."""
    common = {"num_classes": 3}
    module = {
        "unet": UNet(base=8, multipliers=(1, 2), blocks=1, attention=(), head_dim=4, **common),
        "dit": DiT(patch=2, width=16, depth=1, heads=2, **common),
    }[name]
    cond = Condition(label=np.zeros(1, np.int32))
    return module, randomised(module, np.zeros((1, *SIZE), np.float32), np.zeros((1, 1, 1, 1), np.float32), cond)


@functools.cache
def denoiser(name, batch=2):
    """Under classifier-free guidance."""
    module, params = network(name)
    label = jax.device_put(np.stack([np.arange(batch) % 3, np.full(batch, 3)], 1).reshape(-1).astype(np.int32))
    both = bind(module, params, FLOW, "velocity", Condition(label=label))
    return classifier_free(one_call(both, batch), 2.0)


@functools.cache
def toy(process=FLOW):
    """A denoiser without a network that reads what it is told."""

    def denoise(x, times):
        told = timefield.dense(times.told)
        out = jnp.sin(x) + timefield.like(jnp.broadcast_to(told, (x.shape[0], *told.shape[1:])), x)
        pred = predict(process, "v", out, x, times.level)
        if times.gain is not None:
            pred = scale_velocity(process, pred, times.gain, times.level)
        return pred._replace(aux={"log_variance": jnp.abs(x[..., :1])})

    return denoise


@functools.cache
def program(denoise, solver, exact):
    """One for all schedules of the same structure; an exact one as users compile, for tests' emitters round fusions."""

    @functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True} if exact else None)
    def go(schedule, keys, x):
        def trace(state, pred):
            return state.times._replace(told=timefield.dense(state.times.told)), state.schedule

        state, traced = sample(denoise, solver, schedule, keys, x, num_steps=schedule.num_steps, trace=trace)
        return state.x, *traced

    return go


def run(schedule, denoise=None, solver=None, keys=KEYS[:2], x=None, exact=False):
    """(last image, times of each call, what the schedule remembered before it); numbers become traced arrays."""
    schedule = jax.tree.map(lambda leaf: np.float32(leaf) if isinstance(leaf, float) else leaf, schedule)
    x = normal(len(keys), *SIZE) if x is None else x
    return jax.tree.map(np.asarray, program(denoise or toy(), solver or Euler(FLOW), exact)(schedule, keys, x))


@functools.cache
def plain(base):
    """The run of a schedule as it is."""
    return run(BASES[base])


def told_by_the_paper(grid, rho, gain=1.0):
    """METHODS: t*_{k+1} = max(sigma_min, t_k + (1 + gain (rho_k - .5)) (t_{k+1} - t_k)), and t*_0 = t_0."""
    grid = np.asarray(grid, np.float64)
    told = [grid[0]]
    for k in range(len(grid) - 2):
        told.append(np.clip(grid[k] + (1 + gain * (rho[k] - 0.5)) * (grid[k + 1] - grid[k]), 1e-3, 1))
    return np.array(told)


RHO = np.array([0.9, 0.1, 0.7, 0.3], np.float32)


@pytest.mark.parametrize("gain", [1.0, 0.5, 2.0, 3.0])
def test_what_is_told_is_the_papers_formula(gain):
    _, times, carry = run(ConstantDeviation(Synchronous(GRID), RHO, gain))
    expected = told_by_the_paper(GRID, RHO, gain)
    np.testing.assert_allclose(times.told[:, 0, 0, 0, 0], expected, rtol=1e-5)
    assert (times.level[:, 0, 0, 0, 0] == GRID[:-1]).all()
    np.testing.assert_array_equal(carry.acts[:, 0, 0, 0], [0, 1, 1, 1])


def test_the_lifted_bound_is_twice_the_deviation():
    """With 2 rho in place of .5 + rho: rho = 1 tells two whole steps ahead, rho = 0 nothing new."""
    grid = np.asarray(GRID, np.float64)
    lifted = [grid[k] + 2 * RHO[k] * (grid[k + 1] - grid[k]) for k in range(STEPS - 1)]
    np.testing.assert_allclose(told_by_the_paper(GRID, RHO, 2.0)[1:], lifted, rtol=1e-6)
    _, times, _ = run(ConstantDeviation(Synchronous(GRID), 0.0, 2.0))
    np.testing.assert_allclose(times.told[1:, 0, 0, 0, 0], grid[:-2], rtol=1e-6)


def test_bounds():
    """Never above 1, and no less than 1e-3, but where the image itself is less noisy than that."""
    _, times, _ = run(ConstantDeviation(Synchronous(np.float32([1.0, 0.3, 2e-3, 5e-4, 0.0])), 1.0, 4.0))
    np.testing.assert_allclose(times.told[:, 0, 0, 0, 0], [1.0, 1e-3, 1e-3, 5e-4], rtol=1e-6)
    _, times, _ = run(ConstantDeviation(Synchronous(GRID), 0.0, 6.0))
    np.testing.assert_array_equal(times.told[1, :, 0, 0, 0], 1.0)


def half(schedule, space="time"):
    return ConstantDeviation(schedule, 0.5, 1.7, space=space)


BASES = {
    "synchronous": Synchronous(GRID),
    "inpainting": Inpaint(MASK, GRID),
    "graded": Graded(MASK * np.linspace(0.4, 1.0, 4, dtype=np.float32).reshape(1, 1, 4, 1), GRID),
    "autoregressive": Autoregressive(raster((2, 2)), linear(2), 4),
    "concave": Concave(GRID, np.float32(0.7), Fixed(MASK), (4, 4), shift=3.0, text_time="masked"),
}


def bit_equal(base, denoise, solver, spaces):
    own, *_ = run(BASES[base], denoise, solver, exact=True)
    assert np.isfinite(own).all()
    for space in spaces:
        image, *_ = run(half(BASES[base], space), denoise, solver, exact=True)
        np.testing.assert_array_equal(image, own)
        other, *_ = run(half(BASES[base], space).replace(rho=0.8), denoise, solver, exact=True)
        assert not np.array_equal(other, own)


@pytest.mark.parametrize(
    ("name", "base", "solver", "space"),
    [
        ("unet", "inpainting", DDIM(FLOW, 1.0), "time"),
        ("dit", "synchronous", Heun(FLOW), "time"),
        ("dit", "graded", DPMSolver2M(FLOW), "velocity"),
    ],
)
def test_no_deviation_of_a_network_is_the_base_bit_for_bit(name, base, solver, space):
    bit_equal(base, denoiser(name), solver, [space])


@pytest.mark.parametrize(
    ("base", "solver", "spaces"),
    [
        ("inpainting", Heun(Cosine()), ["time", "velocity"]),
        ("concave", ZSampling(FLOW, toy(FLOW), STEPS - 1), ["time"]),
        ("autoregressive", DPMSolver2M(Discrete()), ["velocity"]),
    ],
)
def test_no_deviation_is_the_base_bit_for_bit(base, solver, spaces):
    bit_equal(base, toy(solver.process), solver, spaces)


def test_guidance_by_context_passes_on_the_gain():
    """Look-ahead over input guidance, whose copies have the gain of their image; at no guidance, it is no other run."""

    @functools.cache
    def guided(scale):
        hinted = input_guidance(toy(), FLOW, "velocity", jax.device_put(MASK), jax.random.key(4), scale)
        return look_ahead(hinted, FLOW, (2, 2)) if scale else hinted

    base = BASES["inpainting"]
    image, own = (run(schedule, guided(1.0))[0] for schedule in (half(base, "velocity"), base))
    np.testing.assert_allclose(image, own, rtol=1e-5, atol=1e-6)
    deviating = half(base, "velocity").replace(rho=0.9)
    assert not np.allclose(run(deviating, guided(1.0))[0], own, atol=1e-3)
    np.testing.assert_allclose(run(deviating, guided(0.0))[0], run(deviating)[0], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("space", ["time", "velocity"])
def test_known_cells_stay_and_are_told_so(space):
    x = normal(2, *SIZE, seed=8)
    image, times, _ = run(ConstantDeviation(BASES["inpainting"], 0.9, space=space), x=x)
    kept = np.broadcast_to(np.kron(MASK, np.ones((1, 2, 2, 1))) == 0, image.shape)
    np.testing.assert_array_equal(image[kept], x[kept])
    assert (image[~kept] != x[~kept]).all()
    index = MASK[0, :, :, 0] == 0
    if space == "velocity":
        assert (times.gain[:, :, index] == 1).all()
        np.testing.assert_allclose(times.gain[1:, :, ~index], 1.4, rtol=1e-6)
    assert (times.told[:, :, index] == 0).all()
    assert ((times.told != times.level)[1:, :, ~index] == (space == "time")).all()


def test_each_cell_deviates_by_its_own_move():
    """Waiting, paused and finished cells are told their own times; each other one between its last level and this."""
    levels = np.array([[1, 1, 0.6, 0], [0.8, 1, 0.6, 0], [0.5, 0.7, 0, 0], [0.5, 0.2, 0, 0], [0, 0, 0, 0]], np.float32)
    _, times, carry = run(ConstantDeviation(Table(levels.reshape(5, 1, 2, 2)), RHO))
    for k in range(3):
        before, after = levels[k], levels[k + 1]
        expected = np.where((after == before) | (after == 0), after, before + (RHO[k] + 0.5) * (after - before))
        np.testing.assert_allclose(times.told[k + 1, 0, ..., 0].ravel(), expected, rtol=1e-6)
    np.testing.assert_array_equal(carry.acts[:, 0, 0, 0], [0, 1, 1, 1])


def test_a_pause_of_the_image_is_no_act_and_scales_nothing():
    levels = np.float32([1.0, 0.6, 0.6, 0.3, 0.0]).reshape(5, 1, 1, 1)
    _, times, carry = run(ConstantDeviation(Table(levels), 0.8, space="velocity"))
    np.testing.assert_array_equal(carry.acts[:, 0, 0, 0], [0, 1, 0, 1])
    np.testing.assert_allclose(times.gain[1:, 0].ravel(), [1.3, 1.0, 1.3], rtol=1e-6)


@pytest.mark.parametrize(
    ("base", "few", "distinct"),
    [("synchronous", False, 1), ("inpainting", True, 2), ("concave", True, 2), ("autoregressive", False, None)],
)
def test_few_times_stay_few_where_no_cell_changes_them(base, few, distinct):
    schedule = ConstantDeviation(BASES[base], 0.8)
    times, _ = jax.eval_shape(schedule.init, KEYS[:2], np.zeros((2, *SIZE), np.float32))
    assert isinstance(times.told, FewTimes) == few
    assert schedule.distinct == distinct
    # scaled velocities leave the times that the network is told as they are, of each cell's own scale too
    scaled = TPMSchedule(BASES[base], TPM(**TPM_SETTINGS, cell=1), None, space="velocity")
    assert scaled.distinct == getattr(BASES[base], "distinct", None)
    level = plain(base)[1].level
    told = run(ConstantDeviation(BASES[base], np.ones(schedule.num_steps, np.float32)))[1].told
    before, after = level[:-1], level[1:]
    expected = np.where((after != before) & (after > 0), np.maximum(1.5 * after - 0.5 * before, 1e-3), after)
    np.testing.assert_allclose(told[1:], np.broadcast_to(expected, told[1:].shape), rtol=1e-5)


def test_text_is_told_a_time_that_deviates_alike():
    own = plain("concave")[1].text
    _, times, _ = run(ConstantDeviation(BASES["concave"], RHO))
    assert (times.text[0] == own[0]).all()
    for k in range(STEPS - 1):
        np.testing.assert_allclose(times.text[k + 1], own[k] + (RHO[k] + 0.5) * (own[k + 1] - own[k]), rtol=1e-5)


def test_a_scaled_velocity_is_the_solvers_longer_step():
    """Euler's x' = x + omega (t' - t) v, written out: what the network is told stays the image's time."""
    image, times, _ = run(ConstantDeviation(Synchronous(GRID), RHO, 2.0, space="velocity"))
    assert (times.told == times.level).all()
    x, grid = np.float64(normal(2, *SIZE)), np.float64(GRID)
    for k, omega in enumerate(np.append(1.0, 2 * RHO[:-1])):
        # of "v" = (1 - t) eps - t x0 and x = (1 - t) x0 + t eps
        t, out = grid[k], np.sin(x) + grid[k]
        velocity = ((t * x + (1 - t) * out) - ((1 - t) * x - t * out)) / (t**2 + (1 - t) ** 2)
        x = x + omega * (grid[k + 1] - t) * velocity
    np.testing.assert_allclose(image, x, rtol=1e-4, atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def scaling(process, x0, eps, gain, t):
    """A prediction and what is made of it: x0, eps, their image and velocity; and the same at gain 1."""

    def parts(pred):
        image = process.alpha(t) * pred.x0 + process.sigma(t) * pred.eps
        return pred.x0, pred.eps, image, output(process, "velocity", pred, t)

    pred = Prediction(x0, eps, {"kept": 3})
    scaled, same = (scale_velocity(process, pred, by, t) for by in (gain, jnp.ones((4, 2, 2, 1))))
    assert scaled.aux == {"kept": 3}
    return parts(pred), parts(scaled), (same.x0, same.eps)


@pytest.mark.parametrize("process", [FLOW, Cosine(), Discrete(), Discrete(zero_snr=True)], ids=str)
def test_scaled_velocities(process):
    """Velocity and x by their definitions where those are finite, and no NaN anywhere."""
    t = np.float32([0.0, 0.25, 0.6, 1.0]).reshape(4, 1, 1, 1)
    x0, eps = normal(2, 4, 4, 4, 1)
    gain = 1.0 + np.random.default_rng(1).uniform(size=(4, 2, 2, 1)).astype(np.float32)
    (_, _, x, u), (scaled_x0, scaled_eps, scaled_x, scaled_u), same = jax.tree.map(
        np.asarray, scaling(process, x0, eps, gain, t)
    )
    np.testing.assert_allclose(scaled_x, x, rtol=1e-4, atol=1e-5)
    assert (scaled_x0[0] == x0[0]).all()
    assert np.isfinite(scaled_eps).all()
    w = np.kron(gain, np.ones((1, 2, 2, 1)))
    np.testing.assert_allclose(scaled_u[1:3], w[1:3] * u[1:3], rtol=1e-3, atol=1e-4)
    if process == FLOW:
        v = eps - x0
        np.testing.assert_allclose(scaled_x0, x - t * w * v, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scaled_eps, x + (1 - t) * w * v, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(same[0], x0)
    np.testing.assert_array_equal(same[1], eps)


def learned(base, mode="mode", cell=None, batch=2, **settings):
    """By a small TPM with random parameters, told a label."""
    module, cond = TPM(**TPM_SETTINGS, cell=cell, num_classes=3), Condition(label=np.arange(batch, dtype=np.int32) % 3)
    x, t = np.zeros((batch, *SIZE), np.float32), np.zeros((batch, 1, 1, 1), np.float32)
    params = randomised(module, Observation(x, x, x, t, np.zeros(batch, np.float32)), cond)
    return TPMSchedule(base, module, params, cond, mode=mode, **settings)


def test_a_module_decides_what_is_told():
    """By the mode of what it answers to each step, for each cell."""
    schedule = learned(BASES["inpainting"], cell=2, gain=np.float32(1.5))

    def trace(state, pred):
        dense = timefield.dense(state.times.told)
        seen = observe(state.x, pred, state.times.told, state.schedule.step, STEPS)
        return dense, state.times.level, state.schedule, seen.progress, seen, deviation(state, pred)

    @jax.jit
    def go(schedule, keys, x):
        _, traced = sample(toy(), Euler(FLOW), schedule, keys, x, num_steps=STEPS, trace=trace)
        apply = lambda seen: schedule.module.apply({"params": schedule.params}, seen, schedule.cond)  # noqa: E731
        belief = jax.vmap(apply)(traced[4])
        return *traced[:4], traced[5], beta.mode(belief)

    told, level, carry, progress, off, rho = jax.tree.map(np.asarray, go(schedule, KEYS[:2], normal(2, *SIZE)))
    np.testing.assert_allclose(progress[:, 0], [0, 0.25, 0.5, 0.75])
    assert rho.std(0).max() > 1e-5
    np.testing.assert_allclose(carry.rho[1:, ..., 0], rho[:-1], rtol=1e-5)
    spread = np.repeat(np.repeat(rho, 2, 2), 2, 3)
    expected = level[1:, ..., 0] + 1.5 * (spread[:-1] - 0.5) * (level[1:, ..., 0] - level[:-1, ..., 0])
    np.testing.assert_allclose(told[1:, ..., 0], expected, rtol=1e-5, atol=1e-6)
    # cells of which everything is known take no part
    free = np.array([[0, 1], [0, 1]])[None].repeat(2, 0)
    for k in range(STEPS):
        np.testing.assert_array_equal(carry.acts[k], free * (k > 0))
    np.testing.assert_allclose(off[1:], np.where(free[None] > 0, rho[:-1] - 0.5, 0.0), rtol=1e-5)


def test_cells_that_all_deviate_alike_are_one_deviation():
    bias = np.array([1.0, -0.5], np.float32)

    def alike(cell, base):
        schedule = learned(base, cell=cell)
        belief = {"kernel": np.zeros(schedule.params["belief"]["kernel"].shape, np.float32), "bias": bias}
        return run(schedule.replace(params={**schedule.params, "belief": belief}), exact=True)

    (image, times, _), (spatial, cells, carry) = (alike(cell, BASES["synchronous"]) for cell in (None, 1))
    assert carry.rho.shape[2:4] == cells.told.shape[2:4] == (4, 4)
    np.testing.assert_array_equal(cells.told, np.broadcast_to(times.told, cells.told.shape))
    np.testing.assert_array_equal(image, spatial)
    assert not (times.told == times.level).all()


def test_samples_belong_to_an_image_alone():
    """To its key, wherever it is among whichever others."""
    schedule, x = learned(BASES["synchronous"], "sample", cell=2, batch=4), normal(4, *SIZE)
    order = np.array([2, 1, 0, 3])
    others = np.array([True, False, True, False])  # those that the second run has as well
    keys = keys_lib.per_image(jax.random.key(7), 8)
    moved = schedule.replace(cond=Condition(label=schedule.cond.label[order]))
    image, _, carry = run(schedule, keys=keys[:4], x=x)
    again, _, carries = run(moved, keys=keys[np.where(others, order, order + 4)], x=x[order])
    np.testing.assert_allclose(carry.rho[:, order][:, others], carries.rho[:, others], rtol=1e-4)
    np.testing.assert_allclose(image[order][others], again[others], rtol=1e-4, atol=1e-5)
    drawn = np.concatenate([carry.rho[1:].ravel(), carries.rho[1:, ~others].ravel()])
    assert len(np.unique(drawn)) == drawn.size
    assert ((drawn >= beta.EDGE) & (drawn <= 1 - beta.EDGE)).all()


FLOW_CONFIG = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
JOINT = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "pooled_projection_dim": 6}
PRETRAINED = {
    "sd3": (
        sd3,
        JOINT
        | {
            "_class_name": "SD3Transformer2DModel",
            "in_channels": 4,
            "out_channels": 4,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 8,
        },
    ),
    "flux": (
        flux,
        JOINT
        | {
            "_class_name": "FluxTransformer2DModel",
            "num_layers": 1,
            "num_single_layers": 1,
            "in_channels": 16,
            "joint_attention_dim": 12,
            "axes_dims_rope": (2, 2, 4),
            "guidance_embeds": True,
        },
    ),
}


@pytest.mark.parametrize(("name", "space"), [("sd3", "time"), ("flux", "velocity")])
def test_pretrained_networks(name, space):
    """With text tokens, which the module sees too; no deviation is the network as it was."""
    family, config = PRETRAINED[name]
    net, scheduler = family.from_config(config), schedulers.from_config(FLOW_CONFIG)
    rng = np.random.default_rng(0)
    cond = Condition(
        tokens=rng.normal(size=(2, 3, 12)).astype(np.float32),
        pooled=rng.normal(size=(2, 6)).astype(np.float32),
        guidance=np.full(2, 3.5, np.float32) if name == "flux" else None,
    )
    x, t = normal(2, 4, 4, 4), np.zeros((2, 1, 1, 1), np.float32)
    params = randomised(net, x, t, cond)
    module = TPM(**TPM_SETTINGS, cell=1, context_dim=12)
    tpm_params = randomised(module, Observation(x, x, x, t, np.zeros(2, np.float32)), cond)
    base = Synchronous(scheduler.grid(3))
    schedule = TPMSchedule(base, module, tpm_params, cond, space=space)
    still = {**tpm_params, "belief": jax.tree.map(np.zeros_like, tpm_params["belief"])}

    @jax.jit
    def go(schedule, params, cond, x):
        denoise = binding.bind(net, params, scheduler, cond)
        return sample(denoise, Euler(scheduler.process), schedule, KEYS[:2], x, num_steps=3)[0].x

    moving, own, unmoved = (
        np.asarray(go(one, params, cond, x)) for one in (schedule, base, schedule.replace(params=still))
    )
    assert np.isfinite(moving).all()
    assert np.abs(moving - own).max() > 1e-4
    # a field of a time for each token is projected in another order
    np.testing.assert_allclose(unmoved, own, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused():
    base, levels = BASES["synchronous"], np.ones((5, 1, 8, 1), np.float32)
    levels[1:] = 0.0
    with pytest.raises(ValueError, match="expected space out of time, velocity"):
        ConstantDeviation(base, 0.5, space="speed")
    with pytest.raises(ValueError, match="expected a base that tells the image's own times"):
        ConstantDeviation(ConstantDeviation(base, 0.5), 0.5)
    with pytest.raises(ValueError, match="expected mode out of mode, sample"):
        learned(base, "mean")
    with pytest.raises(ValueError, match=r"expected rho as \[\] or \[4\], got shape \(3,\)"):
        run(ConstantDeviation(base, np.full(3, 0.5, np.float32)))
    with pytest.raises(ValueError, match="one refines the other"):
        run(learned(Table(levels), cell=4), x=normal(2, 24, 24, 2))
