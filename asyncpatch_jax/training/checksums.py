"""Checksums of arrays: one number for each, whatever lies where.

The sum, modulo 2^32, of every 32-bit word mixed with its place in the array. One word that differs always changes it
(the mixing is a bijection, MurmurHash3's finaliser by Austin Appleby); what differs in more places passes once in 2^32.
A sum may be taken in any order, so that an array has the same one on any mesh and in any number of processes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, UInt32

_BLOCK = 2**16  # words that the host takes at a time: they stay in its cache


def checksums(tree: Any) -> dict[str, int]:
    """The checksum of every leaf, by path. All processes call it alike, and all get the same."""
    leaves = tree_leaves_with_path(tree)
    sums = jax.device_get([_checksum(leaf) for _, leaf in leaves])
    return {keystr(path, simple=True, separator="/"): int(one) for (path, _), one in zip(leaves, sums, strict=True)}


def _checksum(leaf: Any) -> Any:
    """On the devices; on the host, without a program to compile, what its own memory holds."""
    if not isinstance(leaf, jax.Array):
        return _on_host(np.asarray(leaf))
    devices: Any = leaf.sharding.device_set  # whose type JAX leaves open
    if all(device.platform == "cpu" for device in devices):
        if leaf.is_fully_replicated:
            return _on_host(np.asarray(leaf.addressable_data(0)))
        if leaf.is_fully_addressable:
            return _on_host(np.asarray(leaf))
    return _on_devices(leaf)


def _on_host(x: np.ndarray) -> np.uint32:
    flat = np.ascontiguousarray(x).reshape(-1)
    words: np.ndarray = flat.view(_word(flat.dtype))
    total = 0
    for first in range(0, len(words), _BLOCK):
        block = words[first : first + _BLOCK].astype(np.uint32)
        place = np.arange(first, first + len(block)).astype(np.uint32)
        total += int(_mixed(block, place).sum(dtype=np.uint64))
    return np.uint32(total % 2**32)


@jax.jit
def _on_devices(x: Array) -> UInt32[Array, ""]:
    bits = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, _word(x.dtype))
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride)
    return jnp.sum(_mixed(bits.astype(jnp.uint32), place), dtype=jnp.uint32)


def _word(dtype: Any) -> type:
    return {1: np.uint8, 2: np.uint16}.get(np.dtype(dtype).itemsize, np.uint32)


def _mixed(words: Any, place: Any) -> Any:
    mixed = words ^ (place * np.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))
