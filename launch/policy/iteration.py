"""What an iteration of GRPO runs on the devices: its images, and the step of the module that follows from them."""

import functools
from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from asyncpatch_jax import sharding
from asyncpatch_jax.training import grpo
from asyncpatch_jax.training.step import TrainState, adam
from launch.policy import subjects
from launch.policy.subjects import Asked, Net


@partial(jax.jit, static_argnames=("net", "shape"))
def roll(
    net: Net,
    params: Any,
    schedule: Any,
    asked: Asked,
    begin: jax.Array,
    keys: jax.Array,
    shape: tuple[int, int, int],
) -> grpo.Rollout:
    """One iteration's images: from the noise of the keys `begin` [b], with what is drawn of `keys` [b]."""
    with sharding.using(net.mesh):
        x = subjects.noise(net, begin, shape)
        rolled = grpo.rollout(subjects.denoiser(net, params, asked), net.solver, schedule, keys, x)
        whole = sharding.constrain(rolled.images, None, None, None, None)  # on every device, of every process
        return rolled._replace(images=whole)


@functools.cache
def optimizer(learning_rate: float, b1: float, b2: float, clip: float) -> optax.GradientTransformation:
    """One object for equal settings, so that trainings that differ in their seeds share a program."""
    return adam(learning_rate, b1=b1, b2=b2, clip=clip)


@partial(
    jax.jit, static_argnames=("mesh", "module", "optimizer", "minibatch", "passes", "clip", "kl"), donate_argnums=1
)
def update(mesh: Mesh | None, *args: Any, **settings: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    """`grpo.update` on a mesh."""
    with sharding.using(mesh):
        return grpo.update(*args, **settings)
