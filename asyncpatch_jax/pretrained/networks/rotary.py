"""Rotary positions (Su et al. 2021, arXiv 2104.09864) of a sequence of text and images, as FLUX has them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from asyncpatch_jax.pretrained.networks.layers import wide
from asyncpatch_jax.timefield import Grid

_THETA = 10_000.0


class Rotation(NamedTuple):
    """Of a joint sequence, float32 [1, n, 1, d].

    Channels 2i and 2i + 1 turn as a pair: `x cos + swapped(x) sin`, where the even rows of `sin` are negative.
    """

    cos: Any
    sin: Any


def rotation(text: int, grids: list[Grid], axes: tuple[int, int, int]) -> Rotation:
    """Of `text` tokens, which do not turn, and the tokens of images, by the image's index, the row and the column."""

    def angles(positions: np.ndarray, width: int) -> np.ndarray:
        # in float64, as diffusers has them: a row's angle is up to hundreds of radians
        freqs = _THETA ** -(np.arange(0, width, 2, dtype=np.float64) / width)
        return np.repeat(positions[:, None] * freqs, 2, axis=1)

    def table(wave: Any, sign: np.ndarray) -> jax.Array:
        parts = [jnp.broadcast_to(wave(np.zeros(len(sign))).astype(np.float32), (text, len(sign)))]
        for index, grid in enumerate(grids):
            positions = np.full(1, index), np.arange(grid[0]), np.arange(grid[1])
            waves = [wave(angles(p, width)).astype(np.float32) for p, width in zip(positions, axes, strict=True)]
            shapes = (1, 1, axes[0]), (grid[0], 1, axes[1]), (1, grid[1], axes[2])
            full = [
                jnp.broadcast_to(w.reshape(shape), (*grid, shape[-1])) for w, shape in zip(waves, shapes, strict=True)
            ]
            parts.append(jnp.concatenate(full, axis=-1).reshape(-1, len(sign)))
        return (jnp.concatenate(parts) * sign[None])[None, :, None]

    channels = np.arange(sum(axes))
    return Rotation(
        table(np.cos, np.ones(len(channels), np.float32)),
        table(np.sin, np.where(channels % 2, 1, -1).astype(np.float32)),
    )


def rotated(x: Float[Array, "b n h d"], rotation: Rotation) -> Float[Array, "b n h d"]:
    """Each pair of channels, turned by its position's angle."""
    # by a product, exact in any type: pairs on an axis of their own would fill a TPU's lanes by 2 of 128
    channels = np.arange(x.shape[-1])
    swap = jnp.asarray(channels[:, None] == (channels ^ 1)[None], x.dtype)
    swapped = jnp.einsum("bnhd,de->bnhe", x, swap, precision="highest")
    kind = wide(x.dtype)
    return (x.astype(kind) * rotation.cos + swapped.astype(kind) * rotation.sin).astype(x.dtype)
