"""Measures of pairs: an image beside what it should have been, one number for each; on one device or a mesh."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from asyncpatch_jax import checks, sharding
from asyncpatch_jax.sampling.batches import batched

BATCH = 32  # images at a time
_ROUNDING = 1e-3  # that floats in [-1, 1] may lie outside of it

# (parameters, images, references, holes or None) in [-1, 1], float32 -> [b], traced
Compare = Callable[[Any, jax.Array, jax.Array, jax.Array | None], jax.Array]


class Weights(NamedTuple):
    """What a network was read from, for a reader of its numbers."""

    file: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Paired:
    """A measure of pairs of images.

    Args:
        name: as it stands beside its numbers.
        compare: what is computed, compiled once for each shape.
        higher_is_better: which way round to read it.
        holes: "none" if it is of whole images; "optional" if it can be of the hole alone; "needed" if it must be.
        params: of a network, where there is one; a replica lies on each device of `mesh`.
        weights: what the network was read from.
        mesh: of this process' devices, over which a batch is split; None: the first one.
    """

    name: str
    compare: Compare
    higher_is_better: bool
    holes: str = "none"
    params: Any = field(default=None, repr=False)
    weights: Weights | None = None
    mesh: Mesh | None = None

    def __call__(
        self,
        images: Shaped[np.ndarray, "..."],
        references: Shaped[np.ndarray, "..."],
        holes: Shaped[np.ndarray, "..."] | None = None,
        *,
        batch: int = BATCH,
    ) -> Float[np.ndarray, "b"]:
        """Of each pair.

        Args:
            images, references: [b, h, w, 3], or [b, h, w, 1] for grey ones; of 8 bits, or floats in [-1, 1].
            holes: [b, h, w, 1], or [1, h, w, 1] for all: 1 or True where only is compared. What lies elsewhere in the
                two images can still count where a network looks around.
            batch: images at a time.

        Raises:
            ValueError: images that are not pairs, too small, of another range (also floats that look like [0, 1], with
                nothing below 0 in either: their numbers would be wrong, and look right); holes where there may be
                none, empty ones, or of another size.
        """
        checks.whole("batch", batch)
        for array in (images, references):
            check_images(self.name, array)
        if images.shape[:3] != references.shape[:3] or not len(images):
            raise ValueError(
                f"expected as many images as references, of one size, at least one, for {self.name}, "
                f"got {list(images.shape)} and {list(references.shape)}"
            )
        _check_range(self.name, images, references)
        where = _where(self, holes, images.shape)
        parts = 1 if self.mesh is None else sharding.batch_parts(self.mesh)
        size = -(-min(batch, len(images)) // parts) * parts

        def call(arrays: Any) -> Float[Array, "b"]:
            if self.mesh is not None:
                arrays = jax.device_put(arrays, sharding.batch(self.mesh))
            return _apply(self.compare, self.params, *arrays)

        return np.concatenate(batched(call, (images, references, where), batch=size))[: len(images)]


@partial(jax.jit, static_argnums=0)
def _apply(compare: Compare, params: Any, images: Array, references: Array, where: Array | None) -> Float[Array, "b"]:
    return compare(params, in_range(images), in_range(references), where).astype(jnp.float32)


def in_range(images: Shaped[Array, "b h w _c"]) -> Float[Array, "b h w 3"]:
    """Images of 8 bits, or floats as they are, as float32 colours in [-1, 1]."""
    pixels = images.astype(jnp.float32)
    pixels = pixels / 127.5 - 1 if images.dtype == jnp.uint8 else pixels
    return jnp.broadcast_to(pixels, (*pixels.shape[:3], 3))


def weights(folder: epath.PathLike) -> Weights:
    """The safetensors files of a folder, hashed together in the order of their names.

    Raises:
        ValueError: there are none.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"expected safetensors files in {folder}, got none")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    name = str(files[0]) if len(files) == 1 else f"{files[0]} ... {files[-1].name}"
    return Weights(name, digest.hexdigest())


def check_images(name: str, images: Any) -> None:
    """Refuse what no images are.

    Args:
        name: of the metric.

    Raises:
        ValueError: another type, or other axes, than `Paired` takes.
    """
    kind = getattr(images, "dtype", None)
    right = kind is not None and (kind == np.uint8 or jnp.issubdtype(kind, jnp.floating))
    if not right or images.ndim != 4 or images.shape[-1] not in (1, 3):
        got = f"{kind}{list(images.shape)}" if kind is not None else type(images).__name__
        raise ValueError(f"expected images [b, h, w, 3] or grey ones, of 8 bits or floats, for {name}, got {got}")


def _check_range(name: str, *arrays: np.ndarray) -> None:
    floats = [np.asarray(array, np.float32) for array in arrays if array.dtype != np.uint8]
    if not floats:
        return
    low, high = np.min([array.min() for array in floats]), np.max([array.max() for array in floats])  # NaN stays NaN
    if not (low >= -1 - _ROUNDING and high <= 1 + _ROUNDING):
        raise ValueError(f"expected images of 8 bits or floats in [-1, 1] for {name}, got {low:.4g} ... {high:.4g}")
    if low >= 0 and high > 0:
        raise ValueError(
            f"expected images of 8 bits or floats in [-1, 1] for {name}, got {low:.4g} ... {high:.4g}, as of images in "
            "[0, 1]: give 2 x - 1, or 8 bits"
        )


def _where(metric: Paired, holes: np.ndarray | None, shape: tuple[int, ...]) -> Float[np.ndarray, "b h w 1"] | None:
    if holes is None:
        if metric.holes == "needed":
            raise ValueError(f"expected holes for {metric.name}, got none")
        return None
    if metric.holes == "none":
        raise ValueError(f"expected no holes for {metric.name}, which is of whole images, got some")
    b, h, w = shape[:3]
    if tuple(holes.shape) not in ((b, h, w, 1), (1, h, w, 1)):
        raise ValueError(f"expected holes {[b, h, w, 1]} or {[1, h, w, 1]}, got {list(holes.shape)}")
    where = np.asarray(holes, np.float32)
    if not np.isin(where, (0, 1)).all():
        raise ValueError(f"expected holes of 0 and 1 for {metric.name}, got {checks.shown(where.reshape(-1))}")
    if not where.any((1, 2, 3)).all():
        raise ValueError(f"expected a hole in each image for {metric.name}, got none in some")
    return np.broadcast_to(where, (b, h, w, 1))
