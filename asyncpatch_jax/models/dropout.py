"""Dropout whose masks cost next to nothing to draw, and nothing to store.

Whether a feature is kept is a hash of a seed, the layer's name and where the feature is. JAX's own random bits and keys
(Threefry) are made for far more than masks: they take ten times the operations, on the vector unit that a TPU's other
elementwise work waits for, and a good part of the time that the compiler takes for a training step.
"""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key, UInt32

Seed = UInt32[Array, ""]

_GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: the step of a Weyl sequence


def first_seed(key: Key[Array, ""]) -> Seed:
    """One for all layers of a network, from its random key."""
    return functools.reduce(lambda state, word: _mix(state ^ word), jax.random.key_data(key), jnp.uint32(0))


def seeds(seed: Seed | None, layers: int) -> UInt32[Array, "{layers}"] | None:
    """One for each layer of a stack, whose layers have the same names."""
    return None if seed is None else _mix(seed + jax.lax.iota(jnp.uint32, layers) * jnp.uint32(_GOLDEN))


class Dropout(nn.Module):
    """Each feature is zero with probability `rate`, else divided by 1 - rate (Srivastava et al. 2014).

    Without a seed (that is, not in training), nothing happens. How arrays lie on devices does not change the mask.

    Raises:
        ValueError: a rate outside of [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], seed: Seed | None) -> Float[Array, "*shape"]:
        if not 0 <= self.rate < 1:
            raise ValueError(f"expected a dropout rate in [0, 1), got {self.rate}")
        if seed is None or not self.rate:
            return x
        return _drop(self.rate, zlib.crc32("/".join(self.path).encode()), x, seed)


def kept(seed: Seed, layer: int, shape: tuple[int, ...], rate: float) -> Bool[Array, "..."]:
    """Which features of an array of this shape are kept: bits that look independent, false with probability `rate`.

    All of it is elementwise, so that XLA has it within the operation that reads the mask.

    Args:
        layer: 32 bits that are a layer's own.
    """
    place = jnp.uint32(layer)
    for axis, stride in enumerate(math.prod(shape[i + 1 :]) for i in range(len(shape))):
        # modulo 2^32, all of it: larger arrays begin again
        place = place + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride * _GOLDEN % 2**32)
    return _mix(_mix(place) ^ seed) >= jnp.uint32(int(rate * 2**32))


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A hash of 32 bits whose every output bit depends on every input bit (lowbias32 of Wellons' search, 2018)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _drop(rate: float, layer: int, x: jax.Array, seed: jax.Array) -> jax.Array:
    return jnp.where(kept(seed, layer, x.shape, rate), x / (1.0 - rate), jnp.zeros((), x.dtype))


def _drop_forward(rate: float, layer: int, x: jax.Array, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _drop(rate, layer, x, seed), seed


def _drop_backward(rate: float, layer: int, seed: jax.Array, g: jax.Array) -> tuple[jax.Array, None]:
    # the mask is drawn again: to store it takes longer
    return _drop(rate, layer, g, seed), None


_drop.defvjp(_drop_forward, _drop_backward)
