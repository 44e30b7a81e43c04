"""The discriminator of patches (Isola et al. 2017, arXiv 1611.07004) that an autoencoder learns details from."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from asyncpatch_jax.models.convolution import Conv
from asyncpatch_jax.types import Image


class PatchDiscriminator(nn.Module):
    """Images to logits of patches [b, _h, _w, 1]: how real each part looks.

    `layers` convolutions of 4 x 4 that halve the resolution, then two that do not; all but the first and the last are
    normalised over the batch. It is only ever asked about whole batches in training, so that there are no running
    statistics to keep. 3 layers see patches of 70 pixels, 2 of 34, 1 of 16.

    Raises:
        ValueError: images so small that no patch is left.
    """

    width: int = 64
    layers: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Image) -> Float[Array, "b _h _w 1"]:
        least = 3 * 2**self.layers
        if min(images.shape[1:3]) < least:
            got = f"{images.shape[1]} x {images.shape[2]}"
            raise ValueError(f"expected images of {least} pixels a side or more for {self.layers} layers, got {got}")
        init = nn.initializers.normal(0.02)
        shared: Any = {"padding": 1, "kernel_init": init, "dtype": self.dtype}

        def convolved(x: Array, width: int, stride: int, name: str, plain: bool = False) -> Array:
            x = Conv(width, (4, 4), (stride, stride), use_bias=plain, name=name, **shared)(x)
            if not plain:
                x = BatchNorm(self.dtype, name=f"norm_{name}")(x)
            return nn.leaky_relu(x, 0.2)

        x = convolved(images.astype(self.dtype), self.width, 2, "in", plain=True)
        for i in range(1, self.layers):
            x = convolved(x, self.width * min(2**i, 8), 2, f"down_{i}")
        x = convolved(x, self.width * min(2**self.layers, 8), 1, "wide")
        return Conv(1, (4, 4), name="out", **shared)(x).astype(jnp.float32)


class BatchNorm(nn.Module):
    """Each channel over its mean and deviation in the batch (Ioffe & Szegedy 2015), in float32; scale and bias."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        # scales begin near 1, as in the authors' code
        scale = self.param("scale", lambda key, shape: 1 + nn.initializers.normal(0.02)(key, shape), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        h = x.astype(jnp.float32)
        h = h - h.mean((0, 1, 2), keepdims=True)
        h = h / jnp.sqrt((h * h).mean((0, 1, 2), keepdims=True) + 1e-5)
        return (h * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)).astype(self.dtype)
