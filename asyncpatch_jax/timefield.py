"""Time fields: make them, and bring them to another grid. The only place that resizes fields.

A field is float32 [b, gh, gw, 1], 0 = data, 1 = noise. An axis of size 1 broadcasts: the 1x1 field is ordinary,
synchronous diffusion and costs what a scalar costs.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from asyncpatch_jax.types import Image, TimeField

Grid = tuple[int, int]


def constant(t: float | Float[Array, ""] | Float[Array, "b"], batch: int) -> TimeField:
    """The 1x1 field [batch, 1, 1, 1] of one time, or of one time per image [batch].

    Raises:
        ValueError: `t` is neither a scalar nor [batch].
    """
    t = jnp.asarray(t, jnp.float32)
    if t.ndim > 1 or t.shape not in ((), (1,), (batch,)):
        raise ValueError(f"expected a scalar or [{batch}] times, got shape {t.shape}")
    return jnp.broadcast_to(t.reshape(-1, 1, 1, 1), (batch, 1, 1, 1))


def check(t: TimeField, batch: int) -> None:
    """Refuse what is not a float32 field for `batch` images (or for all of them at once).

    Raises:
        ValueError: wrong rank, batch or dtype.
    """
    if t.ndim != 4 or t.shape[-1] != 1 or t.shape[0] not in (1, batch):
        raise ValueError(f"expected a time field [{batch}, gh, gw, 1], got shape {t.shape}")
    if t.dtype != jnp.float32:
        raise ValueError(f"expected a float32 time field (bfloat16 cannot tell times near 1 apart), got {t.dtype}")


def _overlap(size_in: int, size_out: int) -> np.ndarray:
    """Row o holds the share of output cell o that each input cell covers; rows sum to 1."""
    edges_in, edges_out = np.linspace(0, 1, size_in + 1), np.linspace(0, 1, size_out + 1)
    low = np.maximum(edges_in[None, :-1], edges_out[:-1, None])
    high = np.minimum(edges_in[None, 1:], edges_out[1:, None])
    share = np.maximum(high - low, 0)
    return (share / share.sum(1, keepdims=True)).astype(np.float32)


def _resize_axis(t: Float[Array, "..."], axis: int, size: int, how: str) -> Float[Array, "..."]:
    old = t.shape[axis]
    if old in (1, size):
        return t
    if size % old == 0:
        return jnp.repeat(t, size // old, axis)
    # the means below are min + mean of the differences: the float32 mean of equal times is not exact, and a field that
    # is constant must stay exactly so
    if how == "max" and old % size:
        raise ValueError(f"expected a grid that divides {old} cells, got {size}: a maximum needs whole cells")
    if old % size == 0:
        cells = t.reshape(*t.shape[:axis], size, old // size, *t.shape[axis + 1 :])
        if how == "max":
            return cells.max(axis + 1)
        low = cells.min(axis + 1)
        return low + (cells - jnp.expand_dims(low, axis + 1)).mean(axis + 1)
    low = t.min(axis, keepdims=True)
    return low + jnp.moveaxis(jnp.tensordot(_overlap(old, size), t - low, (1, axis)), 0, axis)


def resize(
    t: Float[Array, "b _gh _gw d"], grid: Grid, how: Literal["area", "max"] = "area"
) -> Float[Array, "b _gh2 _gw2 d"]:
    """Bring a field (or its embedding, d channels) to `grid`; an axis of size 1 stays 1, since it broadcasts.

    A finer grid repeats cells, a coarser one takes their area mean, or with "max" the noisiest of them (for hard masks:
    a cell with any unknown part is unknown).

    Raises:
        ValueError: "max" between grids of which neither divides the other.
    """
    if how not in ("area", "max"):
        raise ValueError(f"expected how = 'area' or 'max', got {how!r}")
    return _resize_axis(_resize_axis(t, 1, grid[0], how), 2, grid[1], how)


def coarsen(t: TimeField, grid: Grid) -> TimeField:
    """`resize`, but an axis whose cells are whole multiples of `grid`'s stays: embed few cells, spread later."""
    return resize(t, tuple(n if g % n == 0 else g for n, g in zip(t.shape[1:3], grid, strict=True)))


def like(t: TimeField, x: Image) -> TimeField:
    """The field at the pixels of `x`: [b, h|1, w|1, 1], ready for elementwise arithmetic.

    Raises:
        ValueError: the field's grid does not tile the image, or it is no float32 field of that batch.
    """
    check(t, x.shape[0])
    for cells, size in zip(t.shape[1:3], x.shape[1:3], strict=True):
        if size % cells:
            raise ValueError(f"expected a field whose grid tiles {x.shape[1]}x{x.shape[2]} pixels, got {t.shape[1:3]}")
    return resize(t, (x.shape[1], x.shape[2]))


def from_mask(
    mask: Float[Array, "b h w 1"], t: float | Float[Array, ""] = 1.0, *, known: float = 0.0, grid: Grid | None = None
) -> TimeField:
    """The field of an inpainting mask (1 = generate, 0 = keep): `t` where something is to be generated, else `known`.

    On a coarser `grid` a cell with any pixel to generate is one to generate.
    """
    hard = mask > 0.5
    field = jnp.where(hard, 1.0, 0.0).astype(jnp.float32)
    if grid is not None:
        field = resize(field, grid, "max")
    return jnp.where(field > 0.5, jnp.float32(t), jnp.float32(known))
