"""Autoregression: groups of cells, one after the other, each in n steps."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import checkify
from jaxtyping import Array, Int, Key

from asyncpatch_jax import checks, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.sampling.schedules.base import Planned, check_grid, length
from asyncpatch_jax.types import FewTimes


def raster(cells: timefield.Grid, patch: tuple[int, int] = (1, 1)) -> Int[np.ndarray, "1 gh gw 1"]:
    """The reading order of patches of cells: their ranks, row by row from the top left.

    Raises:
        ValueError: the patches do not tile the cells.
    """
    checks.cells("cells", cells)
    checks.cells("patch", patch)
    if cells[0] % patch[0] or cells[1] % patch[1]:
        raise ValueError(f"expected patches that tile {cells[0]}x{cells[1]} cells, got {patch[0]}x{patch[1]}")
    rows, columns = np.arange(cells[0]) // patch[0], np.arange(cells[1]) // patch[1]
    return (rows[:, None] * (cells[1] // patch[1]) + columns[None, :])[None, :, :, None].astype(np.int32)


def shuffled(key: Key[Array, ""], order: Int[Array, "1 gh gw 1"], groups: int) -> Int[Array, "1 gh gw 1"]:
    """The same groups in a random order; negative ranks (known cells) stay.

    Raises:
        ValueError: no key, or an order of other ranks than 0 ... groups - 1, or without one of them.
    """
    checks.whole("groups", groups)
    _check_order(order, groups)
    ranks = jax.random.permutation(keys_lib.threefry(key), groups).astype(jnp.int32)[jnp.maximum(order, 0)]
    return jnp.where(order < 0, order, ranks)


def _check_order(order: Any, groups: int) -> None:
    """Refuse an order [b, gh, gw, 1] that is not one of so many groups.

    A cell of a rank that no group has would wait for ever, and in the steps of a group without cells nothing would
    move; unless some cells are known, of which there may be whole groups.
    """
    checks.shaped("order", order, "b gh gw 1")
    if not jnp.issubdtype(order.dtype, np.integer):
        raise ValueError(f"expected an order of whole numbers (ranks), got {order.dtype}")
    if isinstance(order, jax.core.Tracer):
        message = f"expected ranks below groups = {groups} in an order, got {{most}}"
        checkify.debug_check(jnp.all(order < groups), message, most=order.max())
    elif (known := checks.known(order)) is not None and known.size and known.max() >= groups:
        raise ValueError(f"expected ranks below groups = {groups} in an order, got {checks.shown(known)}")
    elif known is not None and (known.size == 0 or known.max() < 0):
        raise ValueError("expected an order with a rank of 0 or more (negative ones are known cells), got none")
    elif known is not None and known.min() >= 0 and (there := len(np.unique(known))) < groups:
        raise ValueError(f"expected an order with cells of each rank below groups = {groups}, got {there} ranks")


@checks.dataclass
class Autoregressive(Planned):
    """The cells of rank 0 follow the grid, then those of rank 1, ...: done is 0, waiting is 1.

    `order` holds each cell's rank, 0 ... groups - 1, for all images [1, gh, gw, 1] or one each; several cells may share
    one. A negative rank is a known cell: 0 from the start.

    Raises:
        ValueError: a rank that no group has, a group without cells (where none are known), no order or grid of times.
    """

    order: Any  # Int[Array, "b gh gw 1"]
    grid: Any  # Float[Array, "s"]: the times of one group
    groups: int = struct.field(pytree_node=False)
    distinct: ClassVar[int] = 3

    def __post_init__(self):
        check_grid(self.grid)
        checks.whole("groups", self.groups)
        if checks.is_array(self.order):
            _check_order(self.order, self.groups)

    @property
    def num_steps(self) -> int:
        return self.groups * length(self.grid)

    def field(self, i: int | Int[Array, ""]) -> FewTimes:
        n, grid = length(self.grid), jnp.asarray(self.grid, jnp.float32)
        checks.shaped("order", self.order, "b gh gw 1")
        own_step = i - n * jnp.asarray(self.order).astype(jnp.int32)
        # waiting, done, and the one group in between, whose own step is what is left of i
        index = jnp.where(own_step <= 0, 0, jnp.where(own_step >= n, 1, 2))
        return timefield.assembled(jnp.stack([grid[0], grid[n], grid[i % n]])[None], index)
