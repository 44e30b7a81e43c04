"""Schedules for images of which something is known: inpainting, outpainting, textures, differential editing."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.sampling.schedules.base import Planned, check_grid, check_mask, length
from asyncpatch_jax.types import FewTimes


@checks.dataclass
class Inpaint(Planned):
    """Known cells stay at 0, the others follow the grid.

    The mask is 1 where something is to be generated and 0 where the image is kept, per pixel or on any grid that tiles
    the image (`timefield.from_mask` makes a coarser one), the same for all images [1, ...] or one each [b, ...].
    Outpainting and texture synthesis are masks.

    Raises:
        ValueError: no mask [b, h, w, 1] of numbers in 0 ... 1, or no grid of times.
    """

    mask: Any  # Float[Array, "b gh gw 1"]
    grid: Any  # Float[Array, "s"]
    distinct: ClassVar[int] = 2
    steady: ClassVar[bool] = True

    def __post_init__(self):
        check_mask(self.mask)
        check_grid(self.grid)

    @property
    def num_steps(self) -> int:
        return length(self.grid)

    def field(self, i: int | Int[Array, ""]) -> FewTimes:
        length(self.grid)
        checks.shaped("mask", self.mask, "b h w 1")
        values = jnp.stack([jnp.float32(0), jnp.asarray(self.grid, jnp.float32)[i]])[None]
        return timefield.assembled(values, (jnp.asarray(self.mask) > 0.5).astype(jnp.int8))


@checks.dataclass
class Graded(Planned):
    """Each cell starts at a time of its own and waits until the grid has come down to it: `min(strength, grid)`.

    With `start(process, schedule, key, image)` this is differential editing (Levin & Fried 2023): 0 keeps a cell, 1
    replaces it, and what lies between is changed by so much. Strengths of 0 and 1 alone are `Inpaint`.

    Raises:
        ValueError: no strength [b, h, w, 1] in 0 ... 1, or no grid of times.
    """

    strength: Any  # Float[Array, "b gh gw 1"], in [0, 1]
    grid: Any  # Float[Array, "s"]

    def __post_init__(self):
        check_mask(self.strength, "strength")
        check_grid(self.grid)

    @property
    def num_steps(self) -> int:
        return length(self.grid)

    def field(self, i: int | Int[Array, ""]) -> Float[Array, "_b gh gw 1"]:
        length(self.grid)
        checks.shaped("strength", self.strength, "b h w 1")
        return jnp.minimum(jnp.asarray(self.strength, jnp.float32), jnp.asarray(self.grid, jnp.float32)[i])
