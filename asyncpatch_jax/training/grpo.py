"""Group-relative policy optimisation (GRPO) of a timestep prediction module, on rewards without gradients.

Source: AsyncDiff (arXiv 2512.18675), after Shao et al. 2024 (arXiv 2402.03300). The denoiser is frozen and the sampler
deterministic: only the module draws, and only it has gradients. One iteration is

    rolled = rollout(denoise, solver, schedule, keys, noise)              # prompts x noises images, as one scan
    advantage, used = advantages(rewards)                                 # [prompts, images], of the decoded images
    state, metrics = update(state, rolled.trajectory, advantage, used, key, ...)

An image's deviations are one action: its ratio is that of the whole trajectory. A deviation that nothing is told of has
no part in it: the last step's, and those of cells where nothing moves.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from asyncpatch_jax import beta, checks, sharding
from asyncpatch_jax.beta import Beta
from asyncpatch_jax.keys import threefry
from asyncpatch_jax.models.tpm import TPM, Observation, observe
from asyncpatch_jax.sampling.loop import sample
from asyncpatch_jax.sampling.schedules.tpm import TPMSchedule
from asyncpatch_jax.sampling.solvers import Solver
from asyncpatch_jax.sampling.state import SamplerState
from asyncpatch_jax.training.step import Metrics, TrainState, train_step
from asyncpatch_jax.types import Condition, Denoiser, Image, Prediction

# a group whose rewards spread less says nothing
LEAST_SPREAD = 1e-4
# a deviation this far from 1/2 is at the bound
_AT_BOUND = 0.49
# what the divergence is from: the module before any training
_START = 2.0


class Trajectory(NamedTuple):
    """What the module saw and drew, of each of s = num_steps - 1 steps of each image.

    seen: observations, each part [b, s, ...].
    rho: what was drawn [b, s, rh, rw].
    acts: 1 where that has an effect, else 0 [b, s, rh, rw].
    log_prob: of what was drawn, by the module that drew it, summed over the cells where it has an effect [b, s].
    cond: what the module knew of the images [b], or None.
    """

    seen: Observation
    rho: Float[Array, "b s rh rw"]
    acts: Float[Array, "b s rh rw"]
    log_prob: Float[Array, "b s"]
    cond: Condition | None


class Rollout(NamedTuple):
    """The images or latents [b, h, w, c] that a batch ended with, and how it came to them."""

    images: Image
    trajectory: Trajectory


def grouped(tree: Any, images: int) -> Any:
    """What p groups have, such as conditions [p, ...], of each image, those of a group together [p * images, ...]."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, images, axis=0), tree)


def rollout(denoise: Denoiser, solver: Solver, schedule: TPMSchedule, key: Key[Array, "..."], x: Image) -> Rollout:
    """Sample a batch of images with what the module draws; pure, to be jitted with the network's parameters traced.

    Args:
        denoise: frozen, under its guidance.
        schedule: in mode "sample"; its condition is for the images [b].
        key: one key, or one per image [b]: what is drawn for an image depends on its own alone.
        x: as `sample` takes it, usually of `start`: each image of a group has another noise.

    Raises:
        ValueError: a schedule that does not draw, or has a single step, whose deviation has no effect.
    """
    checks.instance("schedule", schedule, TPMSchedule, 'TPMSchedule(base, module, params, mode="sample")')
    if schedule.mode != "sample":
        raise ValueError(f"expected a schedule that draws (mode = 'sample'), got mode = {schedule.mode!r}")
    steps = schedule.num_steps
    if steps < 2:
        raise ValueError(f"expected two steps or more (the last one's deviation has no effect), got {steps}")
    x = _spread(x)

    def trace(state: SamplerState, pred: Prediction) -> Any:
        own = state.schedule
        return observe(state.x, pred, state.times.told, own.step, steps), own.rho[..., 0], own.acts, own.belief

    state, (seen, rho, acts, belief) = sample(denoise, solver, schedule, key, x, num_steps=steps, trace=trace)
    # a call finds what the one before it drew
    seen = jax.tree.map(lambda leaf: leaf[:-1], seen)
    drawn = jax.tree.map(lambda leaf: leaf[1:], (rho, acts, belief))
    seen, (rho, acts, belief) = jax.tree.map(lambda leaf: _spread(jnp.moveaxis(leaf, 0, 1)), (seen, drawn))
    trajectory = Trajectory(seen, rho, acts, _log_prob(belief, rho, acts), schedule.cond)
    return Rollout(state.x, jax.lax.stop_gradient(trajectory))


