"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), of 4 or 16 channels.

Parameters and numbers are those of diffusers' `AutoencoderKL`. `encode` and `decode` are what samplers need.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Key
from msgspec import Meta

from asyncpatch_jax import keys as random_keys
from asyncpatch_jax.models.attention import Heads, attend
from asyncpatch_jax.models.convolution import Conv
from asyncpatch_jax.pretrained.networks.configuration import Channels, Count, Few, Widths, expect_divides, read
from asyncpatch_jax.pretrained.networks.layers import GroupNorm, wide
from asyncpatch_jax.pretrained.networks.resnet2d import Changed, Downsample, Features, ResnetBlock, Upsample, conv
from asyncpatch_jax.pretrained.networks.tiling import tiled
from asyncpatch_jax.schema import Settings
from asyncpatch_jax.types import Image

# of all its norms, in no config.json
EPS = 1e-6
# latents of more rows or columns than a megapixel's are coded in tiles of that size
TILE, OVERLAP = 128, 32
# so many logits of one image at most are computed at once: a megapixel's 16,384 cells squared would be a gigabyte
_MAX_LOGITS = 2**24


class MidAttention(nn.Module):
    """Self-attention over all cells, of one head, added to its input."""

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Features) -> Features:
        b, h, w, d = x.shape
        flat = GroupNorm(self.groups, EPS, self.dtype, name="group_norm")(x).reshape(b, h * w, d)
        q, k, v = (nn.Dense(d, dtype=self.dtype, name=name)(flat)[:, :, None, :] for name in ("to_q", "to_k", "to_v"))
        out = nn.Dense(d, dtype=self.dtype, name="to_out.0")(_attend(q, k, v, h)[:, :, 0])
        return x + out.reshape(x.shape)


