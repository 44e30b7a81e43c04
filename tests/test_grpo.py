"""GRPO of a timestep prediction module: the surrogate against finite differences, and a bandit that it solves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from asyncpatch_jax import beta, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.models import TPM
from asyncpatch_jax.models.tpm import observe
from asyncpatch_jax.process import RectifiedFlow
from asyncpatch_jax.sampling import Euler, Inpaint, Synchronous, TPMSchedule, linear
from asyncpatch_jax.training import grpo
from asyncpatch_jax.training.step import adam, create
from asyncpatch_jax.types import Condition, Prediction
from tests.drawn import params as random_params

STEPS, IMAGES = 3, 8
SIZE = (4, 4, 1)
MODULE = TPM(patch=2, width=8, depth=1, heads=2, mlp_ratio=2, global_tokens=2)
BASE = Synchronous(linear(STEPS))
MASK = jax.device_put(np.repeat(np.float32([0, 0, 1, 1]), 4).reshape(1, 4, 4, 1))


def denoise(x, times):
    told = timefield.dense(times.told).mean((1, 2, 3), keepdims=True)
    return Prediction(0.3 * x, jnp.sin(x) + 0.1 * told, {})


@functools.cache
def params(module):
    """Random ones, whose last layer is not zero."""

    def seen(x, times):
        return observe(x, Prediction(x, x, {}), times, 0, 2)

    found = random_params(module, jax.eval_shape(seen, jnp.zeros((1, *SIZE)), jnp.ones((1, 1, 1, 1))))
    # far enough from Beta(2, 2) that float32 keeps the digits of the divergence
    return {**found, "belief": jax.tree.map(lambda leaf: jax.device_put(2 * np.asarray(leaf)), found["belief"])}


@functools.partial(jax.jit, static_argnums=0)
def beliefs(module, params, trajectory):
    """Of the steps that were taken, with their entropies and divergences from Beta(2, 2)."""
    belief = grpo.beliefs(module, params, trajectory)
    flat = beta.Beta(jnp.full_like(belief.alpha, 2.0), jnp.full_like(belief.beta, 2.0))
    return belief, beta.entropy(belief), beta.divergence(belief, flat)


@functools.partial(jax.jit, static_argnames=("module", "images"))
def rolled(params, key, base=BASE, *, module=MODULE, images=IMAGES):
    keys = keys_lib.per_image(key, images)
    schedule = TPMSchedule(base, module, params, mode="sample")
    return grpo.rollout(denoise, Euler(RectifiedFlow()), schedule, keys, keys_lib.normal(keys, SIZE))


@functools.cache
def batch():
    """Images with ratios near 1 and outside of the clip on both sides, for both signs; the last does not count."""
    drawn = rolled(params(MODULE), jax.random.key(2)).trajectory
    shift = np.float32([0.02, -0.03, 0.5, -0.5, 0.5, -0.5, 0.1, 0.9])
    advantage = np.float32([1.0, -0.7, 1.2, 0.8, -1.0, -0.9, 0.5, 2.0])
    drawn = drawn._replace(log_prob=np.asarray(drawn.log_prob) - shift[:, None] / (STEPS - 1))
    return grpo.Batch(drawn, advantage, np.float32([1.0] * 7 + [0.0])), np.exp(shift)


def only(image):
    return np.eye(IMAGES, dtype=np.float32)[image]


def test_advantages():
    rewards = jnp.asarray([[1.0, 2.0, 4.0, 5.0], [3.0, 3.0, 3.0, 3.0], [0.1, 0.1, 0.10005, 0.1]])
    advantage, used = jax.device_get(jax.jit(grpo.advantages)(rewards))
    np.testing.assert_array_equal(used, [True, False, False])
    std = np.std([1, 2, 4, 5])
    np.testing.assert_allclose(advantage[0], (np.array([1, 2, 4, 5]) - 3) / (std + 1e-4), rtol=1e-5)
    assert (advantage[1:] == 0).all()
    with pytest.raises(ValueError, match="two images or more"):
        grpo.advantages(rewards[:, :1])
    with pytest.raises(ValueError, match="a multiple of 3 draws, got 3 of 4"):
        grpo.advantages(rewards, 3)


def test_draws_of_a_noise_are_compared_with_each_other():
    """What a noise is worth has no part in an advantage, and all of a group's differences keep their sizes."""
    rng = np.random.default_rng(0)
    off = rng.normal(size=(3, 4, 2))
    off -= off.mean(2, keepdims=True)
    worth = 100 * rng.normal(size=(3, 4, 1))
    off[2], worth[2] = 0, [[1], [2], [3], [4]]
    rewards = (off + worth).reshape(3, 8).astype(np.float32)
    advantage, used = jax.device_get(jax.jit(grpo.advantages, static_argnums=1)(rewards, 2))
    spread = np.sqrt((off**2).mean((1, 2), keepdims=True))
    np.testing.assert_allclose(advantage[:2], (off / (spread + 1e-4))[:2].reshape(2, 8), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(used, [True, True, False])
    assert (advantage[2] == 0).all()


def test_a_trajectory_is_what_was_seen_and_drawn():
    module = MODULE.clone(cell=1)
    drawn = jax.device_get(rolled(params(module), jax.random.key(3), Inpaint(MASK, linear(STEPS)), module=module))
    drawn = drawn.trajectory
    assert drawn.rho.shape == (IMAGES, STEPS - 1, 2, 2)
    np.testing.assert_allclose(drawn.seen.progress[0], [0, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(drawn.seen.told[:, 1, 3, 0, 0], 1 - (drawn.rho[:, 0, -1, 0] + 0.5) / 3, rtol=1e-5)
    # cells that are known take no part
    np.testing.assert_array_equal(drawn.acts[0, 0, :, 0], [0, 1])
    belief, _, _ = beliefs(module, params(module), drawn)
    log_prob = scipy.stats.beta.logpdf(*map(np.asarray, (drawn.rho, belief.alpha, belief.beta)))
    np.testing.assert_allclose(drawn.log_prob, (log_prob * drawn.acts).sum((2, 3)), rtol=1e-4, atol=1e-4)
    assert len(np.unique(drawn.rho)) == drawn.rho.size


def test_nothing_of_a_rollout_has_a_gradient():
    """The update asks the module again, about what was seen then."""
    grads = jax.jit(jax.grad(lambda params: rolled(params, jax.random.key(3)).trajectory.log_prob.sum()))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.device_get(grads(params(MODULE)))))


@jax.jit
def surrogate(params, batch):
    loss = functools.partial(grpo.surrogate, module=MODULE, clip=0.2, kl=0.3)
    return jax.value_and_grad(loss, has_aux=True)(params, batch)


def test_the_surrogate_is_its_formula():
    whole, ratio = batch()
    (loss, metrics), _ = surrogate(params(MODULE), whole)
    a, r = whole.advantage[:7], ratio[:7]
    _, entropy, kl = jax.device_get(beliefs(MODULE, params(MODULE), whole.trajectory))
    expected = np.minimum(r * a, np.clip(r, 0.8, 1.2) * a).mean()
    np.testing.assert_allclose(loss, 0.3 * kl[:7].mean() - expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["kl"], kl[:7].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], entropy[:7].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["ratio_mean"], r.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["ratio_max"], r.max(), rtol=1e-4)
    np.testing.assert_allclose(metrics["clip_fraction"], 4 / 7, rtol=1e-6)