def _spread(leaf: jax.Array) -> jax.Array:
    return sharding.constrain(leaf, "batch", *(None,) * (leaf.ndim - 1))


def _log_prob(belief: Beta, rho: Float[Array, "b s rh rw"], acts: Float[Array, "b s rh rw"]) -> Float[Array, "b s"]:
    return (acts * beta.log_prob(belief, rho)).sum((2, 3))


def advantages(
    rewards: Float[Array, "p g"], draws: int = 1, least: float = LEAST_SPREAD
) -> tuple[Float[Array, "p g"], Bool[Array, "p"]]:
    """`(R - mean) / (std + eps)` within each prompt's group of images, and which groups count.

    The paper's groups have one image of each noise: rewards differ by their noise much more than by what the module
    draws. With several draws of each noise the mean is that of the noise, and std that of the differences from it over
    the whole group: an image's advantage owes nothing to its noise, while what raises the mean reward stays the same.

    A group with a (population) std of less than `least` says nothing: its advantages are 0. And eps is `least`.

    Args:
        draws: images of each noise, next to each other.

    Raises:
        ValueError: rewards that are no numbers, groups of fewer than two images, or draws that do not divide them.
    """
    checks.shaped("rewards", rewards, "p g")
    checks.numbers("rewards", rewards)
    checks.number("least", least, above=0)
    p, g = rewards.shape
    checks.whole("draws", draws)
    if g < 2 or draws < 1 or g % draws:
        raise ValueError(f"expected groups of two images or more, a multiple of {draws} draws, got {p} of {g}")
    compared = rewards.reshape(p, -1, draws if draws > 1 else g)
    off = (compared - compared.mean(2, keepdims=True)).reshape(p, g)
    std = jnp.sqrt(jnp.square(off).mean(1, keepdims=True))
    used = std >= least
    return jnp.where(used, off / (std + least), 0.0), used[:, 0]


class Batch(NamedTuple):
    """Images of trajectories, with the advantage of each, and 1 where its group counts [b]."""

    trajectory: Trajectory
    advantage: Float[Array, "b"]
    weight: Float[Array, "b"]


def beliefs(module: TPM, params: Any, trajectory: Trajectory) -> Beta:
    """What the module answers now to what it saw then, [b, s, rh, rw]."""

    def of_step(seen: Observation) -> Beta:
        belief: Any = module.apply({"params": params}, seen, trajectory.cond)
        return belief

    # mapped over steps, so that the condition of an image is projected once
    return jax.vmap(of_step, in_axes=1, out_axes=1)(trajectory.seen)


def surrogate(
    params: Any, batch: Batch, *, module: TPM, clip: float = 0.2, kl: float = 0.0
) -> tuple[Float[Array, ""], Metrics]:
    """The loss `-mean(min(r A, clip(r, 1 - clip, 1 + clip) A)) + kl KL`, over the images that count.

    r is the ratio of the probabilities of an image's whole trajectory, now and when it was drawn. KL is that of each
    deviation's distribution from Beta(2, 2), with which every module begins, in closed form: the mean over deviations
    that have an effect.

    Returns:
        The loss, and entropy and KL (mean per deviation), ratio_mean, ratio_max and clip_fraction.

    Raises:
        ValueError: a negative clip or kl.
    """
    checks.number("clip", clip, 0)
    checks.number("kl", kl, 0)
    drawn = batch.trajectory
    belief = beliefs(module, params, drawn)
    log_ratio = (_log_prob(belief, drawn.rho, drawn.acts) - drawn.log_prob).sum(1)
    ratio = jnp.exp(log_ratio)
    gain = jnp.minimum(ratio * batch.advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * batch.advantage)

    def mean(value: Float[Array, "b"]) -> Float[Array, ""]:
        return (batch.weight * value).sum() / jnp.maximum(batch.weight.sum(), 1.0)

    def per_deviation(value: Float[Array, "b s rh rw"]) -> Float[Array, "b"]:
        return (drawn.acts * value).sum((1, 2, 3)) / jnp.maximum(drawn.acts.sum((1, 2, 3)), 1.0)

    first = Beta(*(jnp.full_like(part, _START) for part in belief))
    divergence = mean(per_deviation(beta.divergence(belief, first)))
    loss = kl * divergence - mean(gain)
    metrics = {
        "entropy": mean(per_deviation(beta.entropy(belief))),
        "kl": divergence,
        "ratio_mean": mean(ratio),
        "ratio_max": jnp.where(batch.weight > 0, ratio, 0.0).max(),
        "clip_fraction": mean((jnp.abs(ratio - 1.0) > clip).astype(jnp.float32)),
    }
    return loss, metrics


