"""Random arrays and parameters from NumPy, which compiles nothing: JAX compiles a program for each shape it draws.

So does `jnp.asarray`, for each shape that it changes the type of or takes from NumPy as it is; `device_put` does not.
"""

from typing import Any

import jax
import numpy as np


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Of the standard normal distribution, float32."""
    return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def uniform(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> jax.Array:
    """Between `low` and `high`, float32."""
    return jax.device_put(np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32))


def params(module: Any, *inputs: Any, seed: int = 0, scale: float = 0.2) -> Any:
    """Parameters of a module of flax for these inputs, as `params_like` draws them."""
    return params_like(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"], seed=seed, scale=scale)


def params_like(shapes: Any, *, seed: int = 0, scale: float = 0.2) -> Any:
    """Every parameter is random, those that a fresh network has at 0 or 1 too, so that all take part.

    What fans in keeps the size of activations; scales are about 1.
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        size = np.prod(leaf.shape[:-1]) ** -0.5 if len(leaf.shape) > 1 else scale
        middle = 1.0 if path[-1].key == "scale" else 0.0
        return jax.device_put(np.asarray(middle + size * rng.normal(size=leaf.shape)).astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, shapes)
