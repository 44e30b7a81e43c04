"""A function of a large image, applied to overlapping tiles one after another and blended."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from asyncpatch_jax.types import Image

Changed = Float[Array, "b _h _w _c"]


def tiled(
    function: Callable[[Image], Changed], x: Image, tile: int, overlap: int, *, size_in: int, size_out: int
) -> Changed:
    """`function(x)`, as the blend of its values on tiles; all tiles have one shape, so that it is compiled once.

    A tile weighs less the nearer its cut edges are, linearly over the overlap with its neighbours; weights add up to 1.
    Where the function looks no further than to the cut edges, the result is its value on the whole image. An axis that
    is no longer than a tile is not cut.

    Args:
        tile: cells to a side of a tile.
        overlap: cells that neighbours share at least; they are spread evenly.
        size_in: pixels of x to a side of a cell.
        size_out: pixels of the result to a side of a cell.

    Raises:
        ValueError: an image that is not made of whole cells, no tile, or an overlap of more than half a tile.
    """
    if not 0 < 2 * overlap <= tile:
        raise ValueError(f"expected an overlap of 1 ... {tile // 2} cells, half of a tile of {tile}, got {overlap}")
    if x.shape[1] % size_in or x.shape[2] % size_in:
        raise ValueError(f"expected a height and width of multiples of {size_in}, got {x.shape[1]}x{x.shape[2]}")
    cells = [x.shape[1] // size_in, x.shape[2] // size_in]
    rows, columns = (starts(n, tile, overlap) for n in cells)
    sides = [min(tile, n) for n in cells]
    row_weights, column_weights = (
        weights(first, side, size_out) for first, side in zip((rows, columns), sides, strict=True)
    )
    cut = (x.shape[0], sides[0] * size_in, sides[1] * size_in, x.shape[3])
    value = jax.eval_shape(function, jax.ShapeDtypeStruct(cut, x.dtype))
    kind = jnp.promote_types(value.dtype, jnp.float32)

    def add(total: jax.Array, tile: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        row, column, row_weight, column_weight = tile
        zero = jnp.zeros_like(row)
        part = jax.lax.dynamic_slice(x, (zero, row * size_in, column * size_in, zero), cut)
        weight = row_weight[None, :, None, None] * column_weight[None, None, :, None]
        corner = (zero, row * size_out, column * size_out, zero)
        before = jax.lax.dynamic_slice(total, corner, value.shape)
        return jax.lax.dynamic_update_slice(total, before + weight * function(part).astype(kind), corner), None

    i, j = (index.ravel() for index in np.meshgrid(range(len(rows)), range(len(columns)), indexing="ij"))
    tiles = (
        jnp.asarray(rows[i]),
        jnp.asarray(columns[j]),
        jnp.asarray(row_weights[i], kind),
        jnp.asarray(column_weights[j], kind),
    )
    whole = (x.shape[0], cells[0] * size_out, cells[1] * size_out, value.shape[3])
    total, _ = jax.lax.scan(add, jnp.zeros(whole, kind), tiles)
    return total


def starts(cells: int, tile: int, overlap: int) -> np.ndarray:
    """First cells of as few tiles as cover an axis, spread evenly."""
    count = 1 if cells <= tile else -(-(cells - overlap) // (tile - overlap))
    return np.round(np.linspace(0, max(cells - tile, 0), count)).astype(np.int32)


def weights(first: np.ndarray, tile: int, size: int) -> np.ndarray:
    """How much each pixel of each tile counts [tiles, tile * size], `size` pixels to a cell; those of a pixel sum to 1.

    Args:
        first: cells that tiles begin with.
    """
    ramps = np.ones((len(first), tile * size))
    places = np.arange(tile * size) + 0.5
    for i, shared in enumerate((tile - np.diff(first)) * size):  # pixels that tiles i and i + 1 share
        ramps[i + 1] = np.minimum(ramps[i + 1], places / shared)
        ramps[i] = np.minimum(ramps[i], (tile * size - places) / shared)
    total = np.zeros((first[-1] + tile) * size)
    for start, ramp in zip(first * size, ramps, strict=True):
        total[start : start + tile * size] += ramp
    return np.stack(
        [ramp / total[start : start + tile * size] for start, ramp in zip(first * size, ramps, strict=True)]
    )
