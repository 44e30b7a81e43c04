"""One training step as a pure function, the optimiser that it applies, and the averaged weights that sampling uses."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from asyncpatch_jax import checks, sharding
from asyncpatch_jax import keys as keys_lib

DECAYS = ("constant", "cosine", "rsqrt")
Batch = Any
Metrics = dict[str, Float[Array, ""]]
LossFn = Callable[[Any, Key[Array, "b"], Batch], tuple[Float[Array, ""], Metrics]]


@struct.dataclass
class TrainState:
    """Everything that training changes; a checkpoint of it, the data's position and the seed continue a run exactly."""

    step: Any  # Int[Array, ""]: steps tried so far; also what the step's random key is folded with
    params: Any
    ema: Any  # averaged parameters, the same tree
    opt_state: Any


def create(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step. The average starts at the parameters themselves."""
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def learning_rate(peak: float, *, warmup: int = 0, decay: str = "constant", steps: int = 0) -> optax.Schedule:
    """Warm-up to `peak` over `warmup` steps; then constant, cosine to 0 at `steps`, or peak * sqrt(warmup / step).

    The first step already moves: its rate is peak / warmup, not 0.

    Raises:
        ValueError: unknown decay, a negative number, or a cosine that has no steps left after the warm-up.
    """
    if decay not in DECAYS:
        raise ValueError(f"expected a decay out of {', '.join(DECAYS)}, got {decay!r}")
    if not 0 < peak < math.inf or warmup < 0:
        raise ValueError(f"expected a learning rate > 0 and warm-up >= 0 steps, got {peak} and {warmup}")
    if decay == "cosine" and steps <= warmup:
        raise ValueError(f"expected more steps than the warm-up's {warmup} for a cosine decay, got {steps}")

    def rate(count: int | Int[Array, ""]) -> Float[Array, ""]:
        step = jnp.asarray(count, jnp.float32) + 1.0
        ramp = jnp.minimum(step / max(warmup, 1), 1.0)
        factor: float | jax.Array
        if decay == "constant":
            factor = 1.0
        elif decay == "cosine":
            done = jnp.clip((step - 1.0 - warmup) / (steps - warmup), 0.0, 1.0)
            factor = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        else:
            factor = jnp.sqrt(max(warmup, 1) / jnp.maximum(step, max(warmup, 1)))
        return peak * ramp * factor

    return rate


def adam(
    rate: optax.ScalarOrSchedule, *, b1: float = 0.9, b2: float = 0.99, clip: float = 1.0, only: str = ""
) -> optax.GradientTransformation:
    """Adam after clipping the gradient's global norm to `clip` (0: no clipping).

    With `only`, just the parameters of the top-level module of that name move (a log-variance head on a frozen model);
    the others keep their bits, and take no optimiser memory.

    Raises:
        ValueError: a setting out of range; or, when it meets the parameters, no module is named `only`.
    """
    if not (0 <= b1 < 1 and 0 <= b2 < 1 and 0 <= clip < math.inf):
        raise ValueError(f"expected 0 <= b1, b2 < 1 and clip >= 0, got {b1}, {b2} and {clip}")
    chain = optax.chain(_clip(clip) if clip else optax.identity(), optax.adam(rate, b1, b2))
    if not only:
        return chain

    def label(params: Any) -> Any:
        if only not in params:
            raise ValueError(f"expected to train one of {', '.join(sorted(params))} alone, got {only!r}")
        return {name: jax.tree.map(lambda _, name=name: name == only, module) for name, module in params.items()}

    return optax.multi_transform({True: chain, False: optax.set_to_zero()}, label)


def _norm(tree: Any) -> Float[Array, ""]:
    """The root of the sum of squares of all leaves, float32.

    As one sum: optax adds one leaf after another, which on a TPU is as many programs of one number each.
    """
    leaves = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(jnp.stack(leaves)))


def _clip(largest: float) -> optax.GradientTransformation:
    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = largest / jnp.maximum(_norm(grads), largest)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def ema_decay(ema: float, step: Int[Array, ""]) -> Float[Array, ""]:
    """min(ema, (1 + step) / (10 + step)): the average forgets its random start in short runs too (Polyak, as in TF)."""
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(jnp.float32(ema), (1.0 + step) / (10.0 + step))


def _gradients(
    loss_fn: LossFn, params: Any, keys: Key[Array, "b"], batch: Batch, accumulate: int
) -> tuple[tuple[Float[Array, ""], Metrics], Any]:
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        return value_and_grad(params, keys, batch)
    size = keys.shape[0]
    if accumulate < 1 or size % accumulate:
        raise ValueError(f"expected to accumulate over a divisor of the batch {size}, got {accumulate}")
    # every accumulate-th image, so that a batch axis that is sharded over devices stays where it is
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(size // accumulate, accumulate, *x.shape[1:]), 1, 0), (keys, batch)
    )
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(value_and_grad, params, *jax.tree.map(lambda x: x[0], parts)),
    )
    add = lambda total, part: (jax.tree.map(jnp.add, total, value_and_grad(params, *part)), None)  # noqa: E731
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / accumulate, total)


def train_step(
    state: TrainState,
    batch: Batch,
    key: Key[Array, ""],
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    ema: float,
    accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
    """Follow the gradient of `loss_fn(params, keys, batch) -> (mean loss, metrics)` once. Pure; see `jit_step`.

    The random key of a step is `key` folded with the step's number, then with each image's index: to resume a run takes
    no random state, and neither accumulation nor sharding changes what an image sees (but for dropout, whose masks
    depend on an image's place in its part of the batch).

    A step whose loss or gradient norm is not finite is refused on the device: the state keeps its parameters, average
    and optimiser, only its step counts on. `finite` in the metrics tells, so that the host may look at it late. (What
    the step results in is not asked: that would read parameters, moments and gradients twice.)

    Args:
        batch: arrays whose first axis is the image [b, ...].
        key: the run's seed, the same at every step.
        ema: the average's decay, warmed up by `ema_decay`.
        accumulate: parts that the batch is split in, their gradients added up: less memory, the same to rounding.

    Returns:
        The next state, and scalars: the loss's own metrics, loss, grad_norm (before clipping), finite.

    Raises:
        ValueError: `accumulate` does not divide the batch, or a decay outside of 0 ... 1.
    """
    checks.number("ema", ema, 0, 1)
    checks.whole("accumulate", accumulate)
    size = jax.tree.leaves(batch)[0].shape[0]
    keys = keys_lib.per_image(jax.random.fold_in(key, state.step), size)
    (loss, metrics), grads = _gradients(loss_fn, state.params, keys, batch, accumulate)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay(ema, state.step)
    # a + (1 - d)(b - a), not d a + (1 - d) b: parameters that do not move keep their bits in the average too
    average = jax.tree.map(lambda a, b: a + (1.0 - decay) * (b - a), state.ema, params)

    grad_norm = _norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    fresh, old = (params, average, opt_state), (state.params, state.ema, state.opt_state)
    params, average, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), fresh, old)
    metrics = {**metrics, "loss": loss, "grad_norm": grad_norm, "finite": finite.astype(jnp.float32)}
    return TrainState(state.step + 1, params, average, opt_state), metrics


def jit_step(
    step: Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Metrics]], mesh: Mesh, state: Any
) -> Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]:
    """`train_step` with its settings, compiled for a mesh; the old state is donated.

    Args:
        step: `(state, batch, key) -> (state, metrics)`.
        state: shardings of the state, a `TrainState` of them. Images of the batch are spread over the mesh, metrics are
            the same everywhere.
    """

    def laid_out(now: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        with sharding.using(mesh):
            return step(now, batch, key)

    everywhere = sharding.replicated(mesh)
    return jax.jit(
        laid_out,
        in_shardings=(state, sharding.batch(mesh), everywhere),
        out_shardings=(state, everywhere),
        donate_argnums=0,
    )
