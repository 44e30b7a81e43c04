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
from asyncpatch_jax.models.tpm import observe
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
    start,
)
from asyncpatch_jax.types import Condition, FewTimes, Prediction, Times

FLOW = RectifiedFlow()
STEPS = 4
GRID = shifted(STEPS, 3.0)
SIZE = (8, 8, 2)
MASK = jnp.zeros((1, 4, 4, 1)).at[:, 1:, 2:].set(1.0)
TPM_SETTINGS = {"patch": 2, "width": 8, "depth": 1, "heads": 2, "mlp_ratio": 1, "global_tokens": 2}


def randomised(module, *args):
    """Parameters that are random everywhere."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    drawn = jax.tree.map(
        lambda x: rng.normal(0, 0.5 * (x.size / x.shape[-1]) ** -0.5 if x.ndim > 1 else 0.2, x.shape).astype(
            np.float32
        ),
        shapes,
    )
    return jax.tree.map(jnp.asarray, drawn)


@functools.cache
def network(name):
    """(module, parameters), which answer to a class."""
    common = {"num_classes": 3}
    module = {
        "unet": UNet(base=8, multipliers=(1, 2), blocks=1, attention=(), head_dim=4, **common),
        "dit": DiT(patch=2, width=16, depth=1, heads=2, **common),
    }[name]
    cond = Condition(label=jnp.zeros(1, jnp.int32))
    return module, randomised(module, jnp.zeros((1, *SIZE)), jnp.zeros((1, 1, 1, 1)), cond)


@functools.cache
def denoiser(name, batch=2):
    """Under classifier-free guidance."""
    module, params = network(name)
    label = jnp.stack([jnp.arange(batch) % 3, jnp.full(batch, 3)], 1).reshape(-1)
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
def program(denoise, solver, process):
    """One for all schedules of the same structure; compiled as users do, for the tests' own emitters round fusions."""

    @functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})
    def go(schedule, keys, known):
        x = start(process, schedule, keys, known)
        trace = lambda state, pred: (state.times, state.schedule)  # noqa: E731
        return sample(denoise, solver, schedule, keys, x, num_steps=schedule.num_steps, trace=trace)

    return go


def run(schedule, denoise=None, solver=None, process=FLOW, batch=2, known=None, keys=None):
    """(last image, times of each call, what the schedule remembered before it)."""
    keys = keys_lib.per_image(jax.random.key(0), batch) if keys is None else keys
    known = jnp.zeros((batch, *SIZE)) if known is None else known
    go = program(denoise or toy(process), solver or Euler(process), process)
    state, (times, carry) = go(schedule, keys, known)
    return state.x, times, carry


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
    _, times, carry = run(ConstantDeviation(Synchronous(GRID), jnp.asarray(RHO), jnp.float32(gain)))
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
    _, times, _ = run(ConstantDeviation(Synchronous(jnp.asarray([1.0, 0.3, 2e-3, 5e-4, 0.0])), 1.0, 4.0))
    np.testing.assert_allclose(times.told[:, 0, 0, 0, 0], [1.0, 1e-3, 1e-3, 5e-4], rtol=1e-6)
    _, times, _ = run(ConstantDeviation(Synchronous(GRID), 0.0, 6.0))
    np.testing.assert_array_equal(times.told[1, :, 0, 0, 0], 1.0)


def half(schedule, space="time"):
    return ConstantDeviation(schedule, jnp.float32(0.5), jnp.float32(1.7), space=space)


BASES = {
    "synchronous": Synchronous(GRID),
    "inpainting": Inpaint(MASK, GRID),
    "graded": Graded(MASK * jnp.linspace(0.4, 1.0, 4).reshape(1, 1, 4, 1), GRID),
    "autoregressive": Autoregressive(raster((2, 2)), linear(2), 4),
    "concave": Concave(GRID, jnp.float32(0.7), Fixed(MASK), (4, 4), shift=3.0, text_time="masked"),
}


def bit_equal(base, denoise, solver, spaces, process=FLOW):
    known = jax.random.normal(jax.random.key(8), (2, *SIZE))
    plain, *_ = run(BASES[base], denoise, solver, process, known=known)
    assert jnp.isfinite(plain).all()
    for space in spaces:
        image, *_ = run(half(BASES[base], space), denoise, solver, process, known=known)
        np.testing.assert_array_equal(image, plain)
        other, *_ = run(half(BASES[base], space).replace(rho=jnp.float32(0.8)), denoise, solver, process, known=known)
        assert not np.array_equal(other, plain)


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
        ("inpainting", Heun(Discrete()), ["time", "velocity"]),
        ("concave", ZSampling(FLOW, toy(FLOW), STEPS - 1), ["time"]),
        ("autoregressive", DPMSolver2M(Cosine()), ["velocity"]),
    ],
)
def test_no_deviation_is_the_base_bit_for_bit(base, solver, spaces):
    bit_equal(base, toy(solver.process), solver, spaces, solver.process)


