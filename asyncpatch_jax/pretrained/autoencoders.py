"""Autoencoders of either kind behind one interface: from images to what a network learns in, and back.

A folder is one of diffusers' `AutoencoderKL` (the `vae/` of a pipeline, or the pipeline's own folder), of our own
`LocalisedAutoencoder`, or of any other kind that `READERS` has a line for.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from asyncpatch_jax import schema, sharding, timefield
from asyncpatch_jax.models import autoencoder as localised
from asyncpatch_jax.pretrained.folders import digests, loading
from asyncpatch_jax.types import Image

Mask = Float[Array, "b _h _w 1"] | Float[np.ndarray, "b _h _w 1"]
Coded = Float[Array, "b _h2 _w2 _c2"]
# pixels that a device codes at once: a decoder holds some thousand bytes for each
_AT_ONCE = 2**20


class Reader(NamedTuple):
    """How a kind of folder is read, and how its module codes: `encode(module, params, images, mask)`, raw latents."""

    read: Callable[[Path, Mesh | None], tuple[nn.Module, Any]]
    encode: Callable[[nn.Module, Any, Image, Mask | None], Coded]
    decode: Callable[[nn.Module, Any, Image, Mask | None], Coded]


def _read_kl(folder: Path, mesh: Mesh | None) -> tuple[nn.Module, Any]:
    component = loading.load_component(folder, mesh, jnp.float32)
    return component.module, component.params


def _encode_kl(module: nn.Module, params: Any, images: Image, mask: Mask | None) -> Coded:
    """The mean of the posterior. It knows no masks: what is not known is grey."""
    images = images if mask is None else jnp.where(mask > 0.5, 0.0, images)
    moments: Any = module.apply({"params": params}, images, method="encode")
    return moments[0]


def _decode_kl(module: nn.Module, params: Any, latents: Image, mask: Mask | None) -> Coded:
    images: Any = module.apply({"params": params}, latents, method="decode")
    return images


def _masked(way: str, module: nn.Module, params: Any, x: Image, mask: Mask | None) -> Coded:
    """A method of a module that knows masks. Latents are continuous; they are quantised when they are decoded."""
    coded: Any = module.apply({"params": params}, x, mask, method=way)
    return coded


# by the _class_name in a config.json
READERS: dict[str, Reader] = {
    "AutoencoderKL": Reader(_read_kl, _encode_kl, _decode_kl),
    localised.CLASS: Reader(localised.load, partial(_masked, "encode"), partial(_masked, "decode")),
}


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """Images in [-1, 1] to latents, and back; what a network is shown is (latents - shift) * scale.

    Attributes:
        kind: out of `READERS`.
        module, params: as its reader gives them.
        digest: a hash of weights and settings, wherever the folder lies and however its files are cut.
        mesh: the devices that a batch is spread over.
        shift, scale: of each channel; 0 and 1 unless somebody measured (`standardised`).
    """

    kind: str
    module: Any
    params: Any
    digest: str
    mesh: Mesh | None
    shift: Float[np.ndarray, "z"]
    scale: Float[np.ndarray, "z"]

    @property
    def factor(self) -> int:
        """Pixels to a side of a cell of latents."""
        return self.module.factor

    @property
    def channels(self) -> int:
        """Of images."""
        return self.module.channels

    @property
    def latent_channels(self) -> int:
        """Of latents."""
        return self.module.latent_channels

    def standardised(self, shift: Shaped[np.ndarray, "z"], scale: Shaped[np.ndarray, "z"]) -> "Autoencoder":
        """The same with another shift and scale.

        Raises:
            ValueError: not one number for each channel of latents.
        """
        shift, scale = (np.asarray(values, np.float32) for values in (shift, scale))
        for name, values in (("shift", shift), ("scale", scale)):
            if values.shape != (self.latent_channels,) or not np.isfinite(values).all():
                raise ValueError(f"expected a {name} for each of {self.latent_channels} channels, got {values}")
        return replace(self, shift=shift, scale=scale)

    def encode(
        self, images: Image | Float[np.ndarray, "b h w c"], mask: Mask | None = None, *, whole: bool = True
    ) -> Coded:
        """Latents, float32. Compiled once for each shape.

        Args:
            images: in [-1, 1].
            mask: 1 where a pixel is not known; nothing of it is seen.
            whole: every device (of every process) gets all of them; otherwise they are spread as a batch is.

        Raises:
            ValueError: images whose sides are no multiples of `factor`, or of other channels.
        """
        h, w, c = images.shape[1:]
        if c != self.channels or h % self.factor or w % self.factor:
            sizes = f"[b, h, w, {self.channels}] with h and w multiples of {self.factor}"
            raise ValueError(f"expected images {sizes}, got {images.shape}")
        return _coded("encode", self.kind, self.module, self.mesh, whole, self._arrays, images, mask)

    def decode(self, latents: Image | Float[np.ndarray, "b h w z"], mask: Mask | None = None) -> Coded:
        """Images in about [-1, 1], float32, whole on every device. Compiled once for each shape.

        Args:
            latents: as `encode` makes them.
            mask: the one that known cells were encoded with, for a decoder that is told masks.

        Raises:
            ValueError: latents of other channels.
        """
        if latents.shape[-1] != self.latent_channels:
            raise ValueError(f"expected latents of {self.latent_channels} channels, got {latents.shape}")
        return _coded("decode", self.kind, self.module, self.mesh, True, self._arrays, latents, mask)

    @property
    def _arrays(self) -> tuple[Any, ...]:
        return self.params, self.shift, self.scale


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _coded(
    way: str, kind: str, module: nn.Module, mesh: Mesh | None, whole: bool, arrays: Any, x: Image, mask: Mask | None
) -> Coded:
    params, *given = arrays
    shift, scale = (values.reshape(1, 1, 1, -1) for values in given)
    reader = READERS[kind]

    def one_part(part: tuple[Image, Mask | None]) -> Coded:
        x, mask = jax.tree.map(lambda leaf: sharding.constrain(leaf, "batch", None, None, None), part)
        if way == "encode":
            return ((reader.encode(module, params, x, mask) - shift) * scale).astype(jnp.float32)
        return reader.decode(module, params, x / scale + shift, mask).astype(jnp.float32)

    side: Any = module.factor if way == "decode" else 1
    with sharding.using(mesh):
        together = _together(x.shape[0], x.shape[1] * x.shape[2] * side**2, mesh)
        if together == x.shape[0]:
            out = one_part((x, mask))
        else:
            # every so-many-th image, so that a batch that is spread over devices stays where it is
            split = lambda leaf: jnp.moveaxis(leaf.reshape(together, -1, *leaf.shape[1:]), 1, 0)  # noqa: E731
            parts = jax.lax.map(one_part, jax.tree.map(split, (x, mask)))
            out = jnp.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[2:])
        return sharding.constrain(out, None if whole else "batch", None, None, None)


def _together(batch: int, pixels: int, mesh: Mesh | None) -> int:
    """How many images are coded at once: on each device as many as it has memory for, at least one."""
    parts = 1 if mesh is None else sharding.batch_parts(mesh)
    parts = parts if batch % parts == 0 else 1
    own = batch // parts
    return parts * max(n for n in range(1, own + 1) if own % n == 0 and (n == 1 or n * pixels <= _AT_ONCE))


def unknown_cells(mask: Mask, factor: int) -> Float[Array, "b _h2 _w2 1"]:
    """A mask of pixels on latents: a cell with anything unknown is unknown.

    Raises:
        ValueError: no mask [b, h, w, 1], or one whose sides are no multiples of the factor.
    """
    h, w = mask.shape[1:3]
    if h % factor or w % factor:
        raise ValueError(f"expected a mask whose sides are multiples of {factor}, got {mask.shape}")
    return timefield.unknown(jnp.asarray(mask, jnp.float32), (h // factor, w // factor))


def read_autoencoder(folder: str | os.PathLike, mesh: Mesh | None = None) -> Autoencoder:
    """An autoencoder's folder: with a config.json and safetensors files, or a pipeline's with such a `vae/` in it.

    It computes in float32. Nothing is downloaded.

    Args:
        mesh: the devices that hold the parameters and that batches are spread over; None: the first one.

    Raises:
        ValueError: no such folder, another network, or files that are damaged or do not fit; names it.
    """
    folder = _inside(folder)
    kind = schema.read_json(folder / "config.json").get("_class_name")
    if kind not in READERS:
        raise ValueError(f"expected an autoencoder in {folder}, a config.json of {' or '.join(READERS)}, got {kind!r}")
    module, params = READERS[kind].read(folder, mesh)
    channels = module.latent_channels
    plain = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    return Autoencoder(kind, module, params, digest(folder), mesh, *plain)


def _inside(folder: str | os.PathLike) -> Path:
    folder = loading.resolve(folder)
    return folder / "vae" if (folder / "model_index.json").is_file() else folder


def digest(folder: str | os.PathLike) -> str:
    """`digests.digest` of an autoencoder's folder, or of the one in a pipeline's.

    Raises:
        ValueError: as `read_autoencoder`.
    """
    return digests.digest(_inside(folder))
