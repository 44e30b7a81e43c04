"""Images to the latents of a pretrained folder, and back: its autoencoder on the host's arrays, part by part."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from asyncpatch_jax import sharding
from asyncpatch_jax.pretrained.folders.loading import Pretrained
from asyncpatch_jax.pretrained.networks import autoencoder
from asyncpatch_jax.types import Image


def encode_images(
    pretrained: Pretrained, images: Float[np.ndarray, "b h w c"], mesh: Mesh | None = None
) -> Float[np.ndarray, "b h2 w2 c2"]:
    """Latents of images in [-1, 1], on the host; the images themselves without an autoencoder."""
    return _through(pretrained, "encode", images, mesh)


def decode_latents(
    pretrained: Pretrained, latents: Float[np.ndarray, "b h w c"], mesh: Mesh | None = None
) -> Float[np.ndarray, "b h2 w2 c2"]:
    """Images of latents, in about [-1, 1], on the host; the latents themselves without an autoencoder."""
    return _through(pretrained, "decode", latents, mesh)


def _through(
    pretrained: Pretrained, way: str, x: Float[np.ndarray, "b h w c"], mesh: Mesh | None
) -> Float[np.ndarray, "b h2 w2 c2"]:
    vae = pretrained.components.get("vae")
    if vae is None:
        return np.asarray(x, np.float32)
    return np.asarray(autoencoded(vae.module, way, mesh, vae.params, np.asarray(x, np.float32)))


@partial(jax.jit, static_argnums=(0, 1, 2))
def autoencoded(
    module: autoencoder.AutoencoderKL, way: str, mesh: Mesh | None, params: Any, x: Image
) -> Float[Array, "b h2 w2 c2"]:
    """`autoencoder.encode` or `decode`, by the name of the way; one image after another on each device of a mesh.

    SDXL's decoder takes 3 GiB for each image of a megapixel, so that four at once would not fit where the sampler does.
    """
    function = autoencoder.encode if way == "encode" else autoencoder.decode
    count = 1 if mesh is None else sharding.batch_parts(mesh)
    count = count if x.shape[0] % count == 0 else 1

    def some(part: Image) -> Float[Array, "_n h2 w2 c2"]:
        out = function(module, params, sharding.constrain(part, "batch", None, None, None))
        return out.astype(jnp.float32)

    with sharding.using(mesh):
        # every so-many-th image, so that a batch that is spread over devices stays where it is
        parts = jnp.moveaxis(x.reshape(count, -1, *x.shape[1:]), 1, 0)
        out = jnp.moveaxis(jax.lax.map(some, parts), 0, 1)
        # whole on every device, of every process
        return sharding.constrain(out.reshape(-1, *out.shape[2:]), None, None, None, None)