def test_guidance_by_context_passes_on_the_gain():
    """Look-ahead over input guidance, whose copies have the gain of their image; at no guidance, it is no other run."""

    @functools.cache
    def guided(scale):
        hinted = input_guidance(toy(), FLOW, "velocity", MASK, jax.random.key(4), scale)
        return look_ahead(hinted, FLOW, (2, 2)) if scale else hinted

    base = BASES["inpainting"]
    image, plain = (run(schedule, guided(1.0))[0] for schedule in (half(base, "velocity"), base))
    np.testing.assert_allclose(image, plain, rtol=1e-5, atol=1e-6)
    deviating = half(base, "velocity").replace(rho=jnp.float32(0.9))
    assert not np.allclose(run(deviating, guided(1.0))[0], plain, atol=1e-3)
    np.testing.assert_allclose(run(deviating, guided(0.0))[0], run(deviating)[0], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("space", ["time", "velocity"])
def test_known_cells_stay_and_are_told_so(space):
    known = jax.random.normal(jax.random.key(8), (2, *SIZE))
    image, times, _ = run(ConstantDeviation(BASES["inpainting"], 0.9, space=space), known=known)
    kept = np.broadcast_to(timefield.like(MASK, known[:1]) == 0, image.shape)
    np.testing.assert_array_equal(image[kept], known[kept])
    index = MASK[0, :, :, 0] == 0
    if space == "velocity":
        assert (times.gain[:, :, index] == 1).all()
        np.testing.assert_allclose(times.gain[1:, :, ~index], 1.4, rtol=1e-6)
    told = jax.vmap(timefield.dense)(times.told)
    assert (told[:, :, index] == 0).all()
    assert ((told != times.level)[1:, :, ~index] == (space == "time")).all()


def test_each_cell_deviates_by_its_own_move():
    """Waiting, paused and finished cells are told their own times; each other one between its last level and this."""
    levels = np.array([[1, 1, 0.6, 0], [0.8, 1, 0.6, 0], [0.5, 0.7, 0, 0], [0.5, 0.2, 0, 0], [0, 0, 0, 0]], np.float32)
    _, times, carry = run(ConstantDeviation(Table(levels.reshape(5, 1, 2, 2)), jnp.asarray(RHO)))
    for k in range(3):
        before, after = levels[k], levels[k + 1]
        expected = np.where((after == before) | (after == 0), after, before + (RHO[k] + 0.5) * (after - before))
        np.testing.assert_allclose(times.told[k + 1, 0, ..., 0].ravel(), expected, rtol=1e-6)
    np.testing.assert_array_equal(carry.acts[:, 0, 0, 0], [0, 1, 1, 1])


def test_a_pause_of_the_image_is_no_act_and_scales_nothing():
    levels = jnp.asarray([1.0, 0.6, 0.6, 0.3, 0.0]).reshape(5, 1, 1, 1)
    _, times, carry = run(ConstantDeviation(Table(levels), 0.8, space="velocity"))
    np.testing.assert_array_equal(carry.acts[:, 0, 0, 0], [0, 1, 0, 1])
    np.testing.assert_allclose(times.gain[1:, 0].ravel(), [1.3, 1.0, 1.3], rtol=1e-6)


@pytest.mark.parametrize(
    ("base", "few", "distinct"),
    [("synchronous", False, 1), ("inpainting", True, 2), ("concave", True, 2), ("autoregressive", False, None)],
)
def test_few_times_stay_few_where_no_cell_changes_them(base, few, distinct):
    schedule = ConstantDeviation(BASES[base], 0.8)
    times, _ = schedule.init(keys_lib.per_image(jax.random.key(0), 2), jnp.zeros((2, *SIZE)))
    assert isinstance(times.told, FewTimes) == few
    assert schedule.distinct == distinct
    # scaled velocities leave the times that the network is told as they are, of each cell's own scale too
    scaled = TPMSchedule(BASES[base], TPM(**TPM_SETTINGS, cell=1), None, space="velocity")
    assert scaled.distinct == getattr(BASES[base], "distinct", None)
    _, plain, _ = run(BASES[base])
    _, told, _ = run(ConstantDeviation(BASES[base], 1.0))
    told, level = jax.vmap(timefield.dense)(told.told), plain.level
    before, after = level[:-1], level[1:]
    expected = jnp.where((after != before) & (after > 0), jnp.maximum(1.5 * after - 0.5 * before, 1e-3), after)
    np.testing.assert_allclose(told[1:], jnp.broadcast_to(expected, told[1:].shape), rtol=1e-5)


def test_text_is_told_a_time_that_deviates_alike():
    _, plain, _ = run(BASES["concave"])
    _, times, _ = run(ConstantDeviation(BASES["concave"], jnp.asarray(RHO)))
    assert (times.text[0] == plain.text[0]).all()
    for k in range(STEPS - 1):
        move = plain.text[k + 1] - plain.text[k]
        np.testing.assert_allclose(times.text[k + 1], plain.text[k] + (RHO[k] + 0.5) * move, rtol=1e-5)


def test_a_scaled_velocity_is_the_solvers_longer_step():
    """Euler's x' = x + omega (t' - t) v, written out: what the network is told stays the image's time."""
    image, times, _ = run(ConstantDeviation(Synchronous(GRID), jnp.asarray(RHO), 2.0, space="velocity"))
    assert (times.told == times.level).all()
    x = start(FLOW, Synchronous(GRID), jax.random.key(0), jnp.zeros((2, *SIZE)))
    for k, omega in enumerate(np.append(1.0, 2 * RHO[:-1])):
        t = jnp.broadcast_to(GRID[k], (2, 1, 1, 1))
        x = x + omega * (GRID[k + 1] - GRID[k]) * output(FLOW, "velocity", toy()(x, Times(t, t)), t)
    np.testing.assert_allclose(image, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("process", [FLOW, Cosine(), Discrete(), Discrete(zero_snr=True)], ids=str)
def test_scaled_velocities(process):
    """Velocity and x by their definitions where those are finite, and no NaN anywhere."""
    t = jnp.asarray([0.0, 0.25, 0.6, 1.0]).reshape(4, 1, 1, 1)
    x0, eps = jax.random.normal(jax.random.key(0), (2, 4, 4, 4, 1))
    gain = 1.0 + jax.random.uniform(jax.random.key(1), (4, 2, 2, 1))
    scaled = scale_velocity(process, Prediction(x0, eps, {"kept": 3}), gain, t)
    assert scaled.aux == {"kept": 3}
    x = process.alpha(t) * x0 + process.sigma(t) * eps
    np.testing.assert_allclose(process.alpha(t) * scaled.x0 + process.sigma(t) * scaled.eps, x, rtol=1e-4, atol=1e-5)
    assert (scaled.x0[0] == x0[0]).all()
    assert jnp.isfinite(scaled.eps).all()
    u, u_scaled = (output(process, "velocity", pred, t)[1:3] for pred in (Prediction(x0, eps, {}), scaled))
    np.testing.assert_allclose(u_scaled, timefield.like(gain, x)[1:3] * u, rtol=1e-3, atol=1e-4)
    if process == FLOW:
        v, w = eps - x0, timefield.like(gain, x)
        np.testing.assert_allclose(scaled.x0, x - t * w * v, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scaled.eps, x + (1 - t) * w * v, rtol=1e-4, atol=1e-5)
    same = scale_velocity(process, Prediction(x0, eps, {}), jnp.ones((4, 2, 2, 1)), t)
    np.testing.assert_array_equal(same.x0, x0)
    np.testing.assert_array_equal(same.eps, eps)


def tpm(cell=None, **more):
    """A small TPM with random parameters, and its condition's label."""
    module = TPM(**TPM_SETTINGS, cell=cell, num_classes=3)
    x = jnp.zeros((1, *SIZE))
    t = jnp.zeros((1, 1, 1, 1))
    return module, randomised(module, observe(x, Prediction(x, x, {}), t, 0, 1), Condition(label=jnp.zeros(1, int)))


def learned(base, mode="mode", cell=None, batch=2, **settings):
    module, params = tpm(cell)
    cond = Condition(label=jnp.arange(batch, dtype=jnp.int32) % 3)
    return TPMSchedule(base, module, params, cond, mode=mode, **settings)


def test_a_module_decides_what_is_told():
    """By the mode of what it answers to each step, for each cell."""
    schedule = learned(BASES["inpainting"], cell=2, gain=jnp.float32(1.5))

    def trace(state, pred):
        return state, observe(state.x, pred, state.times.told, state.schedule.step, STEPS), deviation(state, pred)

    @jax.jit
    def go(schedule):
        keys = keys_lib.per_image(jax.random.key(0), 2)
        x = start(FLOW, schedule, keys, jnp.zeros((2, *SIZE)))
        _, traced = sample(toy(), Euler(FLOW), schedule, keys, x, num_steps=STEPS, trace=trace)
        apply = lambda seen: schedule.module.apply({"params": schedule.params}, seen, schedule.cond)  # noqa: E731
        return *traced, jax.vmap(apply)(traced[1])

    state, seen, off, belief = go(schedule)
    told, level = jax.vmap(timefield.dense)(state.times.told), state.times.level
    np.testing.assert_allclose(seen.progress[:, 0], [0, 0.25, 0.5, 0.75])
    rho = beta.mode(belief)
    assert rho.std(0).max() > 1e-5
    np.testing.assert_allclose(state.schedule.rho[1:, ..., 0], rho[:-1], rtol=1e-5)
    spread = jnp.repeat(jnp.repeat(rho, 2, 2), 2, 3)
    expected = level[1:, ..., 0] + 1.5 * (spread[:-1] - 0.5) * (level[1:, ..., 0] - level[:-1, ..., 0])
    np.testing.assert_allclose(told[1:, ..., 0], expected, rtol=1e-5, atol=1e-6)
    # cells of which everything is known take no part
    free = np.array([[0, 1], [0, 1]])[None].repeat(2, 0)
    for k in range(STEPS):
        np.testing.assert_array_equal(state.schedule.acts[k], free * (k > 0))
    np.testing.assert_allclose(off[1:], jnp.where(free[None] > 0, rho[:-1] - 0.5, 0.0), rtol=1e-5)


def test_cells_that_all_deviate_alike_are_one_deviation():
    bias = np.array([1.0, -0.5], np.float32)

    def alike(cell, base):
        schedule = learned(base, cell=cell)
        belief = {"kernel": jnp.zeros_like(schedule.params["belief"]["kernel"]), "bias": bias}
        return run(schedule.replace(params={**schedule.params, "belief": belief}))

    (image, times, _), (spatial, cells, carry) = (alike(cell, BASES["synchronous"]) for cell in (None, 1))
    assert carry.rho.shape[2:4] == cells.told.shape[2:4] == (4, 4)
    np.testing.assert_array_equal(cells.told, jnp.broadcast_to(times.told, cells.told.shape))
    np.testing.assert_array_equal(image, spatial)
    assert not (times.told == times.level).all()


def test_samples_belong_to_an_image_alone():
    keys = keys_lib.per_image(jax.random.key(7), 4)
    few, *_, carry = run(learned(BASES["synchronous"], "sample", cell=2), keys=keys[:2])
    many, *_, carries = run(learned(BASES["synchronous"], "sample", cell=2, batch=4), keys=keys, batch=4)
    np.testing.assert_allclose(carry.rho, carries.rho[:, :2], rtol=1e-4)
    np.testing.assert_allclose(few, many[:2], rtol=1e-4, atol=1e-5)
    drawn = np.asarray(carries.rho[1:]).ravel()
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
        tokens=jnp.asarray(rng.normal(size=(2, 3, 12)), jnp.float32),
        pooled=jnp.asarray(rng.normal(size=(2, 6)), jnp.float32),
        guidance=jnp.full(2, 3.5) if name == "flux" else None,
    )
    x = jnp.zeros((2, 4, 4, 4))
    params = randomised(net, x, jnp.zeros((2, 1, 1, 1)), cond)
    module = TPM(**TPM_SETTINGS, cell=1, context_dim=12)
    seen = observe(x, Prediction(x, x, {}), jnp.zeros((2, 1, 1, 1)), 0, 1)
    tpm_params = randomised(module, seen, cond)
    base = Synchronous(scheduler.grid(3))
    schedule = TPMSchedule(base, module, tpm_params, cond, space=space)
    still = {**tpm_params, "belief": jax.tree.map(jnp.zeros_like, tpm_params["belief"])}

    @jax.jit
    def go(schedule, key):
        noise = start(scheduler.process, schedule, key, x)
        denoise = binding.bind(net, params, scheduler, cond)
        return sample(denoise, Euler(scheduler.process), schedule, key, noise, num_steps=3)[0]

    key = jax.random.key(1)
    moving, plain = go(schedule, key), go(base, key)
    assert jnp.isfinite(moving.x).all()
    assert jnp.abs(moving.x - plain.x).max() > 1e-4
    close = {"rtol": 1e-4, "atol": 1e-5}  # a field of a time for each token is projected in another order
    np.testing.assert_allclose(go(schedule.replace(params=still), key).x, plain.x, **close)


def test_what_does_not_fit_is_refused():
    base = BASES["synchronous"]
    with pytest.raises(ValueError, match="expected space out of time, velocity"):
        ConstantDeviation(base, 0.5, space="speed")
    with pytest.raises(ValueError, match="expected a base that tells the image's own times"):
        ConstantDeviation(ConstantDeviation(base, 0.5), 0.5)
    with pytest.raises(ValueError, match="expected mode out of mode, sample"):
        learned(base, "mean")
    with pytest.raises(ValueError, match=r"expected rho as \[\] or \[4\], got shape \(3,\)"):
        run(ConstantDeviation(base, jnp.full(3, 0.5)))
    with pytest.raises(ValueError, match="one refines the other"):
        run(learned(Table(jnp.ones((5, 1, 8, 1)).at[1:].set(0.0)), cell=4), known=jnp.zeros((2, 24, 24, 2)))
