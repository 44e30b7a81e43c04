"""Z-Sampling against its steps written out, PyTorch diffusers, and what it must leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import timefield
from asyncpatch_jax.process import Cosine, Discrete, RectifiedFlow, predict
from asyncpatch_jax.sampling import DDIM, Synchronous, Table, ZSampling, linear, sample
from asyncpatch_jax.types import Times
from tests.oracles import gaussian

SHAPE = (2, 2, 1)
KEYS = keys_lib.per_image(jax.random.key(0), 2)


def structured(process, shift, seen=None):
    """A denoiser that predicts noise, told a time, from the whole image; it notes what it was shown."""

    def denoise(x, times):
        if seen is not None:
            seen.append((x, times))
        t = timefield.like(times.told, x)
        return predict(process, "eps", jnp.sin(x + shift) + x.mean((1, 2, 3), keepdims=True) * t, x, times.level)

    return denoise


def at(t, batch=2):
    t = timefield.constant(t, batch)
    return Times(t, t)


def step(solver, denoise, x, times, times_next, carry=0):
    return solver.step(denoise, denoise(x, times), x, times, times_next, KEYS, jnp.int32(carry))


def test_with_one_guidance_a_zigzag_is_a_step_up_to_the_error_of_inversion():
    process, data = Cosine(), gaussian(SHAPE)

    def oracle(x, times):
        eps = data.denoiser(process)(x, Times(times.told, times.told)).eps
        return predict(process, "eps", eps, x, times.level)

    x = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    error = []
    for h in (0.08, 0.04, 0.02):
        plain, _ = step(DDIM(process), oracle, x, at(0.6), at(0.6 - h))
        zigzag, _ = step(ZSampling(process, oracle, 1), oracle, x, at(0.6), at(0.6 - h))
        error.append(float(jnp.abs(zigzag - plain).max()))
    # the noise at t differs by the order of the step between the two ends, and it is moved by a step
    assert 1.7 < np.log2(error[0] / error[1]) < 2.3
    assert 1.7 < np.log2(error[1] / error[2]) < 2.3


def test_a_zigzag_step_is_that_of_diffusers_schedulers():
    diffusers = pytest.importorskip("diffusers")
    import torch

    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    down = diffusers.DDIMScheduler(set_alpha_to_one=False, steps_offset=1, **settings)
    up = diffusers.DDIMInverseScheduler(set_alpha_to_one=False, steps_offset=1, **settings)
    down.set_timesteps(50)
    up.set_timesteps(50)
    process, x = Discrete(), jax.random.normal(jax.random.key(1), (2, 4, 4, 3))

    def eps(x, shift):
        return torch.sin(x + shift)

    def denoiser(shift):
        return lambda x, times: predict(process, "eps", jnp.sin(x + shift), x, times.level)

    z = torch.from_numpy(np.asarray(x))
    z = down.step(eps(z, 0.0), 501, z).prev_sample
    # the inversion counts the level that it comes from back from the one that it is given
    z = up.step(eps(z, 0.7), 501, z).prev_sample
    z = down.step(eps(z, 0.0), 501, z).prev_sample
    ours, carry = step(ZSampling(process, denoiser(0.7), 1), denoiser(0.0), x, at(0.502), at(0.482))
    np.testing.assert_allclose(ours, z.numpy(), rtol=1e-4, atol=1e-5)
    assert carry == 1


def test_only_the_first_steps_are_zigzags_and_cost_three_calls():
    calls = []

    def counted(name, shift):
        inner = structured(RectifiedFlow(), shift)

        def denoise(x, times):
            jax.debug.callback(lambda: calls.append(name))
            return inner(x, times)

        return denoise

    x = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    strong, weak = counted("strong", 0.0), counted("weak", 0.7)

    def run(zigzags):
        solver = ZSampling(RectifiedFlow(), weak, zigzags)
        return jax.jit(
            lambda x: sample(strong, solver, Synchronous(linear(5)), jax.random.key(0), x, num_steps=5)[0].x
        )(x)

    image = run(4)
    jax.effects_barrier()
    assert (calls.count("strong"), calls.count("weak")) == (2 * 5 - 1, 4)
    assert not np.allclose(image, run(3))
    plain = jax.jit(
        lambda x: sample(strong, DDIM(RectifiedFlow()), Synchronous(linear(5)), jax.random.key(0), x, num_steps=5)[0].x
    )(x)
    np.testing.assert_array_equal(run(0), plain)


def test_held_cells_stay_bit_for_bit_and_are_shown_so_in_every_call():
    process, seen = RectifiedFlow(), []
    levels = jnp.asarray([[0, 0.5, 1, 0.9], [0, 0.5, 0.8, 0.6], [0, 0.4, 0.8, 0.3]]).reshape(3, 1, 2, 2)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    strong, weak = structured(process, 0.0, seen), structured(process, 0.7, seen)
    fields = [jnp.repeat(level[..., None], 2, 0) for level in levels]
    times = [Times(t, t, jnp.full(2, 0.3)) for t in fields]
    solver = ZSampling(process, weak, 5)
    for now, then in ((0, 1), (1, 2)):
        seen.clear()
        moved, _ = step(solver, strong, x, times[now], times[then])
        held = timefield.like((fields[now] == fields[then]).astype(jnp.float32), x) > 0
        assert (jnp.where(held, moved - x, 0) == 0).all()
        assert (jnp.where(held, True, moved != x)).all()
        assert np.isfinite(moved).all()
    # the way back: at the next level, told the one before, and the text's time is passed on
    (_, first), (_, back), (_, again) = seen
    assert first is times[1]
    assert again is times[1]
    assert back.told is times[1].told
    assert back.text is times[1].text
    # and through the loop, in cells that wait and cells that are known
    solver = ZSampling(process, structured(process, 0.7), 2)
    table = Table(jnp.concatenate([levels, jnp.zeros_like(levels[:1])]))  # a run ends clean
    end, _ = jax.jit(lambda x: sample(structured(process, 0.0), solver, table, KEYS, x, num_steps=3))(x)
    assert (end.x[:, :2, :2] == x[:, :2, :2]).all()


def test_a_negative_number_of_zigzags_is_refused():
    with pytest.raises(ValueError, match="expected zigzags >= 0"):
        ZSampling(RectifiedFlow(), structured(RectifiedFlow(), 0.0), -1)
