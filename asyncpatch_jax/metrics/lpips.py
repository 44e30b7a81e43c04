"""LPIPS of pairs of images, and what its networks see of single ones: read from folders; nothing is downloaded.

Numbers are of one trunk: "LPIPS-Alex" is what the authors compare with, "LPIPS-VGG" what papers on inpainting and
autoencoders report. A folder without heads is no LPIPS: its distance has "unweighted" in its name.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from asyncpatch_jax import sharding
from asyncpatch_jax.metrics.paired import BATCH, Paired, check_images, in_range, weights
from asyncpatch_jax.metrics.sources import SOURCES
from asyncpatch_jax.pretrained.folders.loading import Component, load_component, resolve
from asyncpatch_jax.pretrained.networks.lpips import LPIPS, Trunk
from asyncpatch_jax.sampling.batches import batched

# names of folders, as `launch.convert_metric` writes them -> of their numbers
NAMES = {
    "lpips_alex": "LPIPS-Alex",
    "lpips_vgg": "LPIPS-VGG",
    "lpips_squeeze": "LPIPS-Squeeze",
    "squeezenet": "unweighted SqueezeNet 1.1 (Caffe)",
}


def read_lpips(folder: epath.PathLike, mesh: Mesh | None = None, dtype: Any = jnp.float32) -> Paired:
    """LPIPS, ready to be called; with holes, of the hole alone.

    In a hole, each layer's map of distances is resized to the image's pixels and averaged over the hole: what is known
    around it still counts as far as the layer sees. Without holes it is the mean of each map as it is, as published;
    a hole that is the whole image gives nearly the same number, not quite.

    Args:
        folder: what `launch.convert_metric lpips_alex` (lpips_vgg, lpips_squeeze, squeezenet) writes.
        mesh: of this process' devices, over which batches are split.

    Raises:
        ValueError: no such folder, or one of another network: says what to provide, and the command.
    """
    component, made_for = _read(folder, mesh, dtype)
    return Paired(
        NAMES[made_for],
        partial(_distance, component.module),
        higher_is_better=False,
        holes="optional",
        params=component.params,
        weights=weights(resolve(folder)),
        mesh=mesh,
    )


def read_features(
    folder: epath.PathLike, mesh: Mesh | None = None, dtype: Any = jnp.float32
) -> Callable[[Shaped[np.ndarray, "n h w _c"]], Float[np.ndarray, "n d"]]:
    """What a trunk's last layer sees of images, averaged over their pixels: for a Fréchet distance of one's own.

    Such a distance is not FID: say which features it is of. Images are read in their own size.

    Args:
        folder: as of `read_lpips`.

    Returns:
        A function of images of 8 bits (or floats in [-1, 1]) to features: 256 of AlexNet, 512 of the others.

    Raises:
        ValueError: as `read_lpips`.
    """
    component, _ = _read(folder, mesh, dtype)
    trunk = Trunk(component.config["trunk"], dtype)

    def features(images: Shaped[np.ndarray, "..."], *, batch: int = BATCH) -> Float[np.ndarray, "n d"]:
        check_images("features", images)
        parts = 1 if mesh is None else sharding.batch_parts(mesh)
        size = -(-min(batch, len(images)) // parts) * parts

        def call(part: Any) -> Float[Array, "n d"]:
            part = part if mesh is None else jax.device_put(part, sharding.batch(mesh))
            return _features(trunk, component.params, part)

        return np.concatenate(batched(call, images, batch=size))[: len(images)]

    return features


def _read(folder: epath.PathLike, mesh: Mesh | None, dtype: Any) -> tuple[Component, str]:
    try:
        if not os.fspath(folder):
            raise ValueError("no folder was named")
        component = load_component(folder, mesh, dtype)
        made_for = component.config.get("_reward")
        if not isinstance(component.module, LPIPS) or made_for not in NAMES:
            raise ValueError(f"expected a folder of {', '.join(NAMES)}, got one of {made_for or 'something else'}")
    except (ValueError, OSError) as error:
        commands = "\n".join(f"{SOURCES[name].command(name)}\n  FILE: {SOURCES[name].needs()}" for name in NAMES)
        raise ValueError(
            f"cannot read LPIPS from {folder}: {error}\nIt needs a folder of one of:\n{commands}"
        ) from error
    return component, made_for


def _distance(
    module: nn.Module, params: Any, images: Array, references: Array, where: Array | None
) -> Float[Array, "b"]:
    found: Any = module.apply({"params": params}, images, references, where)
    return found


@partial(jax.jit, static_argnums=0)
def _features(trunk: Trunk, params: Any, images: Shaped[Array, "n h w _c"]) -> Float[Array, "n d"]:
    taps: Any = trunk.apply({"params": params["features"]}, in_range(images))
    return taps[-1].astype(jnp.float32).mean((1, 2))