def test_its_gradient_is_that_of_finite_differences():
    """Of all images; and of one inside the clip (0) or outside of it, held by the clip (2, 5) or not (3, 4)."""
    whole, _ = batch()
    at, leaves = jax.device_get(params(MODULE)), jax.tree.leaves
    rng = np.random.default_rng(0)
    for image in (None, 0, 2, 3, 4, 5):
        some = whole if image is None else whole._replace(weight=only(image))
        grads = jax.device_get(surrogate(at, some)[1])
        norm = np.sqrt(sum(float((g**2).sum()) for g in leaves(grads)))
        noise = [rng.normal(size=g.shape).astype(np.float32) for g in leaves(grads)]
        size = np.sqrt(sum((d**2).sum() for d in noise))
        for direction, length in ((leaves(grads), norm), (noise, size)):
            directed = jax.tree.unflatten(jax.tree.structure(at), [d / np.float32(length) for d in direction])
            moved = [jax.tree.map(lambda p, d, s=s: p + np.float32(s) * d, at, directed) for s in (1e-2, -1e-2)]
            ahead, back = (float(surrogate(params, some)[0][0]) for params in moved)
            expected = sum(float((g * d).sum()) for g, d in zip(leaves(grads), leaves(directed), strict=True))
            np.testing.assert_allclose((ahead - back) / 2e-2, expected, rtol=5e-3, atol=2e-3 * norm)


