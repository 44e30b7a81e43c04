"""Guidance by a text: branches by one call or several, and the formulas of each method written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import timefield
from asyncpatch_jax.process import Discrete, RectifiedFlow, output, predict
from asyncpatch_jax.sampling import (
    DDIM,
    cfg_plus_plus,
    classifier_free,
    input_guidance,
    look_ahead,
    one_call,
    semantic_aware,
    separate_calls,
    smoothed_energy,
    two_calls,
)
from asyncpatch_jax.types import FewTimes, Times
from tests import drawn

PROCESS = RectifiedFlow()


def bound(shifts, kind="velocity", process=PROCESS, seen=None):
    """A denoiser with a condition [b], repeated as `bind` does for the copies that a guidance makes of each image."""
    shifts = jnp.asarray(shifts, jnp.float32)

    def denoise(x, times):
        if seen is not None:
            seen.append((x, times))
        shift = jnp.repeat(shifts, x.shape[0] // len(shifts)).reshape(-1, 1, 1, 1)
        told = timefield.resize(timefield.dense(times.told), x.shape[1:3])
        text = 0.0 if times.text is None else times.text.reshape(-1, 1, 1, 1)
        out = jnp.sin(x) * shift + told + text
        pred = predict(process, kind, out, x, times.level)
        return pred._replace(aux={"maps": jax.nn.sigmoid(x[:, ::2, ::2] + shift), "log_variance": x[..., :1]})

    return denoise


def times_of(kind, batch=2):
    """Times of the 1x1 field, a written-out one, and few times of all images or of each."""
    text = drawn.uniform(batch)
    if kind == "scalar":
        t = drawn.uniform(batch, 1, 1, 1, seed=1)
        return Times(t, t)
    if kind == "dense":
        t = drawn.uniform(batch, 4, 2, 1, seed=1)
        return Times(t, t, text)
    values = np.asarray(drawn.uniform(*((1, 3) if kind == "shared" else (batch, 3)), seed=1))
    index = np.random.default_rng(2).integers(0, 3, (batch, 4, 4, 1), np.int8)
    level = np.take_along_axis(np.broadcast_to(values, (batch, 3))[:, None, None], index.astype(np.int64), -1)
    return jax.device_put(Times(level, FewTimes(values, index), np.asarray(text)))


def same(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)


X = drawn.normal(2, 4, 4, 3)


@pytest.mark.parametrize("kind", ["scalar", "dense", "few", "shared"])
def test_one_call_is_a_call_each(kind):
    cond, uncond, third = [0.3, -0.4], [1.0, 2.0], [-1.0, 0.7]
    seen = []

    @jax.jit
    def run(x, times):
        rows = np.stack([cond, uncond, third], 1).reshape(-1)
        both = np.stack([cond, uncond], 1).reshape(-1)
        return (
            one_call(bound(rows, seen=seen), images=2, copies=3)(x, times),
            separate_calls(bound(cond), bound(uncond), bound(third))(x, times),
            one_call(bound(both), images=2)(x, times),
            two_calls(bound(cond), bound(uncond))(x, times),
        )

    together, apart, pair, two = jax.device_get(run(X, times_of(kind)))
    assert len(together) == 3
    same(together, apart)
    assert len(seen) == 1
    same(pair, two)


def test_a_guidance_over_one_call_keeps_each_branch_to_its_condition():
    times = times_of("dense")
    cond, uncond = [0.3, -0.4], [1.0, 2.0]
    mask = jax.device_put(np.float32([0] * 4 + [1] * 12).reshape(1, 4, 4, 1))

    def hinted(pair):
        guided = classifier_free(pair, jnp.asarray([2.0, 4.0]))
        return input_guidance(guided, PROCESS, "velocity", mask, jax.random.key(5), 0.7)

    rows = np.stack([cond, uncond], 1).reshape(-1)
    one = jax.jit(lambda x, times: hinted(one_call(bound(rows), images=2))(x, times))
    two = jax.jit(lambda x, times: hinted(two_calls(bound(cond), bound(uncond)))(x, times))
    same(one(X, times), two(X, times))
    with pytest.raises(ValueError, match="expected a batch that is a multiple of 3 images, got 2"):
        one_call(bound(rows), images=3)(X, times)
    with pytest.raises(ValueError, match=r"expected (images|copies) >= 1"):
        one_call(bound(rows), images=0)


def test_maps_are_those_of_the_conditional_branch():
    times, cond, uncond = times_of("dense"), [0.3, -0.4], [1.0, 2.0]
    rows = np.stack([cond, uncond], 1).reshape(-1)
    expected = bound(cond)(X, times).aux["maps"]
    pair = one_call(bound(rows), images=2)
    for guided in (classifier_free(pair, 3.0), cfg_plus_plus(pair, 0.6)):
        np.testing.assert_array_equal(guided(X, times).aux["maps"], expected)


def test_the_text_s_time_reaches_every_call():
    for wrap in (
        lambda d: input_guidance(d, PROCESS, "velocity", jnp.ones((1, 2, 2, 1)), jax.random.key(0), 1.0),
        lambda d: look_ahead(d, PROCESS, (2, 2)),
    ):

        @jax.jit
        def shown(x, times, wrap=wrap):
            seen = []
            wrap(bound([0.3, -0.4], seen=seen))(x, times)
            return [(len(x), times.text) for x, times in seen]

        times = times_of("dense")
        given = jax.device_get(shown(X, times))
        assert given
        for length, text in given:
            np.testing.assert_array_equal(text, np.asarray(times.text).repeat(length // 2))
        assert all(text is None for _, text in shown(X, times._replace(text=None)))


def test_cfg_plus_plus_is_the_authors_update():
    process, lam = Discrete(), 0.6
    t, t_next = (timefield.constant(value, 2) for value in (0.502, 0.482))
    c, u = (bound(shifts, "eps", process) for shifts in ([0.3, -0.4], [1.0, 2.0]))
    guided = cfg_plus_plus(two_calls(c, u), lam)
    pred = guided(X, Times(t, t))
    ours, _ = DDIM(process).step(
        guided, pred, X, Times(t, t), Times(t_next, t_next), keys_lib.per_image(jax.random.key(0), 2), None
    )
    # zt, at, at_prev of CFGpp-diffusion/CFGpp, latent_diffusion.py
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    bars = np.cumprod(1 - betas)
    now, prev = bars[501], bars[481]
    noise_c, noise_uc = (np.asarray(output(process, "eps", f(X, Times(t, t)), t), np.float64) for f in (c, u))
    noise_pred = noise_uc + lam * (noise_c - noise_uc)
    z0t = (np.asarray(X) - np.sqrt(1 - now) * noise_pred) / np.sqrt(now)
    np.testing.assert_allclose(ours, np.sqrt(prev) * z0t + np.sqrt(1 - prev) * noise_uc, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"expected 0 <= lam \(the scale of CFG\+\+\) <= 1, got 5.0"):
        cfg_plus_plus(two_calls(c, u), 5.0)


def test_smoothed_energy_is_its_formula():
    times, w, gamma = times_of("dense"), jnp.asarray([5.0, 1.0]), jnp.asarray([3.0, 0.0])
    denoisers = [bound(shifts) for shifts in ([0.3, -0.4], [1.0, 2.0], [-1.0, 0.7])]
    pred = smoothed_energy(separate_calls(*denoisers), w, gamma)(X, times)
    c, u, s = (output(PROCESS, "velocity", f(X, times), times.level) for f in denoisers)
    w, gamma = w.reshape(2, 1, 1, 1), gamma.reshape(2, 1, 1, 1)
    expected = u + w * (c - u) + gamma * (c - s)
    np.testing.assert_allclose(output(PROCESS, "velocity", pred, times.level), expected, rtol=1e-4, atol=1e-4)
    # neither scale: the conditional prediction bit for bit
    np.testing.assert_array_equal(pred.x0[1], denoisers[0](X, times).x0[1])
    with pytest.raises(ValueError, match="expected a conditional, an unconditional and a blurred branch, got 2"):
        smoothed_energy(two_calls(*denoisers[:2]), 5.0)(X, times)


# ------------------------------------------------------------------------------------------------------------ S-CFG
def blur(image):
    """A Gaussian of half a cell over 3x3 cells, mirrored at the border, in a loop."""
    kernel = np.exp(-0.5 * (np.arange(-1, 2) / 0.5) ** 2)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    padded, out = np.pad(image, 1, mode="reflect"), np.zeros_like(image)
    for y, x in np.ndindex(image.shape):
        out[y, x] = (padded[y : y + 3, x : x + 3] * kernel).sum()
    return out


def semantic_rate(maps, own, delta, w):
    """The rate [h, w] of one image as the paper has it, in loops and float64."""
    height, width, tokens = maps.shape
    flat = maps.reshape(-1, tokens)
    carried = sum(np.linalg.matrix_power(own, r) @ flat for r in range(1, 5)) / 4
    carried = np.stack([blur(carried[:, k].reshape(height, width)) for k in range(tokens)], -1)
    share = carried / carried.mean((0, 1))
    text = carried[..., 1:].sum(-1)
    fore = text / text.mean() > share[..., 0]
    factor = delta.shape[0] // height
    norm = np.sqrt((delta**2).sum(-1))
    of_token = {}
    for y, x in np.ndindex(norm.shape):
        of_token.setdefault(share[y // factor, x // factor].argmax(), []).append(norm[y, x])
    reference = np.mean([norm[y, x] for y, x in np.ndindex(norm.shape) if fore[y // factor, x // factor]])
    rate = np.zeros_like(norm)
    for y, x in np.ndindex(norm.shape):
        own_mean = np.mean(of_token[share[y // factor, x // factor].argmax()])
        rate[y, x] = min(max(reference / own_mean, 0.8), 3.0, 15.0 / w)
    return blur(rate), len(of_token)


def attentive(shift, maps, own):
    def denoise(x, times):
        out = jnp.sin(x * (1 + shift)) * jnp.linspace(0.2, 3.0, x.shape[1]).reshape(1, -1, 1, 1) + shift
        return predict(PROCESS, "eps", out, x, times.level)._replace(aux={"maps": maps, "self_maps": own})

    return denoise


def test_semantic_awareness_is_the_paper_s_rate_per_segment():
    rng, (batch, side, tokens) = np.random.default_rng(0), (2, 4, 5)
    maps = rng.dirichlet(np.ones(tokens), size=(batch, side, side)).astype(np.float32)
    own = rng.dirichlet(np.full(side * side, 0.05), size=(batch, side * side)).astype(np.float32)
    x = jnp.asarray(rng.normal(size=(batch, 8, 8, 3)), jnp.float32)
    times = Times(*[timefield.constant(0.6, batch)] * 2)
    c, u = attentive(0.4, jnp.asarray(maps), jnp.asarray(own)), attentive(0.0, jnp.zeros((2, 4, 4, 5)), own)
    w = jnp.asarray([7.5, 12.0])
    guided = jax.jit(semantic_aware(two_calls(c, u), w))(x, times)
    pred_c, pred_u = c(x, times), u(x, times)
    delta = np.asarray(pred_c.eps - pred_u.eps, np.float64)
    rates = []
    for b in range(batch):
        rate, count = semantic_rate(maps[b].astype(np.float64), own[b].astype(np.float64), delta[b], float(w[b]))
        assert count > 1
        rates.append(rate)
        expected = np.asarray(pred_u.eps[b]) + float(w[b]) * rate[..., None] * delta[b]
        np.testing.assert_allclose(guided.eps[b], expected, rtol=1e-3, atol=1e-3)
    assert np.std(rates) > 0.1
    np.testing.assert_array_equal(guided.aux["maps"], maps)


def test_semantic_awareness_names_what_the_network_must_give():
    x, t = (jax.device_put(np.full(shape, 0.6, np.float32)) for shape in ((1, 8, 8, 3), (1, 1, 1, 1)))
    times = Times(t, t)
    maps, own = (np.full(shape, 1 / 16, np.float32) for shape in ((1, 4, 4, 3), (1, 16, 16)))
    for aux, message in (
        ({"self_maps": own}, r'expected a network that gives aux\["maps"\]'),
        ({"maps": maps}, r'expected a network that gives aux\["self_maps"\]'),
        ({"maps": maps[..., :1], "self_maps": own}, "the start token and the prompt's tokens"),
        ({"maps": maps, "self_maps": own[:, :4, :4]}, "self-attention between their cells"),
    ):

        def given(x, times, aux=aux):
            return predict(PROCESS, "eps", x, x, times.level)._replace(aux=jax.tree.map(jnp.asarray, aux))

        with pytest.raises(ValueError, match=message):
            jax.eval_shape(semantic_aware(two_calls(given, given), 5.0), x, times)
