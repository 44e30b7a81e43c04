"""Perlin noise on a grid of cells, and regions cut from it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from asyncpatch_jax import checks
from asyncpatch_jax.timefield import Grid

Cells = Float[Array, "gh gw"]


def perlin_noise(key: Key[Array, ""], grid: Grid, cell: float | Float[Array, ""]) -> Cells:
    """Smooth noise [gh, gw] of one image: unit gradients on a square lattice, blended by a quintic fade (Perlin 2002).

    The lattice is shifted at random, for on its points the noise is always 0.

    Args:
        key: one key; vmap for a batch.
        grid: rows and columns of cells.
        cell: side of a lattice cell in cells of the grid, >= 1; may be traced.

    Raises:
        ValueError: a known `cell` below 1, or no grid.
    """
    checks.cells("grid", grid)
    checks.numbers("cell (the side of a lattice cell, in cells of the grid)", cell, 1)
    key_lattice, key_shift = jax.random.split(key)
    # as large as the finest lattice needs, so that the shape does not depend on `cell`
    angle = jax.random.uniform(key_lattice, (grid[0] + 2, grid[1] + 2), jnp.float32, maxval=2 * jnp.pi)
    shift = jax.random.uniform(key_shift, (2,), jnp.float32)
    y, x = (jnp.arange(n, dtype=jnp.float32) / cell + start for n, start in zip(grid, shift, strict=True))
    row, column = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    y, x = (y - row)[:, None], (x - column)[None, :]

    def corner(down: int, right: int) -> Cells:
        a = angle[row + down][:, column + right]
        return jnp.cos(a) * (x - right) + jnp.sin(a) * (y - down)

    fade_y, fade_x = (f**3 * (f * (6.0 * f - 15.0) + 10.0) for f in (y, x))
    top = corner(0, 0) * (1.0 - fade_x) + corner(0, 1) * fade_x
    bottom = corner(1, 0) * (1.0 - fade_x) + corner(1, 1) * fade_x
    return top * (1.0 - fade_y) + bottom * fade_y


def by_rank(noise: Cells, area: float | Float[Array, ""]) -> Cells:
    """1 on the lowest cells, so many that they cover `area` of the image to the nearest cell; 0 elsewhere."""
    rank = jnp.argsort(jnp.argsort(noise.reshape(-1))).reshape(noise.shape)
    return (rank + 0.5 < area * noise.size).astype(jnp.float32)
