"""One random key per image, so that an image does not depend on the batch that it is drawn in."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from asyncpatch_jax.types import ImageKeys


def per_image(key: Key[Array, "..."], batch: int) -> ImageKeys:
    """Keys [batch]: one key is folded with each image's index; keys that already are one per image pass.

    Raises:
        ValueError: `key` is no typed key (`jax.random.key`), or holds another number of keys than `batch`.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"expected a typed key (jax.random.key), got an array of {key.dtype}")
    if key.ndim == 0:
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"expected one key, or {batch} keys (one per image), got keys of shape {key.shape}")
    return key


def fold_in(keys: ImageKeys, data: int | Int[Array, ""]) -> ImageKeys:
    """Fold the same number into every image's key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def split(keys: ImageKeys, num: int) -> tuple[ImageKeys, ...]:
    """`num` independent key arrays [b] out of one."""
    return tuple(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, num))(keys), 1, 0))


def normal(keys: ImageKeys, shape: Sequence[int]) -> Float[Array, "b ..."]:
    """Standard normal noise [b, *shape], each image from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape)))(keys)
