"""Time fields: make them, and bring them to another grid. The only place that resizes fields.

A field is float32 [b, gh, gw, 1], 0 = data, 1 = noise. An axis of size 1 broadcasts: the 1x1 field is ordinary,
synchronous diffusion and costs what a scalar costs. So does a field of few times (`FewTimes`): `few` makes one, `dense`
writes it out, and `check`, `dense` and `like` take either sort.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Int, Shaped

from asyncpatch_jax import checks
from asyncpatch_jax.types import FewTimes, Image, TimeField

Grid = tuple[int, int]
# with 64-bit types on, an array is of float64 unless it is told otherwise
_WIDE = (np.dtype("float32"), np.dtype("float64"))


def grid_of(x: Shaped[Array, "b gh gw *d"]) -> Grid:
    """Rows and columns of an array [b, gh, gw, ...]."""
    return x.shape[1], x.shape[2]


def constant(t: float | Float[Array, ""] | Float[Array, "b"], batch: int) -> TimeField:
    """The 1x1 field [batch, 1, 1, 1] of one time, or of one time per image [batch].

    Raises:
        ValueError: `t` is neither a scalar nor [batch], or lies outside of 0 ... 1.
    """
    checks.whole("batch", batch)
    if not isinstance(t, int | float) and not checks.is_array(t) and not isinstance(t, np.number):
        raise ValueError(f"expected a scalar or [{batch}] times, got {checks.shown(t)}")
    checks.numbers("t", t, 0, 1)
    t = jnp.asarray(t, jnp.float32)
    if t.ndim > 1 or t.shape not in ((), (1,), (batch,)):
        raise ValueError(f"expected a scalar or [{batch}] times, got shape {t.shape}")
    return jnp.broadcast_to(t.reshape(-1, 1, 1, 1), (batch, 1, 1, 1))


def few(values: Float[Array, "_b k"], index: Int[Array, "_b2 gh gw 1"]) -> FewTimes:
    """A field of k distinct times an image: cell i has time `values[:, index[i]]`.

    Args:
        values: float32 times [b, k], or [1, k] for all images.
        index: integers [b|1, gh, gw, 1]. One outside of 0 ... k - 1 is refused where it is known. Where it is traced it
            takes the nearest that exists, and is an error in a program under `jax.experimental.checkify` (of no cost
            elsewhere).

    Raises:
        ValueError: wrong rank, batch or dtype, times outside of 0 ... 1, or an index of none of them.
    """
    made = assembled(values, index)
    checks.numbers("times", values, 0, 1)
    if not isinstance(index, jax.core.Tracer):
        checks.numbers("index", index, 0, values.shape[1] - 1)
    return made


def assembled(values: Float[Array, "_b k"], index: Int[Array, "_b2 gh gw 1"]) -> FewTimes:
    """`few` for what the library makes at each step: numbers on a device are not read, which would wait for them.

    Raises:
        ValueError: wrong rank, batch or dtype.
    """
    checks.shaped("the values of a field as", values, "b k")
    if not values.shape[1]:
        raise ValueError(f"expected the values of a field as [b, k], got shape {values.shape}")
    if values.dtype not in _WIDE:
        raise ValueError(f"expected float32 times (bfloat16 cannot tell times near 1 apart), got {values.dtype}")
    if not checks.is_array(index):
        raise ValueError(f"expected the index of a field as integers [b, gh, gw, 1], got {checks.shown(index)}")
    if index.ndim != 4 or index.shape[-1] != 1 or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(f"expected the index of a field as integers [b, gh, gw, 1], got {index.dtype}{index.shape}")
    if values.shape[0] != index.shape[0] and 1 not in (values.shape[0], index.shape[0]):
        raise ValueError(f"expected values and index of one batch, got {values.shape} and {index.shape}")
    values, index = jnp.asarray(values, jnp.float32), jnp.asarray(index)
    last = values.shape[1] - 1
    checkify.debug_check(
        jnp.all((index >= 0) & (index <= last)),
        f"expected an index in 0 ... {last}, got {{low}} to {{high}}",
        low=index.min(),
        high=index.max(),
    )
    # a byte holds it, and every pixel of every level reads it
    return FewTimes(values, jnp.clip(index, 0, last).astype(jnp.int8 if last < 128 else jnp.int32))


def as_few(t: TimeField | FewTimes) -> FewTimes | None:
    """A field as one of few times, if it is one by construction: the 1x1 field is a field of one time."""
    if isinstance(t, FewTimes):
        return assembled(*t)
    return assembled(t[:, 0, 0], jnp.zeros((1, 1, 1, 1), jnp.int8)) if t.shape[1:3] == (1, 1) else None


def dense(t: TimeField | FewTimes) -> TimeField:
    """The field itself, [b|1, gh, gw, 1]."""
    if not isinstance(t, FewTimes):
        return t
    values, index = assembled(*t)
    # selects, not a gather: fetching single numbers is slow on TPUs, and these melt into what reads the field
    batch = max(values.shape[0], index.shape[0])
    t = jnp.broadcast_to(values[:, :1, None, None], (batch, *index.shape[1:]))
    for k in range(1, values.shape[1]):
        t = jnp.where(index == k, values[:, k, None, None, None], t)
    return t


def mapped(t: TimeField | FewTimes, new: Callable[[jax.Array], jax.Array]) -> TimeField | FewTimes:
    """The field with the times `new(t)`: a field of few times stays one."""
    return assembled(new(t.values), t.index) if isinstance(t, FewTimes) else new(t)


def changed(
    t: TimeField | FewTimes, where: Bool[Array, "_b _gh _gw 1"], new: Callable[[jax.Array], jax.Array]
) -> TimeField | FewTimes:
    """The field with the times `new(t)` `where` a mask says so: a field of k times becomes one of 2k.

    The result lies on the finer of the two grids along each axis.

    Raises:
        ValueError: neither of the two grids refines the other.
    """
    grid = finer(t.index if isinstance(t, FewTimes) else t, where)
    where = resize(where, grid)
    if not isinstance(t, FewTimes):
        t = resize(t, grid)
        return jnp.where(where, new(t), t)
    k = t.values.shape[1]
    index = resize(t.index.astype(jnp.int32), grid)
    return assembled(jnp.concatenate([t.values, new(t.values)], 1), jnp.where(where, index + k, index))


def check(t: TimeField | FewTimes, batch: int) -> None:
    """Refuse what is not a float32 field for `batch` images (or for all of them at once).

    Raises:
        ValueError: wrong rank, batch or dtype.
    """
    if isinstance(t, FewTimes):
        assembled(*t)
        for part in t:
            if part.shape[0] not in (1, batch):
                raise ValueError(f"expected a time field of {batch} images, got few times of shape {part.shape}")
        return
    if not checks.is_array(t) or t.ndim != 4 or t.shape[-1] != 1 or t.shape[0] not in (1, batch):
        found = f"shape {t.shape}" if checks.is_array(t) else checks.shown(t)
        raise ValueError(f"expected a time field [{batch}, gh, gw, 1], got {found}")
    if t.dtype not in _WIDE:
        raise ValueError(f"expected a float32 time field (bfloat16 cannot tell times near 1 apart), got {t.dtype}")


def _overlap(size_in: int, size_out: int) -> np.ndarray:
    """Row o holds the share of output cell o that each input cell covers; rows sum to 1."""
    edges_in, edges_out = np.linspace(0, 1, size_in + 1), np.linspace(0, 1, size_out + 1)
    low = np.maximum(edges_in[None, :-1], edges_out[:-1, None])
    high = np.minimum(edges_in[None, 1:], edges_out[1:, None])
    share = np.maximum(high - low, 0)
    return (share / share.sum(1, keepdims=True)).astype(np.float32)


def _resize_axis(t: Shaped[Array, "..."], axis: int, size: int, how: str) -> Shaped[Array, "..."]:
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
    t: Shaped[Array, "b _gh _gw d"], grid: Grid, how: Literal["area", "max"] = "area"
) -> Shaped[Array, "b _gh2 _gw2 d"]:
    """Bring a field (or its embedding, d channels) to `grid`; an axis of size 1 stays 1, since it broadcasts.

    A finer grid repeats cells, a coarser one takes their area mean, or with "max" the noisiest of them (for hard masks:
    a cell with any unknown part is unknown).

    Raises:
        ValueError: "max" between grids of which neither divides the other, no field, or no grid.
    """
    checks.choice("how", how, ("area", "max"))
    checks.shaped("a field", t, "b gh gw d")
    checks.cells("grid", tuple(grid) if isinstance(grid, tuple | list) else grid)
    return _resize_axis(_resize_axis(t, 1, grid[0], how), 2, grid[1], how)


def coarsen(t: Float[Array, "b _gh _gw d"], grid: Grid) -> Float[Array, "b _gh2 _gw2 d"]:
    """`resize`, but an axis whose cells are whole multiples of `grid`'s stays: project few cells, spread later."""
    rows, cols = (n if g % n == 0 else g for n, g in zip(t.shape[1:3], grid, strict=True))
    return resize(t, (rows, cols))


