"""Grids of times, and the schedules that are nothing but a grid."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from asyncpatch_jax import timefield
from asyncpatch_jax.types import Image, ImageKeys, Prediction, Times


def linear(num_steps: int) -> Float[Array, "s"]:
    """1, 1 - 1/n, ..., 0: [num_steps + 1] times."""
    return jnp.linspace(1.0, 0.0, num_steps + 1, dtype=jnp.float32)


@struct.dataclass
class Synchronous:
    """All cells on one grid of times [num_steps + 1]: ordinary diffusion, at the price of a scalar time."""

    grid: Any  # Float[Array, "s"]

    def init(self, keys: ImageKeys, x: Image) -> tuple[Times, None]:
        level = timefield.constant(self.grid[0], x.shape[0])
        return Times(level, level), None

    def next(self, i: jax.Array, state: Any, pred: Prediction, keys: ImageKeys) -> tuple[Times, None]:
        level = timefield.constant(self.grid[i + 1], state.x.shape[0])
        return Times(level, level), None
