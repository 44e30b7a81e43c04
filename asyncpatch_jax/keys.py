"""One random key per image, so that an image does not depend on the batch that it is drawn in.

Nor does it depend on `JAX_DEFAULT_PRNG_IMPL`: numbers come from Threefry, whatever keys came in. What the hardware's
own generator ("rbg") gives to an image depends on how many are drawn with it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from asyncpatch_jax import checks
from asyncpatch_jax.types import ImageKeys

_IMPL = "threefry2x32"
# seeds are taken whole: JAX itself, without 64-bit types, takes them modulo 2^32
LARGEST_SEED = 2**64 - 1


def of_seed(seed: int) -> Key[Array, ""]:
    """The key of a seed, 0 ... 2^64 - 1: below 2^32 that of `jax.random.key(seed)`, above it one of its own.

    Raises:
        ValueError: another seed.
    """
    checks.whole("seed", seed, 0, LARGEST_SEED)
    halves = np.asarray([int(seed) >> 32, int(seed) & 0xFFFFFFFF], np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(halves), impl=_IMPL)


def threefry(key: Key[Array, "..."]) -> Key[Array, "..."]:
    """The same keys for Threefry. Those of "rbg" hold such a key twice, and fold and split as it does.

    Raises:
        ValueError: no typed key.
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        found = f"an array of {key.dtype}" if isinstance(key, jax.Array) else checks.shown(key)
        raise ValueError(f"expected a typed key (such as jax.random.key(0)), got {found}")
    if str(jax.random.key_impl(key)) == _IMPL:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key)[..., :2], impl=_IMPL)


def per_image(key: Key[Array, "..."], batch: int) -> ImageKeys:
    """Keys [batch]: one key is folded with each image's index; keys that already are one per image pass.

    Raises:
        ValueError: `key` is no typed key (`jax.random.key`), or holds another number of keys than `batch`.
    """
    key = threefry(key)
    if key.ndim == 0:
        checks.whole("batch", batch)
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch, dtype=jnp.uint32))
    if key.shape != (batch,):
        raise ValueError(f"expected one key, or {batch} keys (one per image), got keys of shape {key.shape}")
    return key


def fold_in(keys: ImageKeys, data: int | Int[Array, ""]) -> ImageKeys:
    """Fold the same number into every image's key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(threefry(keys))


def split(keys: ImageKeys, num: int) -> tuple[ImageKeys, ...]:
    """`num` independent key arrays [b] out of one."""
    return tuple(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, num))(threefry(keys)), 1, 0))


def normal(keys: ImageKeys, shape: Sequence[int]) -> Float[Array, "b ..."]:
    """Standard normal noise [b, *shape] in float32, each image from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape), jnp.float32))(threefry(keys))


def uniform(keys: ImageKeys) -> Float[Array, "b"]:
    """A float32 number for each image, uniform in [0, 1), from its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(threefry(keys))
