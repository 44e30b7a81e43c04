"""Concave, mask-guided schedules (AsynDM, arXiv 2510.04504): cells of an object lag behind the rest, and catch up."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.sampling.schedules import curves
from asyncpatch_jax.sampling.schedules.base import (
    check_grid,
    check_mask,
    length,
    not_falling,
    same_for_network,
    spread,
)
from asyncpatch_jax.sampling.schedules.masks import Dynamic, Fixed, disjoint
from asyncpatch_jax.types import FewTimes, Image, ImageKeys, Prediction, TimeField, Times

TEXT_TIMES = ("masked", "mean", "reference", "max", "min")


class Places(NamedTuple):
    """How far each cell lags, and what the next move does to it.

    excess: steps behind the background [b, gh, gw, 1], or of each object and the background [b|1, k + 1]; of dynamic
        masks with one k on the quadratic curve the number of moves under a mask, an integer.
    k: the weight of the curve there, 0 in the background.
    """

    excess: Any
    k: Any


@checks.dataclass
class Concave:
    """Masked cells follow a concave curve, the others the grid of times of an ordinary run, which has as many calls.

    The grid is the background, exactly. A cell that lags e steps behind it stands between the grid's times, which are
    joined by straight lines before the shift, so that the curves run in the index that the shift is applied to. With
    `k` = 0, or where no object is, every time is the grid's own.

    An object's k may be one number for all [], one each [k] or also per image [b, k]; where masks overlap the highest k
    wins. Cells may differ from image to image.

    Stable Diffusion (the paper): the grid of n + 1 times from index 981 of 1000 to 1 and 0, `head_start=True`,
    `levels=1000`. Flow models (the paper leaves them open): the shifted grid and its `shift`.

    Attributes:
        grid: times of the background, falling [n + 1].
        k: omega, 0 ... 1: the curve's weight against the background, .7 in the paper.
        masks: `Dynamic()`, `Fixed(mask)` or `everywhere()`.
        cells: the grid of the field: latent pixels for a UNet, tokens for a transformer.
        curve: "quadratic" (the paper's default), "exponential", "piecewise", "extreme", or "linear".
        head_start: the first move comes before the first call, and the last one jumps to the grid's end.
        levels: the number of train steps to whose levels times are rounded, the background's too, as Stable Diffusion's
            tables are read.
        shift: a of `a u / (1 + (a - 1) u)`, which the grid was shifted by.
        text_time: what text tokens are told: of masked cells the "masked" mean, of all cells that move the "mean",
            "max" or "min", or the background's time ("reference"); None for networks without joint attention.
        mask: inpainting: 1 where something is generated, known cells (0) stay at 0 [b|1, h, w, 1].
        strength: differential editing: cells wait at this time until the run comes down to it [b|1, h, w, 1].
        first: of dynamic masks, the object [] or [b] whose k all cells have before the first attention is seen; None:
            the one with the highest. (The released code takes the object whose word comes last in the prompt.)

    Raises:
        ValueError: k outside of 0 ... the largest that keeps the first call within the trained levels, a grid that does
            not fall, unknown curve or text time, both mask and strength, or a first object that there is not.
    """

    grid: Any  # Float[Array, "s"]
    k: Any  # Float[Array, ""] | Float[Array, "k"] | Float[Array, "b k"]
    masks: Any  # Dynamic | Fixed
    cells: timefield.Grid = struct.field(pytree_node=False)
    curve: str = struct.field(pytree_node=False, default="quadratic")
    head_start: bool = struct.field(pytree_node=False, default=False)
    levels: int | None = struct.field(pytree_node=False, default=None)
    shift: Any = 1.0
    text_time: str | None = struct.field(pytree_node=False, default=None)
    mask: Any = None  # Float[Array, "b h w 1"]
    strength: Any = None  # Float[Array, "b h w 1"]
    first: Any = None  # Int[Array, ""] | Int[Array, "b"]

    def __post_init__(self):
        curves.check(self.curve)
        checks.cells("cells", self.cells)
        if self.levels is not None:
            checks.whole("levels", self.levels, 2)
        check_grid(self.grid)
        check_mask(self.mask)
        check_mask(self.strength, "strength")
        checks.numbers("k", self.k)
        checks.numbers("shift", self.shift, above=0)
        if self.text_time is not None and self.text_time not in TEXT_TIMES:
            raise ValueError(f"expected a text time out of {', '.join(TEXT_TIMES)}, got {self.text_time!r}")
        if self.mask is not None and self.strength is not None:
            raise ValueError("expected a mask or a strength, got both")
        grid, k, shift = (checks.known(value) for value in (self.grid, self.k, self.shift))
        if k is not None and k.ndim > 2:
            raise ValueError(f"expected k as [], [k] or [b, k], got shape {k.shape}")
        first = None if self.first is None else checks.known(self.first)
        if first is not None and first.dtype.kind not in "iu":
            raise ValueError(f"expected the first object as a whole number, got {checks.shown(self.first)}")
        if first is not None and k is not None and not ((first >= 0) & (first < (k.shape or (1,))[-1])).all():
            raise ValueError(f"expected the first of {(k.shape or (1,))[-1]} objects, got {checks.shown(first)}")
        if grid is not None and grid.ndim and (seen := not_falling(grid, strictly=True)) is not None:
            raise ValueError(f"expected a grid of times that falls, got {seen}")
        if any(value is None for value in (grid, k, shift)) or not grid.ndim:
            return
        most = curves.largest(self.curve, length(grid), self._room(grid, shift))
        if k.size and (k.min() < 0 or k.max() > most + 1e-5):
            raise ValueError(
                f"expected 0 <= k <= {np.floor(1e4 * most) / 1e4:g} for the {self.curve} curve on this grid of "
                f"{length(grid)} steps (with more, cells would pass the last train step or move up), got "
                f"{checks.shown(k)}"
            )

    @property
    def num_steps(self) -> int:
        return length(self.grid)

    @property
    def distinct(self) -> int | None:
        """How many times an image holds at most; None: as many as it has cells."""
        if self.strength is not None:
            return None
        known = 0 if self.mask is None else 1
        if isinstance(self.masks, Fixed):
            return 1 + jnp.shape(self.masks.mask)[-1] + known
        return 1 + self.num_steps + known if self._counted else None

    @property
    def steady(self) -> bool:
        """Whether the times that a field of few times has move, and never the cells from one to another."""
        return isinstance(self.masks, Fixed)

    @property
    def _counted(self) -> bool:
        """Whether a cell's time depends on nothing but how many of its moves were masked."""
        few = self.num_steps + 1 < self.cells[0] * self.cells[1]
        return self.curve == "quadratic" and jnp.ndim(self.k) == 0 and few and isinstance(self.masks, Dynamic)

    def init(self, keys: ImageKeys, x: Image) -> tuple[Times, Places]:
        length(self.grid)
        checks.given("k", self.k)
        checks.given("shift", self.shift)
        if self.first is not None:
            checks.given("first", self.first)
        checks.instance("masks", self.masks, Dynamic | Fixed, "Dynamic(), Fixed(mask) or everywhere()")
        for name, mask in (("mask", self.mask), ("strength", self.strength)):
            if mask is not None:
                checks.shaped(name, mask, "b h w 1")
        batch = x.shape[0]
        k = self._per_object()
        if isinstance(self.masks, Fixed):
            objects = self.masks.masks(self.cells, None if jnp.ndim(self.k) == 0 else k.shape[1]).shape[-1]
            k = jnp.broadcast_to(k, (k.shape[0], objects))
            k = jnp.concatenate([jnp.zeros((k.shape[0], 1), jnp.float32), k], 1)
            places = Places(jnp.zeros_like(k), k)
        else:
            # the first mask is all ones
            k = jnp.broadcast_to(self._first_of(k).reshape(-1, 1, 1, 1), (batch, *self.cells, 1))
            places = Places(jnp.zeros(k.shape, jnp.int32 if self._counted else jnp.float32), k)
        if self.head_start:
            places = self._moved(places, jnp.float32(self.num_steps))
        return self._times(0, places, batch), places

    def next(self, i: Int[Array, ""], state: Any, pred: Prediction, keys: ImageKeys) -> tuple[Times, Places]:
        last = self.num_steps - self.head_start
        # after a head start the last move is the jump to the grid's end, where no cell lags any more: as with 1 left
        places = self._moved(state.schedule, jnp.maximum(last - i, 1).astype(jnp.float32))
        times = self._times(i + 1, places, state.x.shape[0])
        if isinstance(self.masks, Dynamic):
            objects = None if jnp.ndim(self.k) == 0 else jnp.shape(self.k)[-1]
            masks = self.masks.masks(pred, self.cells, objects)
            k = self._per_object()
            k = jnp.broadcast_to(k, (k.shape[0], masks.shape[-1]))
            won = jnp.where(disjoint(masks, k), k[:, None, None], 0.0).sum(-1, keepdims=True)
            places = places._replace(k=won)
        return times, places

    def _per_object(self) -> Float[Array, "_b _k"]:
        k = jnp.asarray(self.k, jnp.float32)
        return k.reshape(1, -1) if k.ndim < 2 else k

    def _first_of(self, k: Float[Array, "_b k"]) -> Float[Array, "_b2"]:
        """The k that all cells begin with: of every object's masks of ones the highest wins, unless one is named."""
        if self.first is None:
            return k.max(1)
        first = jnp.asarray(self.first, jnp.int32).reshape(-1, 1)
        batch = max(len(k), len(first))
        rows, first = jnp.broadcast_to(k, (batch, k.shape[1])), jnp.broadcast_to(first, (batch, 1))
        return jnp.take_along_axis(rows, first, axis=1)[:, 0]

    def _moved(self, places: Places, left: Float[Array, ""]) -> Places:
        if self._counted:
            # the jump after a head start is a move too, of which no cell's time depends any more
            return places._replace(excess=jnp.minimum(places.excess + (places.k > 0), self.num_steps))
        return places._replace(excess=curves.move(self.curve, places.excess, left, places.k, self.num_steps))

    def _times(self, i: int | Int[Array, ""], places: Places, batch: int) -> Times:
        """Times after i steps of the loop."""
        left = jnp.maximum(self.num_steps - self.head_start - i, 0).astype(jnp.float32)
        if isinstance(self.masks, Fixed):
            chosen = disjoint(self.masks.masks(self.cells, None), places.k[:, 1:])
            index = jnp.where(chosen.any(-1, keepdims=True), 1 + chosen.argmax(-1, keepdims=True), 0)
            t: TimeField | FewTimes = timefield.assembled(self._at(i, places.excess), index)
            masked = timefield.dense(timefield.assembled(places.k, index)) > 0
        elif self._counted:
            counts = jnp.arange(self.num_steps + 1, dtype=jnp.float32)
            k = jnp.asarray(self.k, jnp.float32)
            values = self._at(i, left * k * counts / self.num_steps).reshape(1, -1)
            t, masked = timefield.assembled(values, places.excess), places.k > 0
        else:
            t, masked = self._at(i, places.excess), places.k > 0
        t = self._held(t)
        if isinstance(t, FewTimes) and t.index.shape[1:3] == (1, 1):
            t = timefield.dense(t)
        times = same_for_network(t, batch)
        reference = self._rounded(jnp.asarray(self.grid, jnp.float32)[i])
        return times._replace(text=self._text(times.level, masked, reference))

    def _at(self, i: int | Int[Array, ""], excess: Float[Array, "..."]) -> Float[Array, "..."]:
        """The time of cells that lag `excess` steps behind step i of the grid."""
        grid, a = jnp.asarray(self.grid, jnp.float32), jnp.asarray(self.shift, jnp.float32)
        u = _unshifted(grid, a)
        place = i - excess
        below = jnp.clip(jnp.floor(place), 0, self.num_steps - 1).astype(jnp.int32)
        u = u[below] + (place - below) * (u[below + 1] - u[below])
        t = a * u / (1.0 + (a - 1.0) * u)
        return self._rounded(jnp.where(excess == 0, grid[i], t))

    def _rounded(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Times at whole train steps, which count from 0: step 0 stands at 1 / levels, below it is clean data."""
        if self.levels is None:
            return t
        # read from a table: compilers may divide by multiplying with the inverse, and a grid of whole steps would lose
        # its last bits
        whole = jnp.asarray(np.arange(self.levels + 1) / self.levels, jnp.float32)
        return whole[(jnp.round(t * self.levels - 1.0) + 1.0).astype(jnp.int32)]

    def _held(self, t: TimeField | FewTimes) -> TimeField | FewTimes:
        if self.strength is not None:
            t, strength = timefield.dense(t), jnp.asarray(self.strength, jnp.float32)
            finer = timefield.finer(t, strength)
            return jnp.minimum(timefield.resize(t, finer), timefield.resize(strength, finer))
        if self.mask is None:
            return t
        known = jnp.asarray(self.mask) <= 0.5
        cells = t.index if isinstance(t, FewTimes) else t
        finer = timefield.finer(cells, known)
        known, cells = timefield.resize(known, finer), timefield.resize(cells, finer)
        if not isinstance(t, FewTimes):
            return jnp.where(known, 0.0, cells)
        values = jnp.concatenate([t.values, jnp.zeros_like(t.values[:, :1])], 1)
        return timefield.assembled(values, jnp.where(known, t.values.shape[1], cells))

    def _text(
        self, level: TimeField, masked: Bool[Array, "_b _gh _gw 1"], reference: Float[Array, ""]
    ) -> Float[Array, "b"] | None:
        if self.text_time is None:
            return None
        if self.text_time == "reference":
            return jnp.broadcast_to(reference, level.shape[:1])
        # known cells are no part of what the text is about
        counts = level > 0
        if self.text_time == "masked":
            masked = spread(masked.astype(jnp.float32), level.shape[0]) > 0
            counts = counts & timefield.resize(masked, timefield.grid_of(level))
        axes = (1, 2, 3)
        low = jnp.where(counts, level, jnp.inf).min(axes)
        if self.text_time == "min":
            t = low
        elif self.text_time == "max":
            t = jnp.where(counts, level, -jnp.inf).max(axes)
        else:
            # exact where all times are equal, which a plain float32 mean is not
            above = jnp.where(counts, level - low.reshape(-1, 1, 1, 1), 0.0)
            t = low + above.sum(axes) / jnp.maximum(counts.sum(axes), 1)
        # no such cell: the background's time
        return jnp.where(counts.any(axes), t, reference)

    def _room(self, grid: np.ndarray, shift: np.ndarray) -> float:
        """How many steps a cell may lag at the first call."""
        if not self.head_start or len(grid) < 3:
            return 1.0
        first, second = _unshifted(grid[:2].astype(np.float64), shift)
        return float((1.0 - first) / (first - second))


def _unshifted(t: Any, shift: Any) -> Any:
    return t / (shift - (shift - 1.0) * t)
