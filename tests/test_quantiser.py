"""The vector quantiser: nearest codes, gradients that pass straight through, running means, codes that begin again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax.models import quantiser
from asyncpatch_jax.models.quantiser import Quantiser, Usage, nearest, renewed, used
from tests import drawn

Z, CODES = drawn.normal(2, 4, 3, 3), drawn.normal(16, 3, seed=1)


def _nearest(vectors, codes):
    apart = ((vectors[..., None, :] - codes) ** 2).sum(-1)
    return apart.argmin(-1)


@pytest.mark.parametrize("most", [2**26, 1])
def test_the_nearest_code_is_that_of_numpy(monkeypatch, most):
    """At once, and row by row where not all distances fit."""
    monkeypatch.setattr(quantiser, "_MOST", most)
    found = jax.jit(lambda z, codes: nearest(z, codes))(Z, CODES)
    np.testing.assert_array_equal(found, _nearest(np.asarray(Z, np.float64), np.asarray(CODES, np.float64)))


def test_cosine_ignores_lengths():
    module, params = Quantiser(16, 3, "cosine"), {"params": {"codebook": CODES}}
    found = module.apply(params, Z)
    np.testing.assert_array_equal(found.index, module.apply(params, 7.0 * Z).index)
    unit = np.asarray(CODES) / np.linalg.norm(CODES, axis=-1, keepdims=True)
    np.testing.assert_array_equal(found.index, (np.asarray(Z) @ unit.T).argmax(-1))
    np.testing.assert_allclose(found.latents, unit[np.asarray(found.index)], rtol=1e-6)


@jax.jit
def _learned(z, codes, weights):
    """Gradients of a sum of the latents, of the codebook's loss and of the commitment."""

    def parts(z, codes):
        out = Quantiser(16, 3).apply({"params": {"codebook": codes}}, z)
        return jnp.sum(weights * out.latents), out.codebook, out.commitment

    grads = [jax.grad(lambda *args, i=i: parts(*args)[i], (0, 1))(z, codes) for i in range(3)]
    return grads, Quantiser(16, 3).apply({"params": {"codebook": codes}}, z)


def test_gradients_pass_straight_through_and_each_loss_pulls_one_side():
    weights = drawn.normal(2, 4, 3, 3, seed=2)
    (through, codebook, commitment), out = _learned(Z, CODES, weights)
    index = _nearest(np.asarray(Z), np.asarray(CODES))
    # the codes' own bits, and a gradient as if nothing had been done
    np.testing.assert_array_equal(out.latents, np.asarray(CODES)[index])
    np.testing.assert_array_equal(through[0], weights)
    assert not np.any(through[1])
    apart = np.asarray(Z) - np.asarray(CODES)[index]
    np.testing.assert_allclose([out.codebook, out.commitment], (apart**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(commitment[0], 2 * apart / apart.size, atol=1e-7)
    assert not np.any(commitment[1])
    pulled = np.zeros((16, 3))
    np.add.at(pulled, index, -2 * apart / apart.size)
    np.testing.assert_allclose(codebook[1], pulled, atol=1e-6)
    assert not np.any(codebook[0])


_renewed = jax.jit(renewed, static_argnames=("decay", "mean", "restart"))


def test_codes_are_running_means_of_the_vectors_that_chose_them():
    decay, codes, usage = 0.9, CODES[:4], Usage(jnp.ones(4), CODES[:4])
    share, sums = np.ones(4), np.asarray(codes, np.float64)
    for step in range(3):
        z = drawn.normal(1, 5, 4, 3, seed=10 + step)
        index = _nearest(np.asarray(z), np.asarray(codes))
        codes, usage, again = _renewed(codes, usage, z, index, jax.random.key(0), decay=decay, mean=True, restart=0.0)
        flat, chosen = np.asarray(z, np.float64).reshape(-1, 3), index.reshape(-1)
        # a code's fair share of 20 vectors is 5
        share = decay * share + (1 - decay) * np.bincount(chosen, minlength=4) / 5
        sums = decay * sums + (1 - decay) * np.stack([flat[chosen == k].sum(0) for k in range(4)]) / 5
        np.testing.assert_allclose(codes, sums / share[:, None], rtol=1e-5)
        np.testing.assert_allclose(usage.share, share, rtol=1e-5)
        assert not np.any(again)


def test_a_code_that_nobody_uses_begins_again_at_a_vector_of_the_batch():
    usage = Usage(jnp.array([1.0, 0.005, 0.02, 1.0]), jnp.zeros((4, 3)))
    index = np.zeros((2, 4, 3), np.int32)  # all choose the first
    codes, after, again = _renewed(CODES[:4], usage, Z, index, jax.random.key(3), decay=0.9, mean=False, restart=0.01)
    np.testing.assert_array_equal(again, [False, True, False, False])
    np.testing.assert_array_equal(codes[np.array([0, 2, 3])], CODES[np.array([0, 2, 3])])
    assert np.asarray(codes[1]).tolist() in np.asarray(Z).reshape(-1, 3).tolist()
    np.testing.assert_allclose(after.share, [0.9 + 0.1 * 4, 1.0, 0.018, 0.9], rtol=1e-6)
    # as one of a fresh codebook
    fresh = quantiser.unused(4, 3)
    assert np.all(_renewed(CODES[:4], fresh, Z, index, jax.random.key(3), decay=0.9, mean=False, restart=0.99)[2][1:])


def test_use_and_perplexity():
    share, perplexity = used(jnp.array([[[0, 1], [2, 3]]]), 8)
    np.testing.assert_allclose([share, perplexity], [0.5, 4.0], rtol=1e-5)
    np.testing.assert_allclose(used(jnp.full((1, 2, 2), 5), 8), [1 / 8, 1.0], rtol=1e-5)


def test_settings_out_of_range_are_refused():
    index = jnp.zeros((2, 4, 3), jnp.int32)
    with pytest.raises(ValueError, match="expected 0 <= decay < 1"):
        renewed(CODES, quantiser.unused(16, 3), Z, index, jax.random.key(0), decay=1.0)
    with pytest.raises(ValueError, match="restart"):
        renewed(CODES, quantiser.unused(16, 3), Z, index, jax.random.key(0), restart=-0.1)
