"""From a time field to what modulates each level of a network.

One rule: *the modulation of a cell is the area mean, over its pixels, of the modulation at each pixel's time*. It is
linear in the embedding (after its silu), so every field is a combination of J embedded times, and a network embeds and
projects J times instead of one per pixel:

- synchronous: J = 1;
- `FewTimes`: its k times, chosen per pixel; on coarser levels, mixed by the share of pixels that has each;
- a field of at most KNOTS cells: the times of its cells;
- any other: KNOTS times evenly spaced, interpolated by Keys' cubic convolution.

The plainer rule, `mean_of="times"`, is there to be compared: *a cell has the modulation of its pixels' mean time*. A
clean pixel beside one of noise then reads as two half-noisy ones.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from asyncpatch_jax import timefield
from asyncpatch_jax.sharding import constrain
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.types import FewTimes, TimeField

# Knots lie 1 / STEPS apart on [0, 1], and one beyond each end, for the cubic reads two knots on either side.
STEPS = 32
KNOTS = STEPS + 3
# Radians that the fastest feature of a time turns from t = 0 to 1: a quarter of a radian between knots, where the cubic
# convolution of a wave is off by .25^3 / 60 = .03 %, and that of random networks' modulations by .2 % of their spread
# (tested). DDPM's 1000 would need thousands of knots; EDM's features (Karras et al. 2022) turn by 2.6. Twice as many
# knots would cost a DiT-XL/2 a twelfth of its FLOPs: with a label, each image has knots of its own to project.
# Of a network that asks for more radians, every cell is embedded.
MAX_FREQUENCY = 8.0
# and of the slowest: less is next to a constant
MIN_FREQUENCY = 0.5
# up to so many times are cheaper to choose from, in the elementwise operation itself, than to multiply by weights
CHOSEN = 8

Embedded = Float[Array, "_b j e"]
# what a cell of a coarser level is told: the mean of its pixels' modulations, or the modulation of their mean time
MeanOf = Literal["modulations", "times"]


@struct.dataclass
class LevelTimes:
    """The times of a level of h x w pixels: J embedded times, and how the level is made of them. One of three sorts.

    cells: neither position nor weights. The times are those of `grid`, row by row; 1x1 for a synchronous field.
    position: where each cell of [b|1, ph, pw, 1] is among the J times; the level repeats the cells. An integer chooses
        one; a float32 interpolates by cubic convolution (`knot_weights`), which at an integer is that choice too.
    weights: the share of each time in each pixel, [b|1, h|1, w|1, J]; they add up to 1.
    """

    emb: Any  # Float[Array, "b|1 J e"]: after silu, with the label added
    position: Any = None
    weights: Any = None
    grid: Grid | None = struct.field(pytree_node=False, default=None)

    @property
    def cells(self) -> Grid:
        """The grid of times of the first sort.

        Raises:
            ValueError: these are of another sort.
        """
        if self.grid is None:
            raise ValueError("expected the times of the cells of a grid, got ones with a position or weights")
        return self.grid


def sinusoid(t: Float[Array, "..."], width: int, radians: float = MAX_FREQUENCY) -> Float[Array, "... {width}"]:
    """Sines and cosines of times in [0, 1], float32, at frequencies evenly spaced in log (Vaswani et al. 2017).

    Args:
        radians: that the fastest turns from t = 0 to 1.
    """
    share = jnp.arange(width // 2, dtype=jnp.float32) / (width // 2 - 1)
    freqs = radians * (MIN_FREQUENCY / radians) ** share
    angles = t[..., None] * freqs.reshape((1,) * t.ndim + (-1,))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def keys(away: Float[Array, "..."]) -> Float[Array, "..."]:
    """Weight of a knot so far away, in knots, in Keys' cubic convolution with a = -1/2 (1981, eq. 15)."""
    near = (1.5 * away - 2.5) * away * away + 1.0
    far = ((2.5 - 0.5 * away) * away - 4.0) * away + 2.0
    return jnp.where(away < 1, near, jnp.where(away < 2, far, 0.0))


def knot_weights(position: Float[Array, "..."] | Int[Array, "..."], knots: int) -> Float[Array, "..."]:
    """Weights of knots 0 ... knots - 1 at positions [..., 1], by `keys`.

    One-hot at integers, four weights that add up to 1 in between; of third order.
    """
    return keys(
        jnp.abs(
            position.astype(jnp.float32)
            - jnp.arange(knots, dtype=jnp.float32).reshape((1,) * (position.ndim - 1) + (-1,))
        )
    )


class TimeEmbedding(nn.Module):
    """A field, embedded for each level of a network; J times are embedded, however many levels there are.

    Attributes:
        radians: that the fastest feature of a time turns from t = 0 to 1.
        mean_of: what a cell of a level that is coarser than the field is told.
    """

    width: int
    dtype: Any = jnp.float32
    radians: float = MAX_FREQUENCY
    mean_of: MeanOf = "modulations"

    @nn.compact
    def __call__(
        self, t: TimeField | FewTimes, label: Float[Array, "_b 1 {self.width}"] | None, grids: Sequence[Grid]
    ) -> list[LevelTimes]:
        """One `LevelTimes` for each of `grids` (rows and columns); `label` is added to each time's embedding."""
        into = nn.Dense(self.width, dtype=self.dtype, name="in")
        out = nn.Dense(self.width, dtype=self.dtype, name="out")

        def embed(times: Float[Array, "_b j"]) -> Embedded:
            hidden = constrain(into(sinusoid(times, 256, self.radians).astype(self.dtype)), "batch", None, None)
            emb = constrain(out(nn.silu(hidden)), "batch", None, None)
            return nn.silu(emb if label is None else emb + label)

        def levels(t: TimeField | FewTimes, grids: Sequence[Grid]) -> list[LevelTimes]:
            if isinstance(t, FewTimes):
                values, index = timefield.assembled(*t)
                if math.prod(index.shape[1:3]) > values.shape[1]:
                    emb = embed(values)
                    return [_chosen(emb, index, grid) for grid in grids]
                t = timefield.dense(t)
            t = t.astype(jnp.float32)
            cells = t.shape[1:3]
            if math.prod(cells) <= KNOTS or self.radians > MAX_FREQUENCY:
                emb = embed(t.reshape(t.shape[0], -1))
                emb = emb.reshape(-1, *cells, self.width)
                return [_cells(timefield.coarsen(emb, grid)) for grid in grids]
            emb = embed((jnp.arange(KNOTS, dtype=jnp.float32)[None] - 1.0) / STEPS)
            return [_between(emb, STEPS * t + 1.0, grid) for grid in grids]

        if self.mean_of == "modulations":
            return levels(t, grids)
        return [levels(_mean_time(t, grid), [grid])[0] for grid in grids]