def _attend(q: Heads, k: Heads, v: Heads, rows: int) -> Heads:
    """`attend`, over a part of the queries at a time if there are many; parts are whole rows of pixels."""
    b, n, _, d = q.shape
    parts = next(parts for parts in range(1, rows + 1) if rows % parts == 0 and n * n <= parts * _MAX_LOGITS)
    if parts == 1:
        return attend(q, k, v)
    queries = jnp.moveaxis(q.reshape(b, parts, n // parts, 1, d), 1, 0)
    return jnp.moveaxis(jax.lax.map(lambda part: attend(part, k, v), queries), 0, 1).reshape(q.shape)


class Coder(nn.Module):
    """Encoder or decoder: residual blocks on levels of halved (or doubled) resolution.

    Attributes:
        widths: of the levels, in the order in which they are passed.
        layers: residual blocks of a level.
        up: a decoder: the middle comes first, and levels grow.
        attend: attention in the middle.
    """

    out_channels: int
    widths: tuple[int, ...]
    layers: int
    groups: int
    up: bool
    attend: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Changed:
        def resnet(x: Features, width: int, name: str) -> Changed:
            return ResnetBlock(width, self.groups, EPS, self.dtype, name=name)(x)

        def middle(x: Features) -> Features:
            x = resnet(x, x.shape[-1], "mid_block.resnets.0")
            if self.attend:
                x = MidAttention(self.groups, self.dtype, name="mid_block.attentions.0")(x)
            return resnet(x, x.shape[-1], "mid_block.resnets.1")

        x = conv(self.widths[0], self.dtype, "conv_in")(x.astype(self.dtype))
        x = middle(x) if self.up else x
        for i, width in enumerate(self.widths):
            block = f"{'up' if self.up else 'down'}_blocks.{i}"
            for j in range(self.layers):
                x = resnet(x, width, f"{block}.resnets.{j}")
            if i < len(self.widths) - 1 and self.up:
                x = Upsample(self.dtype, name=f"{block}.upsamplers.0")(x)
            elif i < len(self.widths) - 1:
                x = Downsample(0, self.dtype, name=f"{block}.downsamplers.0")(x)
        x = x if self.up else middle(x)
        x = nn.silu(GroupNorm(self.groups, EPS, self.dtype, name="conv_norm_out")(x))
        return conv(self.out_channels, self.dtype, "conv_out")(x)


class AutoencoderKL(nn.Module):
    """Images in [-1, 1] to latents and back.

    Attributes:
        channels: of images.
        latent_channels: of latents.
        widths: of the levels from full resolution on.
        layers: residual blocks of an encoder's level; a decoder's has one more.
        groups: of group norms.
        quant, post_quant: 1x1 convolutions behind the encoder and before the decoder.
        attend: attention in the middle of both.
        scale, shift: what a denoiser works on is (latents - shift) * scale.
        dtype: compute type; reductions are float32 or wider.
    """

    channels: int
    latent_channels: int
    widths: tuple[int, ...]
    layers: int
    groups: int
    quant: bool
    post_quant: bool
    attend: bool
    scale: float
    shift: float
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        """Pixels to a side of a latent; height and width of images must be multiples of it."""
        return 2 ** (len(self.widths) - 1)

    def setup(self) -> None:
        shared = {"groups": self.groups, "attend": self.attend, "dtype": self.dtype}
        self.encoder = Coder(2 * self.latent_channels, self.widths, self.layers, up=False, **shared)
        self.decoder = Coder(self.channels, self.widths[::-1], self.layers + 1, up=True, **shared)
        if self.quant:
            self.quant_conv = Conv(2 * self.latent_channels, (1, 1), dtype=self.dtype)
        if self.post_quant:
            self.post_quant_conv = Conv(self.latent_channels, (1, 1), dtype=self.dtype)

    def encode(self, images: Image) -> tuple[Changed, Changed]:
        """Mean and log-variance of latents [b, h / factor, w / factor, latent_channels], unscaled, in float32.

        Raises:
            ValueError: other channels, or a height or width that is no multiple of `factor`.
        """
        _, h, w, c = images.shape
        if c != self.channels or h % self.factor or w % self.factor:
            sizes = f"[b, h, w, {self.channels}] with h and w multiples of {self.factor}"
            raise ValueError(f"expected images {sizes}, got {images.shape}")
        moments = self.encoder(images)
        moments = self.quant_conv(moments) if self.quant else moments
        mean, logvar = jnp.split(moments.astype(wide(self.dtype)), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Image) -> Changed:
        """Images [b, h * factor, w * factor, channels] in about [-1, 1], float32, of unscaled latents.

        Raises:
            ValueError: other channels.
        """
        if latents.shape[-1] != self.latent_channels:
            raise ValueError(f"expected latents of {self.latent_channels} channels, got {latents.shape[-1]}")
        latents = latents.astype(self.dtype)
        latents = self.post_quant_conv(latents) if self.post_quant else latents
        return self.decoder(latents).astype(wide(self.dtype))

    def __call__(self, images: Image) -> Image:
        """Images of the mean of their latents."""
        return self.decode(self.encode(images)[0])


def _moments(vae: AutoencoderKL, params: Any, images: Image) -> Changed:
    moments: Any = vae.apply({"params": params}, images, method="encode")
    return jnp.concatenate(moments, axis=-1)


def _latents(vae: AutoencoderKL, moments: Changed, key: Key[Array, "..."] | None) -> Changed:
    mean, logvar = jnp.split(moments, 2, axis=-1)
    if key is not None:
        noise = random_keys.normal(random_keys.per_image(key, mean.shape[0]), mean.shape[1:])
        mean = mean + jnp.exp(0.5 * logvar) * noise
    return (mean - vae.shift) * vae.scale


def _images(vae: AutoencoderKL, params: Any, latents: Image) -> Changed:
    images: Any = vae.apply({"params": params}, latents / vae.scale + vae.shift, method="decode")
    return images


@partial(jax.jit, static_argnames="vae")
def encode(vae: AutoencoderKL, params: Any, images: Image, key: Key[Array, "..."] | None = None) -> Changed:
    """Latents as a denoiser knows them, [b, h / factor, w / factor, latent_channels] in float32, of images in [-1, 1].

    Images of more than TILE latents a side go through `tiled_encode`.

    Args:
        key: draw the latents, each image's by its own key; None: take their mode.

    Raises:
        ValueError: images that do not fit, see `AutoencoderKL.encode`.
    """
    if max(images.shape[1:3]) > TILE * vae.factor:
        return tiled_encode(vae, params, images, key)
    return _latents(vae, _moments(vae, params, images), key)


@partial(jax.jit, static_argnames="vae")
def decode(vae: AutoencoderKL, params: Any, latents: Image) -> Changed:
    """Images in about [-1, 1], float32, of latents as a denoiser knows them.

    Latents of more than TILE rows or columns go through `tiled_decode`.

    Raises:
        ValueError: latents of another number of channels.
    """
    if max(latents.shape[1:3]) > TILE:
        return tiled_decode(vae, params, latents)
    return _images(vae, params, latents)


@partial(jax.jit, static_argnames=("vae", "tile", "overlap"))
def tiled_encode(
    vae: AutoencoderKL,
    params: Any,
    images: Image,
    key: Key[Array, "..."] | None = None,
    *,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Changed:
    """`encode`, one tile after another; see `tiled_decode`. Mean and log-variance are blended, not drawn latents.

    Raises:
        ValueError: as `encode`, or an overlap of more than half a tile.
    """
    function = partial(_moments, vae, params)
    return _latents(vae, tiled(function, images, tile, overlap, size_in=vae.factor, size_out=1), key)


@partial(jax.jit, static_argnames=("vae", "tile", "overlap"))
def tiled_decode(
    vae: AutoencoderKL, params: Any, latents: Image, *, tile: int = TILE, overlap: int = OVERLAP
) -> Changed:
    """`decode`, one tile after another: the memory of one tile, whatever the size of the image.

    Not quite the images of the whole: group norms and the attention in the middle see one tile of it, so that tiles may
    differ a little in colour and contrast, which the blending smooths. What convolutions alone compute differs near
    seams only.

    Args:
        tile: side of a tile in latents.
        overlap: in latents, over which neighbours are blended; at least this much, for tiles are spread evenly.

    Raises:
        ValueError: as `decode`, or an overlap of more than half a tile.
    """
    return tiled(partial(_images, vae, params), latents, tile, overlap, size_in=1, size_out=vae.factor)


class Config(Settings, frozen=True):
    """A `vae/config.json`. Defaults are diffusers'."""

    block_out_channels: Widths
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...]
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...]
    in_channels: Channels = 3
    out_channels: Channels = 3
    latent_channels: Channels = 4
    layers_per_block: Few = 1
    norm_num_groups: Count = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    scaling_factor: Annotated[float, Meta(gt=0, le=1e6)] = 0.18215
    shift_factor: Annotated[float, Meta(ge=-1e6, le=1e6)] | None = None
    force_upcast: bool = False

    fixed: ClassVar[Mapping[str, Any]] = {"act_fn": "silu", "latents_mean": None, "latents_std": None}
    ignored: ClassVar[frozenset[str]] = frozenset({"sample_size"})


def from_config(config: Mapping[str, Any], dtype: Any = jnp.float32) -> AutoencoderKL:
    """The network of a `vae/config.json`.

    With its `force_upcast`, it computes in float32 even if `dtype` is bfloat16.

    Raises:
        ValueError: a setting that is missing or not implemented.
    """
    given = read(config, Config, "AutoencoderKL")
    levels, channels = len(given.block_out_channels), given.in_channels
    for name in ("down_block_types", "up_block_types"):
        if (got := len(getattr(given, name))) != levels:
            raise ValueError(f"expected {name} of {levels} levels, as block_out_channels has, got {got}")
    if given.out_channels != channels:
        raise ValueError(f"expected out_channels = in_channels = {channels}, got {given.out_channels}")
    expect_divides("block_out_channels", given.block_out_channels, given.norm_num_groups, "groups")
    return AutoencoderKL(
        channels=channels,
        latent_channels=given.latent_channels,
        widths=given.block_out_channels,
        layers=given.layers_per_block,
        groups=given.norm_num_groups,
        quant=given.use_quant_conv,
        post_quant=given.use_post_quant_conv,
        attend=given.mid_block_add_attention,
        scale=given.scaling_factor,
        shift=given.shift_factor or 0.0,
        dtype=wide(dtype) if given.force_upcast else dtype,
    )


def example(vae: AutoencoderKL) -> tuple[Image]:
    """Arguments of the smallest sizes that the network takes, for its initialisation and the shapes of parameters."""
    return (jnp.zeros((1, vae.factor, vae.factor, vae.channels)),)
