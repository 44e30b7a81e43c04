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


def test_folding_splitting_and_noise_are_per_image():
    keys = keys_lib.per_image(jax.random.key(0), 3)
    for use in (
        lambda k: keys_lib.normal(k, (2, 2)),
        lambda k: jax.random.key_data(keys_lib.fold_in(k, 7)),
        lambda k: jax.random.key_data(keys_lib.split(k, 2)[1]),
    ):
        assert (use(keys)[1:2] == use(keys[1:2])).all()
        assert len(np.unique(np.asarray(use(keys)).reshape(3, -1), axis=0)) == 3
    one, two = (keys_lib.normal(k, (64,)) for k in keys_lib.split(keys, 2))
    assert abs(float((one * two).mean())) < 0.3
    assert not np.array_equal(one, two)


def test_other_keys_are_refused():
    with pytest.raises(ValueError, match="expected one key, or 3 keys"):
        keys_lib.per_image(keys_lib.per_image(jax.random.key(0), 2), 3)