def finer(a: Shaped[Array, "..."], b: Shaped[Array, "..."]) -> Grid:
    """The finer of the grids of two fields, along each axis.

    Raises:
        ValueError: neither of the two grids refines the other.
    """
    grid = max(a.shape[1], b.shape[1]), max(a.shape[2], b.shape[2])
    if any(n % m for n, m in zip(grid * 2, (*a.shape[1:3], *b.shape[1:3]), strict=True)):
        raise ValueError(f"expected grids of which one refines the other, got {a.shape[1:3]} and {b.shape[1:3]}")
    return grid


def noisy_mean(t: TimeField | FewTimes) -> Float[Array, "_b"]:
    """The mean [b] of a field over all cells but those at 0; 0 if all are. Exact where all of them are equal."""
    field = dense(t)
    noisy = field > 0
    low = jnp.where(noisy, field, jnp.inf).min((1, 2, 3))
    above = jnp.where(noisy, field - low.reshape(-1, 1, 1, 1), 0.0).sum((1, 2, 3))
    count = noisy.sum((1, 2, 3))
    return jnp.where(count == 0, 0.0, low + above / jnp.maximum(count, 1))


def like(t: TimeField | FewTimes, x: Image) -> TimeField:
    """The field at the pixels of `x`: [b, h|1, w|1, 1], ready for elementwise arithmetic.

    Raises:
        ValueError: the field's grid does not tile the image, or it is no float32 field of that batch.
    """
    check(t, x.shape[0])
    t = dense(t)
    for cells, size in zip(t.shape[1:3], x.shape[1:3], strict=True):
        if size % cells:
            raise ValueError(f"expected a field whose grid tiles {x.shape[1]}x{x.shape[2]} pixels, got {t.shape[1:3]}")
    return resize(t, (x.shape[1], x.shape[2]))


def from_mask(
    mask: Float[Array, "b h w 1"], t: float | Float[Array, ""] = 1.0, *, known: float = 0.0, grid: Grid | None = None
) -> TimeField:
    """The field of an inpainting mask (1 = generate, 0 = keep): `t` where something is to be generated, else `known`.

    On a coarser `grid` a cell with any pixel to generate is one to generate.

    Raises:
        ValueError: no mask [b, h, w, 1], or numbers outside of 0 ... 1.
    """
    checks.mask("mask", mask)
    checks.numbers("t", t, 0, 1)
    checks.numbers("known", known, 0, 1)
    return jnp.where(unknown(mask, grid) > 0.5, jnp.float32(t), jnp.float32(known))


def unknown(mask: Float[Array, "b h w 1"], grid: Grid | None = None) -> Float[Array, "b _gh _gw 1"]:
    """1 where a mask has anything to generate in a cell, else 0; its numbers are not looked at (see `from_mask`)."""
    field = (mask > 0.5).astype(jnp.float32)
    return field if grid is None else resize(field, grid, "max")