def update(
    state: TrainState,
    trajectory: Trajectory,
    advantage: Float[Array, "p g"],
    used: Bool[Array, "p"],
    key: Key[Array, ""],
    *,
    module: TPM,
    optimizer: optax.GradientTransformation,
    minibatch: int = 4,
    passes: int = 1,
    clip: float = 0.2,
    kl: float = 0.0,
    ema: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """One iteration's steps: the images in a random order, `minibatch` at a time. Pure, to be jitted.

    A minibatch all of whose groups are skipped moves nothing, neither parameters nor moments; nor does one whose
    gradient is not finite. `state.step` counts iterations, and is what the key is folded with.

    Args:
        optimizer: such as `step.adam(1e-5, clip=1.0)`, the paper's (2e-5 for FLUX).
        key: the run's seed, the same at every iteration.
        ema: decay of the averaged parameters over minibatches, see `train_step`; 0: the parameters, to rounding.

    Returns:
        The state, and scalars: those of `surrogate`, loss, grad_norm (before clipping) and finite, as means over the
        minibatches that count (the greatest ratio_max, the least finite); skipped_groups; advantage_spread;
        deviation, at_bound (share of deviations with |rho - 1/2| > .49) and deviation/k of step k.

    Raises:
        ValueError: a minibatch that does not divide the images, or fewer than one pass.
    """
    checks.whole("minibatch", minibatch)
    checks.whole("passes", passes)
    checks.number("ema", ema, 0, below=1)
    images = trajectory.rho.shape[0]
    if minibatch < 1 or images % minibatch or passes < 1:
        raise ValueError(
            f"expected a minibatch that divides {images} images and one pass or more, got {minibatch} and {passes}"
        )
    # whatever the kind of keys: orders are the same
    key = jax.random.fold_in(threefry(key), state.step)
    orders = jax.vmap(lambda k: jax.random.permutation(k, images))(jax.random.split(key, passes))
    weight = jnp.repeat(used.astype(jnp.float32), advantage.shape[1])
    whole = Batch(trajectory, advantage.reshape(-1), weight)

    def loss_fn(params: Any, keys: Key[Array, "b"], batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        return surrogate(params, batch, module=module, clip=clip, kl=kl)

    def one(state: TrainState, index: jax.Array) -> tuple[TrainState, tuple[Metrics, jax.Array]]:
        batch = jax.tree.map(lambda leaf: _spread(leaf[index]), whole)
        after, metrics = train_step(state, batch, key, loss_fn=loss_fn, optimizer=optimizer, ema=ema)
        counts = batch.weight.sum() > 0
        return jax.tree.map(lambda a, b: jnp.where(counts, a, b), after, state), (metrics, counts)

    after, (metrics, counts) = jax.lax.scan(one, state, orders.reshape(-1, minibatch))
    least, greatest = jnp.where(counts, metrics["finite"], 1.0).min(), metrics["ratio_max"].max()
    total = jnp.maximum(counts.sum(), 1)
    # not multiplied by 0: what is not finite is to be seen, of a minibatch that counts
    metrics = {name: jnp.where(counts, value, 0.0).sum() / total for name, value in metrics.items()}
    metrics = {**metrics, "finite": least, "ratio_max": greatest}
    return dataclasses.replace(after, step=state.step + 1), {**metrics, **_of_rollout(trajectory, whole, used)}


def _of_rollout(trajectory: Trajectory, whole: Batch, used: Bool[Array, "p"]) -> Metrics:
    """What an iteration's images tell before anything is learned from them."""
    off, acts = trajectory.rho - 0.5, trajectory.acts

    def mean(value: Float[Array, "b s rh rw"], axes: tuple[int, ...]) -> Float[Array, "..."]:
        return (acts * value).sum(axes) / jnp.maximum(acts.sum(axes), 1.0)

    everything = (0, 1, 2, 3)
    steps = mean(off, (0, 2, 3))
    count = jnp.maximum(whole.weight.sum(), 1.0)
    return {
        "skipped_groups": (~used).sum().astype(jnp.float32),
        "advantage_spread": jnp.sqrt((whole.weight * jnp.square(whole.advantage)).sum() / count),
        "deviation": mean(off, everything),
        "at_bound": mean((jnp.abs(off) > _AT_BOUND).astype(jnp.float32), everything),
        **{f"deviation/{k:02d}": steps[k] for k in range(steps.shape[0])},
    }
