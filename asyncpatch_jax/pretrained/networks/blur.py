"""The blur of attention queries that smoothed energy guidance asks for (SEG; Hong 2024, arXiv 2408.00760)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from asyncpatch_jax.timefield import Grid

# of a standard deviation of more cells than this, the released code takes the mean of all queries
INFINITE = 9999.0


def kernel(sigma: Float[Array, "b"], size: int) -> Float[Array, "b {size} {size}"]:
    """Matrices that blur an axis of `size` cells, one for each standard deviation, in cells.

    As the authors' code: a Gaussian cut off at three deviations, or at half the axis if that is less, of sum 1, on
    cells that are mirrored at both ends. The identity at 0; the mean of all cells above INFINITE.
    """
    reach = size // 2
    offsets = jnp.arange(-reach, reach + 1)
    inside = jnp.abs(offsets)[None, :] <= (jnp.ceil(6 * sigma) // 2)[:, None]
    safe = jnp.where(sigma > 0, sigma, 1.0)
    weights = jnp.where(inside, jnp.exp(-0.5 * (offsets[None, :] / safe[:, None]) ** 2), 0.0)
    weights = weights / weights.sum(1, keepdims=True)
    # cell that each offset from each cell falls on, mirrored about the end cells, which are not repeated
    last = size - 1
    cells = jnp.abs(jnp.arange(size)[:, None] + offsets[None, :])
    cells = last - jnp.abs(last - cells)
    hits = (cells[:, :, None] == jnp.arange(size)[None, None, :]).astype(weights.dtype)
    matrices = jnp.einsum("bo,ioj->bij", weights, hits, precision="highest")
    return jnp.where((sigma > INFINITE)[:, None, None], 1.0 / size, matrices)


def blurred(queries: Float[Array, "b n d"], sigma: Float[Array, "b"], grid: Grid) -> Float[Array, "b n d"]:
    """Queries of a grid of cells, row by row, blurred over it; bit for bit the same where `sigma` is 0.

    Args:
        sigma: standard deviation in cells, of each image.
    """
    b, n, d = queries.shape
    kind = jnp.promote_types(queries.dtype, jnp.float32)
    rows, columns = (kernel(sigma.astype(kind), size) for size in grid)
    cells = queries.astype(kind).reshape(b, *grid, d)
    cells = jnp.einsum("bij,bjwd->biwd", rows, cells, precision="highest")
    cells = jnp.einsum("bij,bhjd->bhid", columns, cells, precision="highest")
    return jnp.where((sigma == 0)[:, None, None], queries, cells.reshape(b, n, d).astype(queries.dtype))
