"""What `test_loading.py` runs in two processes at once: each reads its part of a network, and the first writes it.

And each has seen its part of some images, of which both get the moments of all.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from asyncpatch_jax import sharding
from asyncpatch_jax.metrics import moments
from asyncpatch_jax.pretrained.folders import names, tensors
from asyncpatch_jax.pretrained.folders.loading import load_component
from asyncpatch_jax.pretrained.folders.saving import save_component


def main(address: str, process: int, folder: Path, out: Path) -> None:
    jax.distributed.initialize(address, 2, process)
    sharding.MIN_SIZE = 1
    asked = []
    copy = tensors._copy
    tensors._copy = lambda part, block, index: asked.append(part.size) or copy(part, block, index)
    component = load_component(folder, sharding.make_mesh(1, 4, 1), jnp.float32)
    state = names.from_torch(component.params, load_file(folder / "model.safetensors"))

    def check(leaf: jax.Array, whole: np.ndarray) -> None:
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])

    jax.tree.map(check, component.params, state)
    save_component(component, out)
    gather_features(process)
    print("share", sum(asked) / sum(leaf.size for leaf in jax.tree.leaves(state)))


def gather_features(process: int) -> None:
    """Of five images, which two processes do not share evenly; in several parts, whose last is smaller."""
    features = 1e3 + np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    whole, mine = moments.moments(features), features[process::2]
    for size in (moments._BYTES, 2 * 3 * 8):
        moments._BYTES = size
        found = moments.gather(moments.moments(mine))
        assert found.count == 5
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-15)
        np.testing.assert_allclose(found.scatter, whole.scatter, rtol=1e-10)
        np.testing.assert_array_equal(moments.gather_rows(mine), features)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
