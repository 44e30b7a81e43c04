"""One key per image, whatever the batch."""

import jax
import numpy as np
import pytest

from asyncpatch_jax import keys as keys_lib


def test_an_image_s_key_is_that_of_its_index():
    few, many = (keys_lib.per_image(jax.random.key(0), batch) for batch in (2, 5))
    assert (jax.random.key_data(few) == jax.random.key_data(many[:2])).all()
    assert len(np.unique(jax.random.key_data(many), axis=0)) == 5
    assert (jax.random.key_data(keys_lib.per_image(many, 5)) == jax.random.key_data(many)).all()


@jax.jit
def uses(keys):
    """What is drawn and made of keys: noise, folded keys, those of a split, and the noise of both."""
    one, two = keys_lib.split(keys, 2)
    parts = keys_lib.normal(keys, (2, 2)), keys_lib.fold_in(keys, 7), two
    parts = [
        jax.random.key_data(part) if jax.numpy.issubdtype(part.dtype, jax.dtypes.prng_key) else part for part in parts
    ]
    return parts, keys_lib.normal(one, (64,)), keys_lib.normal(two, (64,))


def test_folding_splitting_and_noise_are_per_image():
    keys = keys_lib.per_image(jax.random.key(0), 3)
    (parts, one, two), (moved, *_) = (jax.tree.map(np.asarray, uses(of)) for of in (keys, keys[np.array([1, 1, 2])]))
    for part, other in zip(parts, moved, strict=True):
        np.testing.assert_array_equal(other, part[[1, 1, 2]])
        assert len(np.unique(part.reshape(3, -1), axis=0)) == 3
    assert abs((one * two).mean()) < 0.3
    assert not np.array_equal(one, two)


def test_other_keys_are_refused():
    with pytest.raises(ValueError, match="expected one key, or 3 keys"):
        keys_lib.per_image(keys_lib.per_image(jax.random.key(0), 2), 3)
