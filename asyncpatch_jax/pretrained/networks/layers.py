"""What the pretrained networks share: norms, embeddings of timesteps, activations, all as PyTorch's and diffusers'.

Submodules have the names of the PyTorch modules (`name="down_blocks.0"`), so that a parameter's path is its name in a
checkpoint (see `names`). Norms, softmax and times are computed in float32, or wider if the compute type is.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

# exact, as PyTorch's "gelu"; "gelu_new" and "gelu_pytorch_tanh" are one function
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "relu": nn.relu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}

# so many equal layers or more are one loop over stacked parameters, which a compiler sees once
SCAN_FROM = 4


def wide(dtype: Any) -> Any:
    """The type that a reduction over values of `dtype` is computed in: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def _normalised(x: Float[Array, "..."], eps: float, axes: tuple[int, ...]) -> Float[Array, "..."]:
    # two passes: the mean of squares less the square of the mean loses all digits where a mean is large
    x = x - x.mean(axes, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(axes, keepdims=True) + eps)


def _broadcast(param: Float[Array, "d"], ndim: int) -> Float[Array, "..."]:
    return param.reshape((1,) * (ndim - 1) + (-1,))


class LayerNorm(nn.Module):
    """Layer norm over the last axis (Ba et al. 2016)."""

    eps: float
    affine: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        h = _normalised(x.astype(wide(self.dtype)), self.eps, (-1,))
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
            h = h * _broadcast(scale, x.ndim) + _broadcast(bias, x.ndim)
        return h.astype(self.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019)."""

    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        h = x.astype(wide(self.dtype))
        h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + self.eps)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return (h * _broadcast(scale, x.ndim)).astype(self.dtype)


class GroupNorm(nn.Module):
    """Group norm over pixels and the channels of a group (Wu & He 2018).

    Raises:
        ValueError: the groups do not divide the channels.
    """

    groups: int
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        b, h, w, d = x.shape
        if d % self.groups:
            raise ValueError(f"expected channels that {self.groups} groups divide, got {d}")
        grouped = x.astype(wide(self.dtype)).reshape(b, h, w, self.groups, d // self.groups)
        out = _normalised(grouped, self.eps, (1, 2, 4)).reshape(x.shape)
        scale = self.param("scale", nn.initializers.ones, (d,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (d,), jnp.float32)
        return (out * _broadcast(scale, 4) + _broadcast(bias, 4)).astype(self.dtype)


def sinusoid(
    t: Float[Array, "..."], width: int, *, flip_sin_to_cos: bool = True, shift: float = 0.0, dtype: Any = jnp.float32
) -> Float[Array, "... {width}"]:
    """Sines and cosines of timesteps (Ho et al. 2020) in at least float32; cosines first if flipped.

    Args:
        t: in the network's units, say 0 ... 999.
        shift: 0 or 1; the slowest frequency is 10000^-1 at 1 (diffusers' `downscale_freq_shift`).
        dtype: the network's compute type; a wider one than float32 widens the result.
    """
    kind = wide(dtype)
    half = width // 2
    exponent = jnp.arange(half, dtype=kind) / (half - shift)
    freqs = jnp.exp(-jnp.log(jnp.asarray(10_000.0, kind)) * exponent)
    angles = t.astype(kind)[..., None] * _broadcast(freqs, t.ndim + 1)
    parts = [jnp.cos(angles), jnp.sin(angles)] if flip_sin_to_cos else [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts, axis=-1)


class TimestepEmbedding(nn.Module):
    """Linear, SiLU, linear: diffusers' `TimestepEmbedding` and `PixArtAlphaTextProjection`."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n {self.width}"]:
        x = nn.Dense(self.width, dtype=self.dtype, name="linear_1")(x.astype(self.dtype))
        return nn.Dense(self.width, dtype=self.dtype, name="linear_2")(nn.silu(x))


def text_tokens(
    ids: Int[Array, "b l"], vocab: int, positions: int, width: int, names: tuple[str, str], dtype: Any
) -> Float[Array, "b l {width}"]:
    """Embedded ids and, added to them, places; a layer of the module in whose `__call__` this is called.

    Args:
        names: of both tables.

    Raises:
        ValueError: more tokens than places.
    """
    if ids.shape[1] > positions:
        raise ValueError(f"expected at most {positions} tokens, got {ids.shape[1]}")
    words, places = (
        nn.Embed(n, width, dtype=dtype, name=f"embeddings.{name}")
        for n, name in zip((vocab, positions), names, strict=True)
    )
    return words(ids) + places(jnp.arange(ids.shape[1])[None])


def image_tokens(
    pixels: Float[Array, "b h w 3"], size: int, embed: nn.Module, first: Float[Array, "*one d"], dtype: Any
) -> Float[Array, "b n d"]:
    """The class token and, after it, an image's patches row by row, without positions.

    Args:
        size: height and width that the network takes.
        embed: pixels to patches.
        first: the class token.

    Raises:
        ValueError: an image of another size.
    """
    if pixels.shape[1:3] != (size, size):
        raise ValueError(f"expected images of {size} x {size} pixels, got {pixels.shape[1:3]}")
    x = embed(pixels.astype(dtype))
    b, width = x.shape[0], x.shape[-1]
    return jnp.concatenate([jnp.broadcast_to(first.astype(dtype), (b, 1, width)), x.reshape(b, -1, width)], axis=1)


def stacked(
    layer: type[nn.Module], settings: Mapping[str, Any], count: int, name: str, carry: Any, *shared: Any, start: int = 0
) -> Any:
    """Apply equal layers one after another; the one place that says which stacks are loops.

    Fewer than SCAN_FROM layers are submodules `name.0`, `name.1`, ...; more are one, `name.0:count`, with parameters
    stacked on a leading axis.

    Args:
        layer: a module `(carry, *shared) -> (carry, None)`.
        settings: its attributes.
        count: of layers.
        name: of the list of layers in PyTorch, such as "transformer_blocks".
        carry: what the first layer gets; the last one's is returned.
        shared: what all layers get.
        start: number of the first layer in its name.
    """
    if count < SCAN_FROM:
        for i in range(start, start + count):
            carry, _ = layer(**settings, name=f"{name}.{i}")(carry, *shared)
        return carry
    loop = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=count)
    carry, _ = loop(**settings, name=f"{name}.{start}:{start + count}")(carry, *shared)
    return carry
