"""Processes and predictions: every kind to every other, finite wherever the limit exists."""

import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpatch_jax.process import KINDS, Cosine, Discrete, RectifiedFlow, diffuse, output, predict, target

PROCESSES = (RectifiedFlow(), Cosine(), Discrete())
NAMES = [type(process).__name__ for process in PROCESSES]
EXAMPLES = settings(max_examples=15, deadline=None)


def pair(seed, shape=(1, 2, 2, 3)):
    x0, eps = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    return jnp.asarray(x0), jnp.asarray(eps)


def field(*levels):
    return jnp.asarray(levels, jnp.float32).reshape(1, 2, 2, 1)


@functools.partial(jax.jit, static_argnums=0)
def converted(process, x0, eps, t):
    """What each kind predicts, and each other kind's output of it; the targets, and how large these can be."""
    x, one = diffuse(process, x0, eps, t), jnp.ones_like(x0)
    targets = {kind: target(process, kind, x0, eps, t) for kind in KINDS}
    sizes = {kind: 1 + jnp.abs(target(process, kind, one, -one, t)) for kind in KINDS}
    preds = {kind: predict(process, kind, targets[kind], x, t) for kind in KINDS}
    outputs = {kind: {other: output(process, other, pred, t) for other in KINDS} for kind, pred in preds.items()}
    return preds, outputs, targets, sizes


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
@EXAMPLES
@given(st.integers(0, 99), st.lists(st.floats(0.0625, 0.9375, width=32), min_size=4, max_size=4))
def test_every_kind_goes_to_every_other_and_back(process, seed, levels):
    x0, eps = pair(seed)
    preds, outputs, targets, sizes = jax.device_get(converted(process, x0, eps, field(*levels)))
    for kind in KINDS:
        np.testing.assert_allclose(preds[kind].x0, x0, rtol=3e-3, atol=3e-3)
        np.testing.assert_allclose(preds[kind].eps, eps, rtol=3e-3, atol=3e-3)
        for other in KINDS:
            got, expected = (value / sizes[other] for value in (outputs[kind][other], targets[other]))
            np.testing.assert_allclose(got, expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_finite_and_right_at_both_ends(process, kind):
    x0, eps = pair(0)
    t = field(0.0, 0.5, 1.0, 0.0)
    x = diffuse(process, x0, eps, t)
    clean = np.broadcast_to(np.asarray([True, False, False, True]).reshape(1, 2, 2, 1), x.shape)
    assert (np.asarray(x)[clean] == np.asarray(x0)[clean]).all()
    with np.errstate(all="ignore"):
        out = target(process, kind, x0, eps, t)
    # what the network says of a clean cell is anybody's guess
    out = jnp.where(clean, 1.7, out)
    pred = predict(process, kind, out, x, t)
    assert np.isfinite(pred.x0).all()
    assert np.isfinite(pred.eps).all()
    assert (np.asarray(pred.x0)[clean] == np.asarray(x)[clean]).all()
    noise = (slice(0, 1), slice(1, 2), slice(0, 1))
    if kind != "x0" or not isinstance(process, Discrete):  # Discrete keeps some data at 1: x0 there says little of eps
        np.testing.assert_allclose(pred.eps[noise], eps[noise], rtol=1e-3, atol=1e-3)
    if kind in ("x0", "v") or (kind == "velocity" and not isinstance(process, Discrete)):
        np.testing.assert_allclose(pred.x0[noise], x0[noise], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_a_process_is_consistent_with_itself(process):
    t = jnp.linspace(0.0, 1.0, 41, dtype=jnp.float32)
    a, s = process.alpha(t), process.sigma(t)
    assert a[0] == 1
    assert s[0] == 0
    assert (jnp.diff(process.logsnr(t)) < 0).all()
    np.testing.assert_allclose(process.logsnr(t)[1:-1], 2 * np.log((a / s)[1:-1]), rtol=1e-4, atol=1e-4)
    if not isinstance(process, RectifiedFlow):
        np.testing.assert_allclose(a**2 + s**2, 1, rtol=1e-6)
    if not isinstance(process, Discrete):
        assert a[-1] == 0
        # the rates are the derivatives
        inside = t[1:-1]
        da, ds = jax.vmap(jax.grad(process.alpha))(inside), jax.vmap(jax.grad(process.sigma))(inside)
        np.testing.assert_allclose(process.rates(inside), (da, ds), rtol=1e-4, atol=1e-5)


def test_discrete_is_stable_diffusions_own_table():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    cumulative = np.cumprod(1 - betas)
    t = jnp.arange(1, 1001, dtype=jnp.float32) / 1000
    np.testing.assert_allclose(Discrete().alpha(t) ** 2, cumulative, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(Discrete().sigma(t) ** 2, 1 - cumulative, rtol=1e-4)
    np.testing.assert_allclose(Discrete().index(t), np.arange(1000), atol=1e-3)
    middle = (t[:-1] + t[1:]) / 2
    steps = np.diff(Discrete().alpha(t)) * 1000
    np.testing.assert_allclose(Discrete().rates(middle)[0], steps, rtol=2e-2)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("betas", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_discrete_tables_are_diffusers_own(betas, zero_snr):
    settings = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": betas, "rescale_betas_zero_snr": zero_snr}
    with torch.no_grad():
        torch.set_default_dtype(torch.float64)
        try:
            cumulative = diffusers.DDIMScheduler(num_train_timesteps=100, **settings).alphas_cumprod.numpy()
        finally:
            torch.set_default_dtype(torch.float32)
    process = Discrete(100, 0.001, 0.02, betas, zero_snr)
    t = jnp.arange(1, 101, dtype=jnp.float32) / 100
    np.testing.assert_allclose(process.alpha(t) ** 2, cumulative, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(process.sigma(t) ** 2, 1 - cumulative, rtol=2e-5, atol=1e-6)
    assert (process.alpha(t)[-1] == 0) == zero_snr


def test_small_alpha_is_exact_where_the_noise_is_nearly_all():
    process = Discrete(zero_snr=True)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(process.alpha(jnp.asarray([0.997, 0.998, 0.999])), root[-4:-1], rtol=2e-4)


def test_unknown_betas_are_refused():
    with pytest.raises(ValueError, match="expected betas out of scaled_linear"):
        Discrete(betas="sigmoid")
    with pytest.raises(ValueError, match="expected num_steps >= 2"):
        Discrete(1, zero_snr=True)


@pytest.mark.parametrize("wrong", [(0, 0.1, 0.2), (10, 0.0, 0.1), (10, 0.2, 0.1), (10, 0.1, 1.0)])
def test_impossible_betas_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected (num_steps >= 1|0 < beta_)"):
        Discrete(*wrong)
