"""Schedules that let the network's own uncertainty decide: confident cells go first and serve the others as context."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.sampling.schedules.base import check_grid, check_mask, length, same_for_network, spread
from asyncpatch_jax.types import Image, ImageKeys, Prediction, TimeField, Times


def doubt(pred: Prediction, cells: timefield.Grid, free: Float[Array, "b gh gw 1"]) -> Float[Array, "b gh gw 1"]:
    """Where each cell stands among the free cells of its image: near 0 the most certain, near 1 the least, ties equal.

    The share of free cells with a lower predicted log-variance (plus half of those with the same), hence 1/2 on
    average; ranks, since the log-variance itself has no scale that holds across times and data.

    Args:
        free: more than 0 where a cell still moves; the others count as least certain.

    Raises:
        ValueError: the denoiser's network predicts no log-variance.
    """
    if "log_variance" not in pred.aux:
        raise ValueError(
            "expected a network with a log-variance head (log_variance=True), got a prediction with "
            f"{sorted(pred.aux) or 'nothing'} beside the image"
        )
    value = timefield.resize(pred.aux["log_variance"].astype(jnp.float32), cells)
    value = jnp.where(free > 0, value, jnp.inf).reshape(free.shape[0], -1)
    count = jnp.maximum((free > 0).reshape(free.shape[0], -1).sum(1, keepdims=True), 1)

    def below(side: str) -> Int[Array, "b n"]:
        return jax.vmap(lambda v: jnp.searchsorted(jnp.sort(v), v, side=side))(value)

    return jnp.minimum(0.5 * (below("left") + below("right")) / count, 1.0).reshape(free.shape)


def _check(schedule: Any) -> None:
    check_grid(schedule.grid)
    checks.cells("cells", schedule.cells)
    check_mask(schedule.mask)


def _check_use(schedule: Any) -> None:
    length(schedule.grid)
    if schedule.mask is not None:
        checks.shaped("mask", schedule.mask, "b h w 1")


def _free(mask: Any, cells: timefield.Grid, batch: int) -> TimeField:
    """1 where a cell has anything to generate; everywhere without a mask."""
    if mask is None:
        return jnp.ones((batch, *cells, 1), jnp.float32)
    return spread(timefield.unknown(mask, cells), batch)


def _hold(mask: Any, cells: Shaped[Array, "b _gh _gw 1"], value: float | int) -> Shaped[Array, "b _gh2 _gw2 1"]:
    """What the cells have, and `value` where an inpainting mask knows the pixels, on the finer of the two grids."""
    if mask is None:
        return cells
    mask = spread(timefield.unknown(mask), cells.shape[0])
    finer = (max(mask.shape[1], cells.shape[1]), max(mask.shape[2], cells.shape[2]))
    return jnp.where(timefield.resize(mask, finer) > 0, timefield.resize(cells, finer), value)


@checks.dataclass
class UncertaintyGuided:
    """Cells with a lower predicted log-variance move faster; all reach 0 after `num_steps`, however they rank.

    A cell has a place on the grid of times, which moves by `1 + spread (1 - 2 doubt)` grid steps at a time: one on
    average over the image, at most 1 + spread. A cell that lagged catches up at that greatest speed, no sooner than it
    must. A constant log-variance gives `Synchronous`. This rule is the library's own; the paper (AsyncPatch,
    arXiv 2606.07079) shows such runs without one.

    With a mask (1 = generate, on the cells' grid, a multiple or a divisor of it) known pixels stay at 0, and cells that
    are all known take no part in the ranks.

    Raises:
        ValueError: spread outside [0, 1), or no grid of times, cells or mask.
    """

    grid: Any  # Float[Array, "s"]
    cells: timefield.Grid = struct.field(pytree_node=False)
    mask: Any = None  # Float[Array, "b h w 1"]
    spread: float = struct.field(pytree_node=False, default=0.5)

    def __post_init__(self):
        _check(self)
        checks.number("spread", self.spread, 0, below=1)

    @property
    def num_steps(self) -> int:
        return length(self.grid)

    def init(self, keys: ImageKeys, x: Image) -> tuple[Times, Float[Array, "b gh gw 1"]]:
        _check_use(self)
        place = jnp.zeros((x.shape[0], *self.cells, 1), jnp.float32)
        return self._times(place), place

    def next(self, i: jax.Array, state: Any, pred: Prediction, keys: ImageKeys) -> tuple[Times, jax.Array]:
        place, n, fastest = state.schedule, self.num_steps, 1.0 + self.spread
        free = jnp.where(place < n, _free(self.mask, self.cells, place.shape[0]), 0.0)
        speed = 1.0 + self.spread * (1.0 - 2.0 * doubt(pred, self.cells, free))
        must = n - (n - 1.0 - i) * fastest
        place = jnp.clip(place + speed, must, n)
        return self._times(place), place

    def _times(self, place: Float[Array, "b gh gw 1"]) -> Times:
        grid = jnp.asarray(self.grid, jnp.float32)
        level = jnp.interp(place, jnp.arange(self.num_steps + 1, dtype=jnp.float32), grid)
        return same_for_network(_hold(self.mask, level, 0.0), place.shape[0])


@checks.dataclass
class DualLoop:
    """Patch Forcing's dual loop (arXiv 2604.19141): confident cells take a grid step at once, the others in parts.

    At the start of each grid step the `confident` share of cells with the lowest predicted log-variance moves by the
    whole step; the others move by one of `substeps` equal parts, and by one more at each of the following calls, with
    the confident cells as context. So a run takes `substeps` calls per grid step. The shares (.4, 4) are those of the
    authors' code, which the rule follows; a mask as in `UncertaintyGuided` is ours.

    Raises:
        ValueError: a share outside (0, 1), fewer than two substeps, or no grid of times, cells or mask.
    """

    grid: Any  # Float[Array, "s"]
    cells: timefield.Grid = struct.field(pytree_node=False)
    mask: Any = None  # Float[Array, "b h w 1"]
    confident: float = struct.field(pytree_node=False, default=0.4)
    substeps: int = struct.field(pytree_node=False, default=4)

    def __post_init__(self):
        _check(self)
        checks.number("confident", self.confident, above=0, below=1)
        checks.whole("substeps", self.substeps, 2)

    @property
    def num_steps(self) -> int:
        return self.substeps * length(self.grid)

    @property
    def distinct(self) -> int:
        """A step's two levels, and 0 where a mask knows the pixels."""
        return 2 if self.mask is None else 3

    def init(self, keys: ImageKeys, x: Image) -> tuple[Times, Bool[Array, "b gh gw 1"]]:
        _check_use(self)
        fast = jnp.zeros((x.shape[0], *self.cells, 1), bool)
        return self._times(self.grid[0], self.grid[0], fast), fast

    def next(self, i: jax.Array, state: Any, pred: Prediction, keys: ImageKeys) -> tuple[Times, jax.Array]:
        grid, k, part = jnp.asarray(self.grid, jnp.float32), i // self.substeps, i % self.substeps + 1
        free = _free(self.mask, self.cells, state.x.shape[0])
        fast = jnp.where(part == 1, doubt(pred, self.cells, free) < self.confident, state.schedule)
        slow_level = grid[k] + (grid[k + 1] - grid[k]) * part / self.substeps
        return self._times(grid[k + 1], jnp.where(part == self.substeps, grid[k + 1], slow_level), fast), fast

    def _times(self, fast_level: Any, slow_level: Any, fast: Bool[Array, "b gh gw 1"]) -> Times:
        values = jnp.stack([jnp.float32(level) for level in (slow_level, fast_level, 0.0)[: self.distinct]])[None]
        index = _hold(self.mask, fast.astype(jnp.int8), 2)
        return same_for_network(timefield.assembled(values, index), fast.shape[0])
