"""Checksums of arrays: the same however they lie, another for any other word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpatch_jax.training.checksums import _on_devices, _on_host, checksums

TYPES = ("float32", "int32", "int8", "bool", "bfloat16", "float16", "uint32")


def arrays(shape, dtype, seed=0):
    raw = np.random.default_rng(seed).integers(0, 255, (*shape, 4), np.uint8)
    return jnp.asarray(raw[..., 0] > 100 if dtype == "bool" else raw.view(np.int32)[..., 0]).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_devices_and_host_agree(dtype):
    for shape in ((), (0, 3), (5,), (3, 4, 5)):
        x = arrays(shape, dtype)
        assert int(_on_devices(x)) == int(_on_host(np.asarray(x)))


def test_blocks_of_the_host_do_not_show():
    x = np.arange(3 * 2**16 + 4, dtype=np.int32).reshape(-1, 1)
    assert int(_on_host(x)) == int(_on_devices(jnp.asarray(x)))
    assert _on_host(np.asfortranarray(x.reshape(-1, 4)[:7])) == _on_host(x.reshape(-1, 4)[:7].copy())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50), st.data())
def test_any_word_that_changes_changes_it(words, data):
    x = np.array(words, np.uint32)
    place, bit = data.draw(st.integers(0, len(x) - 1)), data.draw(st.integers(0, 31))
    y = x.copy()
    y[place] ^= np.uint32(1 << bit)
    assert _on_host(x) != _on_host(y)


def test_places_count():
    x = np.arange(100, dtype=np.float32)
    for other in (x[::-1].copy(), np.roll(x, 1), np.where(x == 3, 4, np.where(x == 4, 3, x))):
        assert _on_host(x) != _on_host(other.astype(np.float32))
    zero, minus, nan = (np.full(1, value, np.float32) for value in (0.0, -0.0, np.nan))
    assert _on_host(zero) != _on_host(minus)
    assert _on_host(nan) == _on_host(nan)


def test_names_are_paths():
    tree = {"a": {"w": jnp.ones(2)}, "b": [jnp.zeros(1), np.ones(2, np.float32)]}
    found = checksums(tree)
    assert list(found) == ["a/w", "b/0", "b/1"]
    assert found["a/w"] == found["b/1"] != found["b/0"]
    assert all(isinstance(value, int) for value in found.values())
    assert checksums(jax.device_get(tree)) == found
