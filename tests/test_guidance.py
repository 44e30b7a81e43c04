"""Guidance against its formulas, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import timefield
from asyncpatch_jax.process import Cosine, RectifiedFlow, output, predict
from asyncpatch_jax.sampling import classifier_free, input_guidance, look_ahead, paste_back, two_calls
from asyncpatch_jax.types import FewTimes, Times
from tests import drawn

PROCESS = RectifiedFlow()
MASK = jax.device_put(np.float32([0, 0, 1, 1]).reshape(1, 2, 2, 1))


def elementwise(shift, process=PROCESS, kind="velocity", seen=None):
    """A denoiser whose network output is `sin(x) + shift + told`, and that notes what it was shown."""

    def denoise(x, times):
        if seen is not None:
            seen.append((x, times))
        out = jnp.sin(x) + shift + timefield.like(times.told, x)
        pred = predict(process, kind, out, x, times.level)
        return pred._replace(aux={"log_variance": jnp.broadcast_to(timefield.like(times.told, x), (*x.shape[:3], 1))})

    return denoise


def point(batch=2, process=PROCESS):
    """An image and a field with cells at 0, between and at 1."""
    t = jax.device_put(np.tile(np.float32([0, 0, 0.3, 1]).reshape(1, 2, 2, 1), (batch, 1, 1, 1)))
    return drawn.normal(batch, 4, 4, 3), Times(t, t)


def velocity(pred, t):
    return output(PROCESS, "velocity", pred, t)


def consistent(pred, x, t, process=PROCESS):
    t = timefield.like(t, x)
    np.testing.assert_allclose(process.alpha(t) * pred.x0 + process.sigma(t) * pred.eps, x, rtol=1e-4, atol=1e-5)


def test_classifier_free_is_its_formula_per_image():
    x, times = point()
    c, u = elementwise(0.0), elementwise(0.5)
    pred = classifier_free(two_calls(c, u), jnp.asarray([3.0, 1.0]))(x, times)
    out_c, out_u = (velocity(f(x, times), times.level) for f in (c, u))
    w = jnp.asarray([3.0, 1.0]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(velocity(pred, times.level), out_u + w * (out_c - out_u), rtol=1e-4, atol=1e-5)
    consistent(pred, x, times.level)
    assert (pred.x0[1] == c(x, times).x0[1]).all()
    assert (pred.eps[1] == c(x, times).eps[1]).all()


def test_the_interval_is_per_cell():
    x, times = point()
    c, u = elementwise(0.0), elementwise(0.5)
    pred = classifier_free(two_calls(c, u), 3.0, interval=(0.2, 0.5))(x, times)
    everywhere = classifier_free(two_calls(c, u), 3.0)(x, times)
    inside = np.zeros((2, 4, 4, 3), bool)
    inside[:, 2:, :2] = True
    assert (pred.x0 == jnp.where(inside, everywhere.x0, c(x, times).x0)).all()
    assert not np.array_equal(pred.x0, c(x, times).x0)


def test_a_wrong_number_of_scales_is_refused():
    x, times = point()
    with pytest.raises(ValueError, match="expected one guidance scale"):
        classifier_free(two_calls(elementwise(0.0), elementwise(0.5)), jnp.ones(3))(x, times)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity", "score"])
@pytest.mark.parametrize("process", [RectifiedFlow(), Cosine()], ids=["rectified_flow", "cosine"])
def test_no_input_guidance_is_the_plain_denoiser(process, kind):
    x, times = point()
    plain = elementwise(0.0, process, kind)
    guided = input_guidance(plain, process, kind, MASK, jax.random.key(0), 0.0)
    pred, expected = jax.device_get(jax.jit(lambda x, times: (guided(x, times), plain(x, times)))(x, times))
    # a cell at alpha = 0 leaves one half of x0- and eps-predictions open; the image that it stands for is the same
    np.testing.assert_allclose(pred.x0, expected.x0, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(pred.eps, expected.eps, rtol=2e-4, atol=2e-5)
    assert jax.tree.map(jnp.shape, pred) == jax.tree.map(jnp.shape, expected)


@pytest.mark.parametrize("noisier", [0.6, 1.0])
def test_input_guidance_is_its_formula_in_one_call(noisier):
    x, times = point()
    scale = np.float32([0.5, 2.0])

    @jax.jit
    def run(x, times, scale):
        seen = []

        def denoise(x, times):
            seen.append((x, timefield.like(times.told, x)))
            # the mean of the image matters, so that a hint tells something elsewhere
            out = jnp.sin(x) + seen[-1][1] + x.mean((1, 2, 3), keepdims=True)
            return predict(PROCESS, "velocity", out, x, times.level)

        guided = input_guidance(denoise, PROCESS, "velocity", MASK, jax.random.key(5), scale, noisier=noisier)
        pred = guided(x, times)
        assert len(seen) == 1
        return pred, velocity(pred, times.level), *seen[0]

    pred, guided, both, told = jax.device_get(run(x, times, scale))
    image, t = np.asarray(x), np.asarray(times.told).repeat(2, 1).repeat(2, 2)
    # images and their copies with a noisier hint lie next to each other
    assert (both[0::2] == image).all()
    assert (told[0::2] == t).all()
    hint, plus = both[1::2, :2], both[1::2]
    assert (told[1::2, :2] == noisier).all()
    assert (plus[:, 2:] == image[:, 2:]).all()
    noise = (hint - (1 - noisier) * image[:, :2]) / noisier
    assert abs(float(noise.std()) - 1) < 0.25
    assert not np.array_equal(noise[0], noise[1])
    # s(t) + w (s(t) - s(t+)) where something is generated, the plain prediction where it is known
    s, s_plus = (np.sin(v) + t + v.mean((1, 2, 3), keepdims=True) for v, t in ((image, t), (plus, told[1::2])))
    assert np.abs(s - s_plus)[:, 2:].min() > 1e-3
    expected = s + scale.reshape(2, 1, 1, 1) * (s - s_plus)
    np.testing.assert_allclose(guided[:, 2:], expected[:, 2:], rtol=1e-4, atol=1e-5)
    assert (pred.x0[:, :2] == image[:, :2]).all()
    consistent(pred, x, times.level)


def test_a_hint_noisier_than_that_stays():
    x, times = point()
    times = jax.tree.map(lambda t: t.at[:, 0].set(0.7), times)
    seen = []
    input_guidance(elementwise(0.0, seen=seen), PROCESS, "velocity", MASK, jax.random.key(5), 1.0, noisier=0.4)(
        x, times
    )
    assert (seen[0][0][0::2] == seen[0][0][1::2]).all()
    assert (seen[0][1].level[0::2] == seen[0][1].level[1::2]).all()


def test_input_guidance_and_classifier_free_commute_at_four_evaluations():
    x, times = point()
    key, scale = jax.random.key(5), jnp.asarray([1.5, 3.0])
    seen = []
    c, u = (elementwise(shift, seen=seen) for shift in (0.0, 0.5))

    def hinted(denoise):
        return input_guidance(denoise, PROCESS, "velocity", MASK, key, 0.7)

    outside, inside = (
        hinted(classifier_free(two_calls(c, u), scale)),
        classifier_free(two_calls(hinted(c), hinted(u)), scale),
    )
    one = outside(x, times)
    assert sum(x.shape[0] for x, _ in seen) == 4 * x.shape[0]
    two = inside(x, times)
    assert sum(x.shape[0] for x, _ in seen) == 8 * x.shape[0]
    np.testing.assert_allclose(one.x0, two.x0, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.eps, two.eps, rtol=1e-4, atol=1e-5)


def test_look_ahead_predicts_the_uncertain_with_the_certain_further_on():
    doubts = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1).repeat(2, 0).repeat(2, 1).repeat(2, 2)

    def denoise(x, times):
        # the mean of the image matters, so that context does
        out = jnp.sin(x) + x.mean((1, 2, 3), keepdims=True)
        return predict(PROCESS, "velocity", out, x, times.level)._replace(aux={"log_variance": jnp.asarray(doubts)})

    @jax.jit
    def run(x, times):
        seen = []

        def noted(x, times):
            seen.append((x, times))
            return denoise(x, times)

        pred = look_ahead(noted, PROCESS, (2, 2), confident=0.4, ratio=1.4)(x, times)
        further, ahead = seen[1]
        return pred, denoise(x, times), further, timefield.dense(ahead.told), denoise(further, ahead)

    image, t = drawn.normal(2, 4, 4, 1), timefield.constant(0.5, 2)
    pred, first, further, told, second = jax.device_get(run(image, Times(t, t)))
    x = np.asarray(image)
    # ranks of four cells are 1/8, 3/8, 5/8, 7/8: the first two are within .4
    np.testing.assert_allclose(told[:, :, :, 0], [[[0.3, 0.3], [0.5, 0.5]]] * 2, rtol=1e-6)
    np.testing.assert_allclose(further[:, :2], 0.7 * first.x0[:, :2] + 0.3 * first.eps[:, :2], rtol=1e-5, atol=1e-6)
    assert (further[:, 2:] == x[:, 2:]).all()
    assert (pred.x0[:, :2] == first.x0[:, :2]).all()
    assert (pred.x0[:, 2:] == second.x0[:, 2:]).all()
    consistent(pred, image, t)
    for wrong in ({"confident": 0.0}, {"ratio": 0.9}):
        with pytest.raises(ValueError, match=r"expected (0 < confident < 1|ratio >= 1)"):
            look_ahead(denoise, PROCESS, (2, 2), **wrong)


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (4, 4), (3, 1)])
def test_few_times_are_guided_as_the_field_that_they_are(grid):
    values, index = drawn.uniform(2, 2, seed=1), np.random.default_rng(2).integers(0, 2, (2, *grid, 1), np.int8)

    def guided(x, times):
        seen = []
        one = input_guidance(elementwise(0.0, seen=seen), PROCESS, "velocity", MASK, jax.random.key(5), 0.7)
        two = look_ahead(elementwise(0.0, seen=seen), PROCESS, (12, 4))
        return [one(x, times), two(x, times)], [times.told for _, times in seen]

    @jax.jit
    def both(x, few):
        level = timefield.dense(few)
        return guided(x, Times(level, few)), guided(x, Times(level, level))

    (ours, told), (theirs, _) = jax.device_get(both(drawn.normal(2, 12, 4, 3), FewTimes(values, index)))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.x0, b.x0, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a.eps, b.eps, rtol=1e-5, atol=1e-6)
    hinted, _, ahead = told
    assert ahead.values.shape[1] == 4
    # the grids of the hint and of the third field refine each other along no axis: then it is written out
    assert grid == (3, 1) or hinted.values.shape[1] == 4


# -------------------------------------------------------------------------------------------------- paste_back
def test_known_pixels_come_back_bit_for_bit():
    x, known = np.asarray(drawn.normal(2, 1, 8, 8, 3))
    mask = np.zeros((1, 8, 8, 1), np.float32)
    mask[:, 2:5, 3:] = 1
    known = np.where(mask > 0, np.nan, known)
    pasted = np.asarray(jax.jit(paste_back)(x, known, mask))
    assert (pasted == np.where(mask > 0, x, known)).all()


def test_wrong_sizes_are_refused():
    x = jnp.zeros((1, 4, 4, 3))
    with pytest.raises(ValueError, match="of one size"):
        paste_back(x, x, jnp.zeros((1, 2, 2, 1)))