@pytest.mark.parametrize(("image", "held"), [(0, False), (2, True), (3, False), (4, False), (5, True)])
def test_what_the_clip_holds_has_no_gradient(image, held):
    whole, _ = batch()
    _, grads = surrogate(params(MODULE), whole._replace(weight=only(image)))
    still = whole._replace(weight=only(image), advantage=np.zeros(IMAGES, np.float32))
    _, of_divergence = surrogate(params(MODULE), still)
    same = [np.allclose(a, b, atol=1e-6) for a, b in zip(*map(jax.tree.leaves, (grads, of_divergence)), strict=True)]
    assert all(same) == held


OPTIMIZER = adam(1e-2)


@functools.partial(jax.jit, static_argnames=("minibatch", "passes"))
def updated(state, trajectory, rewards, key, minibatch=1, passes=1):
    advantage, used = grpo.advantages(rewards)
    return grpo.update(
        state, trajectory, advantage, used, key, module=MODULE, optimizer=OPTIMIZER, minibatch=minibatch, passes=passes
    )


def differ(a, b):
    return any(not np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_an_update():
    drawn = jax.device_get(rolled(params(MODULE), jax.random.key(2))).trajectory
    state, rewards = create(params(MODULE), OPTIMIZER), np.random.default_rng(4).normal(size=(2, IMAGES // 2))
    rewards = rewards.astype(np.float32)
    equal, half = np.ones_like(rewards), rewards.copy()
    half[0] = 1
    # all images at once are on the policy that drew them: the ratio is 1, and the loss minus the mean advantage, 0
    _, metrics = updated(state, drawn, rewards, jax.random.key(0), minibatch=IMAGES)
    np.testing.assert_allclose([metrics["ratio_mean"], metrics["ratio_max"]], 1.0, rtol=1e-5)
    np.testing.assert_allclose([metrics["loss"], metrics["clip_fraction"]], 0.0, atol=1e-5)
    np.testing.assert_allclose(metrics["advantage_spread"], 1.0, rtol=1e-3)
    np.testing.assert_allclose(metrics["deviation"], drawn.rho.mean() - 0.5, rtol=1e-4)
    np.testing.assert_allclose(metrics["deviation/01"], drawn.rho[:, 1].mean() - 0.5, rtol=1e-4)
    assert metrics["grad_norm"] > 0

    # in parts, the second is not; the same seed gives the same bits, another one another order
    after, metrics = updated(state, drawn, rewards, jax.random.key(0))
    assert metrics["ratio_max"] > 1.001
    assert after.step == 1
    assert not differ(after, updated(state, drawn, rewards, jax.random.key(0))[0])
    for other, seed in ((state, 1), (state.replace(step=1), 0)):  # or another iteration
        assert differ(after.params, updated(other, drawn, rewards, jax.random.key(seed))[0].params)

    # groups of equal rewards are counted and move nothing, whatever momentum there is
    still, metrics = updated(after, drawn, equal, jax.random.key(0))
    assert metrics["skipped_groups"] == 2
    assert (still.step, metrics["finite"]) == (2, 1)
    assert not differ(still.replace(step=1), after.replace(step=1))
    one, metrics = updated(after, drawn, half, jax.random.key(0), minibatch=IMAGES)
    assert metrics["skipped_groups"] == 1
    assert differ(one.params, after.params)
    # the other group's images count, and no others
    _, entropy, _ = jax.device_get(beliefs(MODULE, after.params, drawn))
    np.testing.assert_allclose(metrics["entropy"], entropy[IMAGES // 2 :].mean(), rtol=1e-4)
    # nor have minibatches of none of them a part in means
    _, parts = updated(after, drawn, half, jax.random.key(0))
    np.testing.assert_allclose(parts["entropy"], metrics["entropy"], rtol=0.05)

    # a number that is not one is told of, and goes no further
    log_prob, rho = np.array(drawn.log_prob), np.full_like(drawn.rho, 0.5)
    log_prob[0] = np.nan
    broken = drawn._replace(log_prob=log_prob)
    kept, metrics = updated(after, broken, rewards, jax.random.key(0), minibatch=IMAGES)
    assert metrics["finite"] == 0
    assert not differ(kept.replace(step=1), after.replace(step=1))
    kept, metrics = updated(after, broken, rewards, jax.random.key(0))
    assert metrics["finite"] == 0
    assert differ(kept.params, after.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.params))

    rho[0], rho[1, 0], rho[2] = 0.995, 0.004, 0.97
    drawn = drawn._replace(rho=rho)
    np.testing.assert_allclose(updated(state, drawn, rewards, jax.random.key(0))[1]["at_bound"], 3 / 16, rtol=1e-6)


def test_a_bandit_is_solved():
    """Reward -(rho - c)^2 with another c for each step: the modes end within .06 of it, from 1/2."""
    target = jnp.asarray([0.85, 0.3])

    @jax.jit
    def iteration(state, key):
        drawn = rolled(state.params, jax.random.fold_in(key, state.step), images=32).trajectory
        rewards = -jnp.square(drawn.rho[..., 0, 0] - target[None]).sum(1).reshape(2, 16)
        state, metrics = updated(state, drawn, rewards, key, minibatch=16)
        return state, (metrics, beta.mode(grpo.beliefs(MODULE, state.params, drawn)).mean((0, 2, 3)), rewards.mean())

    fresh = params(MODULE)
    state = create({**fresh, "belief": jax.tree.map(jnp.zeros_like, fresh["belief"])}, OPTIMIZER)
    curve = []
    for _ in range(120):
        state, (metrics, modes, reward) = iteration(state, jax.random.key(5))
        curve.append(float(reward))
    assert metrics["finite"] == 1
    np.testing.assert_allclose(modes, target, atol=0.06)
    assert np.mean(curve[-10:]) > 0.3 * np.mean(curve[:10])
    assert metrics["entropy"] < -0.3


def test_what_does_not_fit_is_refused():
    drawn = jax.eval_shape(rolled, params(MODULE), jax.random.key(2)).trajectory
    state = create(params(MODULE), OPTIMIZER)
    with pytest.raises(ValueError, match="a minibatch that divides 8 images"):
        jax.eval_shape(functools.partial(updated, minibatch=3), state, drawn, jnp.ones((2, 4)), jax.random.key(0))
    with pytest.raises(ValueError, match="two steps or more"):
        jax.eval_shape(rolled, params(MODULE), jax.random.key(2), Synchronous(linear(1)))
    schedule = TPMSchedule(BASE, MODULE, params(MODULE), Condition())
    with pytest.raises(ValueError, match="a schedule that draws"):
        grpo.rollout(denoise, Euler(RectifiedFlow()), schedule, jax.random.key(0), jnp.zeros((2, *SIZE)))


def test_conditions_of_groups():
    tokens = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    both = jax.device_get(jax.jit(grpo.grouped, static_argnums=1)(Condition(tokens=tokens, label=np.int32([4, 5])), 2))
    np.testing.assert_array_equal(both.label, [4, 4, 5, 5])
    assert (both.tokens[1] == tokens[0]).all()
