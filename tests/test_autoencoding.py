"""Training the autoencoder: gradients against plain automatic differentiation, and what a step may and may not move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asyncpatch_jax import data
from asyncpatch_jax.data import dataset
from asyncpatch_jax.metrics import leakage
from asyncpatch_jax.models import autoencoder
from asyncpatch_jax.models.autoencoder import LocalisedAutoencoder
from asyncpatch_jax.models.discriminator import PatchDiscriminator
from asyncpatch_jax.training import autoencoding
from asyncpatch_jax.training.autoencoding import Objective, Step
from tests import drawn

MODEL = LocalisedAutoencoder(
    **{"channels": 1, "latent_channels": 2, "codes": 6, "base": 4, "multipliers": (1, 2), "windows": (3, 1)},
    **{"blocks": 1},
)
JUDGE = PatchDiscriminator(4, 1)
PARAMS = drawn.params_like(autoencoder.shapes(MODEL), scale=0.5)
IMAGES = drawn.uniform(2, 8, 8, 1, low=-1)
JUDGED = drawn.params(JUDGE, IMAGES, seed=1)
HOLE = np.zeros((2, 8, 8, 1), np.float32)
HOLE[0, 2:6, 3:6] = 1  # the other has none
BATCH = {"image": IMAGES, "mask": jax.device_put(HOLE)}
FROZEN = drawn.normal(3, seed=2)


def perceptual(frozen, images, originals):
    return jnp.mean(jnp.square((images - originals) @ frozen[:, None]), (1, 2, 3))


OBJECTIVE = Objective(perceptual=2.0, codebook=0.7, commitment=0.3, adversarial=0.6, start=5, restart=0.01)
STEP = Step(MODEL, JUDGE, OBJECTIVE, optax.sgd(1.0), 0.9, perceptual)
_step = jax.jit(STEP)


def state(step, **usage):
    made = autoencoding.create(PARAMS, JUDGED, STEP.optimizer)
    usage = {**{"share": jnp.ones(6), "sums": jnp.zeros((6, 2))}, **usage}
    return made.replace(step=jnp.int32(step), params={**made.params, "usage": usage})


_mixed = jax.jit(lambda params, images, mask: autoencoding.mixed(MODEL, params, images, mask))


def _moved(before, after):
    return jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), before, after)


@jax.jit
def _plain(params, judged):
    """Gradients of the losses as they are written, with the adaptive weight of eq. 7 from gradients of their own."""
    hold = jax.lax.stop_gradient

    def judge(judged, images):
        return JUDGE.apply({"params": judged}, images)

    def image_losses(made):
        seen = perceptual(FROZEN, *(jnp.broadcast_to(x, (2, 8, 8, 3)) for x in (made, IMAGES))).mean()
        return jnp.stack([jnp.abs(made - IMAGES).mean() + 2.0 * seen, -judge(hold(judged), made).mean()])

    def total(params, judged):
        out = lambda z, **more: MODEL.apply({"params": params}, z, **more)  # noqa: E731
        whole, masked = out(IMAGES, method="encode"), out(IMAGES, mask=BATCH["mask"], method="encode")
        hole = BATCH["mask"].reshape(2, 4, 2, 4, 2, 1).max((2, 4))
        found = out(hole * whole + (1 - hole) * masked, method="quantise")
        features = out(found.latents, mask=BATCH["mask"], method="features")

        def of_last(kernel):
            last = {"out": {**hold(params["out"]), "kernel": kernel}}
            return image_losses(MODEL.apply({"params": last}, hold(features), method="last"))

        norms = jnp.sqrt(jnp.sum(jax.jacrev(of_last)(hold(params["out"]["kernel"])) ** 2, (1, 2, 3, 4)))
        weight = norms[0] / (norms[1] + 1e-4)
        made = out(features, method="last")
        nll, fooled = image_losses(made)
        real, fake = judge(judged, IMAGES), judge(judged, hold(made))
        told_apart = 0.5 * (jnp.maximum(0, 1 - real).mean() + jnp.maximum(0, 1 + fake).mean())
        return nll + 0.6 * weight * fooled + 0.7 * found.codebook + 0.3 * found.commitment + told_apart, weight

    return jax.grad(total, (0, 1), has_aux=True)(params, judged)


def test_a_step_follows_the_gradient_of_the_loss():
    (wanted, judged), weight = _plain(PARAMS, JUDGED)
    before = state(5)
    after, metrics = _step(before, FROZEN, BATCH, jax.random.key(0))
    np.testing.assert_allclose(metrics["adaptive_weight"], weight, rtol=1e-4)
    for name, grads in (("model", wanted), ("discriminator", judged)):
        found = _moved(before.params[name], after.params[name])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6), found, grads)
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(judged)) > 1e-3
    # an average that is warmed up: (1 + 5) / (10 + 5)
    kept = _moved(after.params["model"], after.ema)
    there = _moved(after.params["model"], before.ema)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.4 * b, rtol=1e-3, atol=1e-6), kept, there)


def test_before_its_start_the_discriminator_neither_learns_nor_counts():
    before = state(4)
    after, metrics = _step(before, FROZEN, BATCH, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, before.params["discriminator"], after.params["discriminator"])
    out = _moved(before.params["model"], after.params["model"])["out"]["kernel"]
    # as the last layer moves where the weight is at its start, less the discriminator's part, which is as large
    started, _ = _step(state(5), FROZEN, BATCH, jax.random.key(0))
    other = _moved(before.params["model"], started.params["model"])["out"]["kernel"] - out
    np.testing.assert_allclose(np.linalg.norm(other), 0.6 * np.linalg.norm(out), rtol=1e-2)
    assert metrics["discriminator_loss"] > 0


def test_codes_that_nobody_uses_begin_again_in_the_average_too():
    before = state(5, share=jnp.zeros(6))
    after, _ = _step(before, FROZEN, BATCH, jax.random.key(0))
    codebook, average = (np.asarray(p["quantiser"]["codebook"]) for p in (after.params["model"], after.ema))
    again = np.asarray(after.params["usage"]["share"]) == 1.0
    assert 0 < again.sum() < 6
    np.testing.assert_array_equal(codebook[again], average[again])
    assert np.abs(codebook[~again] - average[~again]).max() > 1e-5
    vectors = np.asarray(_mixed(PARAMS, IMAGES, BATCH["mask"])[1]).reshape(-1, 2)
    apart = np.abs(codebook[again][:, None] - vectors[None]).max(-1)
    np.testing.assert_allclose(apart.min(1), 0.0, atol=1e-6)  # at vectors of the batch


def test_a_step_that_is_not_finite_is_refused():
    before = state(5)
    broken = {**BATCH, "image": IMAGES.at[0, 0, 0].set(jnp.nan)}
    after, metrics = _step(before, FROZEN, broken, jax.random.key(0))
    assert metrics["finite"] == 0
    assert after.step == 6
    same = (before.params, before.ema, before.opt_state), (after.params, after.ema, after.opt_state)
    jax.tree.map(np.testing.assert_array_equal, *same)


def test_known_cells_are_encoded_without_the_hole_and_leak_as_the_measure_says():
    whole, latents, hole = (np.asarray(x) for x in _mixed(PARAMS, IMAGES, BATCH["mask"]))
    masked = np.asarray(MODEL.apply({"params": PARAMS}, IMAGES, BATCH["mask"], method="encode"))
    cells = HOLE.reshape(2, 4, 2, 4, 2, 1).max((2, 4))
    np.testing.assert_array_equal(hole, cells > 0)
    np.testing.assert_allclose(latents, np.where(cells > 0, whole, masked), rtol=1e-4, atol=1e-5)
    assert np.abs(masked - whole).max() > 1e-2
    # a hole in the corner, so that there are cells further away than one
    hole = np.zeros((1, 8, 8, 1), np.float32)
    hole[:, :2, :2] = 1
    latents = whole + np.random.default_rng(0).normal(size=whole.shape).astype(np.float32)
    found = autoencoding.moved_beyond(
        jnp.asarray(whole), jnp.asarray(latents), jnp.asarray(np.concatenate([hole, 0 * hole])[:, ::2, ::2] > 0)
    )
    distance = np.concatenate([leakage.away(hole, 2), np.zeros((1, 4, 4), int)])
    rings = leakage.latents_moved(whole, latents, distance, longest=2)
    np.testing.assert_allclose(found, rings[1].moved, rtol=1e-5)


def _convolved(x, kernel, stride):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (4, 4), (1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijcd->bhwd", windows, kernel)


def test_the_discriminator_is_the_published_one():
    leaky = lambda x: np.where(x > 0, x, 0.2 * x)  # noqa: E731
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), JUDGED)
    x = leaky(_convolved(np.asarray(IMAGES, np.float64), p["in"]["kernel"], 2) + p["in"]["bias"])
    x = _convolved(x, p["wide"]["kernel"], 1)
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    x = leaky(x * p["norm_wide"]["scale"] + p["norm_wide"]["bias"])
    x = _convolved(x, p["out"]["kernel"], 1) + p["out"]["bias"]
    np.testing.assert_allclose(JUDGE.apply({"params": JUDGED}, IMAGES), x, rtol=1e-4, atol=1e-5)
    image = jax.ShapeDtypeStruct((2, 256, 256, 3), np.float32)
    made, shapes = jax.eval_shape(PatchDiscriminator().init_with_output, jax.random.key(0), image)
    assert made.shape == (2, 30, 30, 1)
    # of the authors' code for 3 colours, less the running statistics
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2_765_633
    with pytest.raises(ValueError, match="24 pixels a side or more for 3 layers, got 16"):
        PatchDiscriminator().init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def test_masks_come_by_their_shares():
    source = data.digits()
    stream = dataset.batches(source, batch=200, seed=0, masks={"half": 0.5, "square": 0.25}, threads=0)
    masks = next(stream)["mask"].mean((1, 2, 3))
    shares = [np.mean(masks == area) for area in (0.5, 0.25, 0.0)]
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.1)
    for masks, message in (
        ({"half": 1.1}, "the share of 'half' masks <= 1"),
        ({"half": 0.6, "square": 0.6}, "shares of masks of 1 at most"),
        ({"hole": 0.5}, "expected a mask out of"),
    ):
        with pytest.raises(ValueError, match=message):
            dataset.batches(source, batch=2, seed=0, masks=masks, threads=0)


def test_settings_out_of_range_are_refused():
    for name, value in (("perceptual", -1.0), ("start", -1), ("decay", 1.0), ("restart", 1.0)):
        with pytest.raises(ValueError, match=name):
            Objective(**{name: value})
