"""Autoregression: groups of cells, one after the other, each in n steps."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int, Key

from asyncpatch_jax import timefield
from asyncpatch_jax.sampling.schedules.base import Planned, length
from asyncpatch_jax.types import FewTimes


def raster(cells: timefield.Grid, patch: tuple[int, int] = (1, 1)) -> Int[np.ndarray, "1 gh gw 1"]:
    """The reading order of patches of cells: their ranks, row by row from the top left.

    Raises:
        ValueError: the patches do not tile the cells.
    """
    if cells[0] % patch[0] or cells[1] % patch[1]:
        raise ValueError(f"expected patches that tile {cells[0]}x{cells[1]} cells, got {patch[0]}x{patch[1]}")
    rows, columns = np.arange(cells[0]) // patch[0], np.arange(cells[1]) // patch[1]
    return (rows[:, None] * (cells[1] // patch[1]) + columns[None, :])[None, :, :, None].astype(np.int32)


def shuffled(key: Key[Array, ""], order: Int[Array, "1 gh gw 1"], groups: int) -> Int[Array, "1 gh gw 1"]:
    """The same groups in a random order; negative ranks (known cells) stay."""
    ranks = jax.random.permutation(key, groups)[jnp.maximum(order, 0)]
    return jnp.where(order < 0, order, ranks)


@struct.dataclass
class Autoregressive(Planned):
    """The cells of rank 0 follow the grid, then those of rank 1, ...: done is 0, waiting is 1.

    `order` holds each cell's rank, 0 ... groups - 1, for all images [1, gh, gw, 1] or one each; several cells may share
    one. A negative rank is a known cell: 0 from the start.
    """

    order: Any  # Int[Array, "b gh gw 1"]
    grid: Any  # Float[Array, "s"]: the times of one group
    groups: int = struct.field(pytree_node=False)
    distinct: ClassVar[int] = 3

    @property
    def num_steps(self) -> int:
        return self.groups * length(self.grid)

    def field(self, i: int | Int[Array, ""]) -> FewTimes:
        n, grid = length(self.grid), jnp.asarray(self.grid, jnp.float32)
        own_step = i - n * jnp.asarray(self.order).astype(jnp.int32)
        # waiting, done, and the one group in between, whose own step is what is left of i
        index = jnp.where(own_step <= 0, 0, jnp.where(own_step >= n, 1, 2))
        return timefield.few(jnp.stack([grid[0], grid[n], grid[i % n]])[None], index)