def _mean_time(t: TimeField | FewTimes, grid: Grid) -> TimeField | FewTimes:
    """The field on a level's grid, as its cells' mean times; as it is where no cell of the level holds several."""
    cells = t.index.shape[1:3] if isinstance(t, FewTimes) else t.shape[1:3]
    return t if _refines(grid, cells) else timefield.coarsen(timefield.dense(t), grid)


def _cells(emb: Float[Array, "_b gh gw e"]) -> LevelTimes:
    return LevelTimes(emb.reshape(emb.shape[0], -1, emb.shape[-1]), grid=timefield.grid_of(emb))


def _refines(grid: Grid, cells: tuple[int, ...]) -> bool:
    return all(g % n == 0 for g, n in zip(grid, cells, strict=True))


def _chosen(emb: Embedded, index: Int[Array, "_b gh gw 1"], grid: Grid) -> LevelTimes:
    times = emb.shape[1]
    if math.prod(grid) > times and _refines(grid, index.shape[1:3]):
        return LevelTimes(emb, position=index)
    hot = (index == jnp.arange(times, dtype=index.dtype).reshape(1, 1, 1, -1)).astype(jnp.float32)
    return _mixed(emb, _pool(hot, grid), grid)


def _between(emb: Embedded, position: Float[Array, "_b gh gw 1"], grid: Grid) -> LevelTimes:
    times = emb.shape[1]
    if math.prod(grid) > times and _refines(grid, position.shape[1:3]):
        return LevelTimes(emb, position=position)
    return _mixed(emb, _pool(knot_weights(position, times), grid), grid)


def _mixed(emb: Embedded, weights: Float[Array, "_b _h _w j"], grid: Grid) -> LevelTimes:
    if math.prod(grid) > emb.shape[1]:
        return LevelTimes(emb, weights=weights.astype(emb.dtype))
    # fewer pixels than times: from here on one time a pixel, so that blocks project those
    weights = jnp.broadcast_to(weights, (weights.shape[0], *grid, weights.shape[-1]))
    mixed = matmul(weights.reshape(weights.shape[0], -1, weights.shape[-1]), emb)
    return LevelTimes(mixed, grid=grid)


def _pool(weights: Float[Array, "_b gh gw j"], grid: Grid) -> Float[Array, "_b _h _w j"]:
    """The area mean of weights on a coarser grid; an axis of size 1 stays.

    Where cells are whole, as one reduction, which XLA computes together with the weights: they are never stored.
    """
    h, w = (1 if n == 1 else g for n, g in zip(weights.shape[1:3], grid, strict=True))
    if weights.shape[1] % h or weights.shape[2] % w:
        return timefield.resize(weights, grid)
    b, gh, gw, j = weights.shape
    return weights.reshape(b, h, gh // h, w, gw // w, j).mean((2, 4))


def matmul(weights: Float[Array, "_b n j"], rows: Float[Array, "_b2 j d"]) -> Float[Array, "_b3 n d"]:
    """Mixtures of rows, in the rows' type; float32 stays float32 on every device, for the weights are exact."""
    precision = "highest" if rows.dtype == jnp.float32 else None
    return jnp.matmul(weights.astype(rows.dtype), rows, precision=precision)


def modulation(
    table: Float[Array, "_b j d"], times: LevelTimes, num: int, grid: Grid
) -> list[Float[Array, "_b2 _h _w _d2"]]:
    """`num` maps [b|1, h|1, w|1, d / num] from a projection of the J embedded times [b|1, J, d]."""
    batch, count, width = table.shape
    if times.grid is not None:
        maps = timefield.resize(table.reshape(batch, *times.grid, width), grid)
        return jnp.split(maps, num, axis=-1)
    if count <= CHOSEN:
        return [_choose(part, times, grid) for part in jnp.split(table, num, axis=-1)]
    weights = knot_weights(times.position, count) if times.weights is None else times.weights
    b, h, w, _ = weights.shape
    maps = matmul(weights.reshape(b, h * w, count), table).reshape(-1, h, w, width)
    return jnp.split(timefield.resize(maps, grid), num, axis=-1)


def _choose(rows: Float[Array, "_b j d"], times: LevelTimes, grid: Grid) -> Float[Array, "_b2 _h _w d"]:
    """Elementwise, so that XLA does it within the operation that reads it: no map is ever stored."""
    first, *others = (rows[:, None, None, j] for j in range(rows.shape[1]))
    if times.weights is None:
        index, out = timefield.resize(times.position, grid), first
        for j, row in enumerate(others, 1):
            out = jnp.where(index == j, row, out)
        return out
    # the first time's share is what the others leave: the shares add up to 1 whatever their rounding
    return first + sum(times.weights[..., j : j + 1] * (row - first) for j, row in enumerate(others, 1))
