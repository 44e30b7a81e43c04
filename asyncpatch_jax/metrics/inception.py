"""Features of FID and KID: the `pool3` of TensorFlow's Inception of 2015, under any of the three rules that are in use.

Heusel et al. 2017 (arXiv 1706.08500), Binkowski et al. 2018 (arXiv 1801.01401). Which rule resizes images moves FID by
more than many a method does (Parmar et al. 2022, arXiv 2104.11222), so it stands beside every number.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped, UInt8

from asyncpatch_jax import checks, sharding
from asyncpatch_jax.metrics.features import INCEPTION, Features
from asyncpatch_jax.metrics.paired import weights
from asyncpatch_jax.metrics.pixels import bicubic
from asyncpatch_jax.metrics.sources import SOURCES
from asyncpatch_jax.pretrained.folders.loading import load_component, resolve
from asyncpatch_jax.pretrained.networks.inception import InceptionV3
from asyncpatch_jax.sampling.batches import batched

SIZE = 299  # pixels of a side
BATCH = 32  # images at a time


class Resize(NamedTuple):
    """How images of 8 bits become the network's input.

    says: the rule, for people.
    line: (pixels before, pixels after) -> the matrix that resizes a line of them.
    centre: of 0 ... 255, what becomes 0; 0 becomes -1.
    """

    says: str
    line: Callable[[int, int], np.ndarray]
    centre: float


@lru_cache(maxsize=32)
def linear(before: int, after: int, offset: float) -> Float[np.ndarray, "{after} {before}"]:
    """The matrix that resizes a line of pixels linearly between its two neighbours; nothing is antialiased.

    Args:
        offset: of a pixel's centre from its number: 1/2 as PyTorch has it (align_corners=False), 0 as TensorFlow 1.
    """
    place = np.clip((np.arange(after)[:, None] + offset) * before / after - offset, 0, before - 1)
    return np.maximum(1 - np.abs(place - np.arange(before)[None, :]), 0).astype(np.float32)


# names are clean-fid's
RESIZES: dict[str, Resize] = {
    "clean": Resize(
        "clean (clean-fid's rule): Pillow's bicubic, antialiased, of each channel in float32; clipped, not rounded",
        bicubic,
        128.0,
    ),
    "legacy_pytorch": Resize(
        "legacy pytorch-fid: PyTorch's bilinear of floats, not antialiased, not rounded",
        partial(linear, offset=0.5),
        127.5,
    ),
    "legacy_tensorflow": Resize(
        "legacy TensorFlow (Heusel's and ADM's code, torch-fidelity): TensorFlow 1's bilinear of floats, "
        "not antialiased, not rounded",
        partial(linear, offset=0.0),
        128.0,
    ),
}


def pixels(images: UInt8[Array, "b h w 3"], rule: str, size: int = SIZE) -> Float[Array, "b {size} {size} 3"]:
    """Images as the network reads them, -1 ... 1, by one of `RESIZES`."""
    resize = RESIZES[rule]
    x = images.astype(jnp.float32)
    x = jnp.einsum("bhwc,ow->bhoc", x, resize.line(x.shape[2], size), precision="highest")
    x = jnp.einsum("bhwc,oh->bowc", x, resize.line(x.shape[1], size), precision="highest")
    return (jnp.clip(x, 0, 255) - resize.centre) / resize.centre


def read_inception(
    folder: epath.PathLike,
    resize: str = "clean",
    *,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
    batch: int = BATCH,
) -> Features:
    """The features of a folder that `launch.convert_metric inception` has written.

    Grey images are grey colours.

    Args:
        resize: one of `RESIZES`.
        mesh: of this process' devices (`sharding.make_mesh(devices=jax.local_devices())`), over which batches are
            split; None: the first device.
        dtype: of the computation; published statistics are of float32.
        batch: images at a time, rounded up to what the mesh divides. Fewer images are filled up, so that the network is
            compiled once.

    Raises:
        ValueError: an unknown rule; no such folder, or one of another network: says what to provide, and the command.
    """
    if resize not in RESIZES:
        raise ValueError(f"expected a resize rule out of {', '.join(RESIZES)}, got {resize!r}")
    checks.whole("batch", batch)
    try:
        path = resolve(folder)
        component = load_component(path, mesh, dtype)
        if not isinstance(component.module, InceptionV3):
            raise ValueError(f"expected a FIDInceptionV3 in {path}, got {type(component.module).__name__}")
        digest = weights(path).sha256
    except (ValueError, OSError) as error:
        source = SOURCES["inception"]
        raise ValueError(
            f"cannot read the Inception of FID from {folder}: {error}\nIt needs a folder that this command makes: "
            f"{source.command('inception')}\nFILE: {source.needs()}"
        ) from error
    module, params = component.module, component.params
    parts = 1 if mesh is None else sharding.batch_parts(mesh)

    def call(images: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "n d"]:
        _check(images)
        if not len(images):
            return np.zeros((0, module.width), np.float32)
        images = np.broadcast_to(images, (*images.shape[:3], 3))
        results = batched(partial(_features, module, resize, mesh, params), images, batch=-(-batch // parts) * parts)
        return np.concatenate(results)[: len(images)].astype(np.float32)

    return Features(INCEPTION, RESIZES[resize].says, digest, call, module.width)


def _check(images: Any) -> None:
    kind, shape = getattr(images, "dtype", None), list(getattr(images, "shape", []))
    if kind != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3):
        raise ValueError(f"expected images of 8 bits [n, h, w, 3] or grey ones, got {kind} {shape}")


def _features(
    module: InceptionV3, rule: str, mesh: Mesh | None, params: Any, images: UInt8[np.ndarray, "b h w 3"]
) -> Float[Array, "b d"]:
    placed = images if mesh is None else jax.device_put(images, sharding.batch(mesh))
    # two programs, so that images of another size compile the resizing anew, and not the network
    return _apply(module, params, _pixels(placed, rule))


_pixels = jax.jit(pixels, static_argnums=1)


@partial(jax.jit, static_argnums=0)
def _apply(module: InceptionV3, params: Any, x: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
    features: Any = module.apply({"params": params}, x)
    return features
