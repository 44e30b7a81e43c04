"""The localised VQ autoencoder of AsyncPatch Diffusion: what lies in a hole does not reach the latents beside it.

A mask is a field of two times, 0 where an image is known and 1 in its hole. So encoder and decoder are told it as a
UNet is told noise levels: embedded, and by scale and shift (FiLM) in every residual block. Three more things keep known
latents where they are, which `launch.studies.leakage` measures one by one: norms of single positions (RMS), no
attention over the image, and an encoder that looks no further than one cell beyond its own (`windows`).

Its folders are read and written by `autoencoder.load` and `autoencoder.save`.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.models.coders import Decoder, Encoder
from asyncpatch_jax.models.convolution import Conv
from asyncpatch_jax.models.layers import Features, NormKind, Remat, logical_axes
from asyncpatch_jax.models.quantiser import Lookup, Quantised, Quantiser
from asyncpatch_jax.models.unet import BLOCK_AXES, Changed
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.types import FewTimes, Image

Attended = Literal["none", "decoder", "both"]
Mask = Float[Array, "_b h w 1"]
Latents = Float[Array, "b _gh _gw z"]

# f4 and f8 have the latents, codes and widths of LDM's vq-f4 and vq-f8 (Rombach et al. 2022, table 8), without its
# attention, and an encoder of half its blocks. f8 looks 7 pixels beyond a cell of 8, f4 3 beyond one of 4.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"base": 16, "multipliers": (1, 2, 4), "windows": (3, 1, 1), "latent_channels": 3, "codes": 512},
    "f4": {"base": 128, "multipliers": (1, 2, 4), "windows": (3, 1, 1), "latent_channels": 3, "codes": 8192},
    "f8": {"base": 128, "multipliers": (1, 2, 2, 4), "windows": (3, 3, 1, 1), "latent_channels": 4, "codes": 16384},
}
_AXES = {
    **BLOCK_AXES,
    "merge/kernel": ("window", "window", "channels", "channels"),
    "split/kernel": ("channels", "channels"),
    "codebook": ("table", "table"),  # every device looks up what its own images need
}


class LocalisedAutoencoder(nn.Module):
    """Images [b, h, w, c] in [-1, 1] to latents [b, h / factor, w / factor, z], to codes, and back.

    Its methods are called as `module.apply({"params": params}, images, mask, method="encode")`. Masks are 1 in the
    hole, 0 where an image is known; None is a mask of zeros, bit for bit.

    Attributes:
        channels: of images.
        latent_channels: of latents.
        codes: in the codebook.
        lookup: "l2" or "cosine", see `Quantiser`.
        base, multipliers: widths of the levels are base * multipliers; each level halves the resolution.
        blocks, encoder_blocks: residual blocks of a decoder's and of an encoder's level.
        windows: sides of an encoder's convolutions, level by level; `reach` says how far it sees with them.
        norm: "rms", of each position alone, or "group", whose statistics are of whole images.
        attention: which of the two halves attend over their coarsest level: "none", "decoder" or "both".
        told: blocks are told the mask; else they take everything for known, and a hole is a grey part of the image.
        dtype: compute type; parameters, latents and reductions stay float32.
        remat: what blocks keep for the backward pass, see `layers.rematerialised`.

    Raises:
        ValueError: a size below its least, windows that are even or not one a level, a width that `head_dim` does not
            divide where there is attention, or an unknown name.
    """

    channels: int = 3
    latent_channels: int = 3
    codes: int = 8192
    lookup: Lookup = "l2"
    base: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    encoder_blocks: int = 1
    windows: tuple[int, ...] = (3, 1, 1)
    norm: NormKind = "rms"
    attention: Attended = "none"
    head_dim: int = 64
    told: bool = True
    dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self) -> None:
        for name in ("channels", "latent_channels", "codes", "base", "blocks", "encoder_blocks", "head_dim"):
            checks.whole(name, getattr(self, name))
        for name, names in (("lookup", Lookup), ("norm", NormKind), ("attention", Attended), ("remat", Remat)):
            checks.choice(name, getattr(self, name), get_args(names))
        for name in ("multipliers", "windows"):
            given = getattr(self, name)
            if not isinstance(given, tuple | list) or not given:
                raise ValueError(f"expected {name} of one level or more, such as (3, 1, 1), got {checks.shown(given)}")
            for number in given:
                checks.whole(name, number)
        if len(self.windows) != len(self.multipliers) or not all(window % 2 for window in self.windows):
            expected = f"odd windows, one for each of {len(self.multipliers)} levels"
            raise ValueError(f"expected {expected}, got {self.windows}")
        width = self.base * self.multipliers[-1]
        if self.attention != "none" and width % self.head_dim:
            raise ValueError(f"expected a width that head_dim = {self.head_dim} divides, got {width}")
        super().__post_init__()

    @property
    def factor(self) -> int:
        """Pixels to a side of a cell; height and width of images must be multiples of it."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def reach(self) -> int | None:
        """How many pixels beyond its own a cell's latents depend on; None: on the whole image."""
        if self.norm == "group" or self.attention == "both":
            return None
        # the first convolution, then two in each block
        sides = [window // 2 for window in self.windows]
        return sides[0] + sum(2 * self.encoder_blocks * side << level for level, side in enumerate(sides))

    def logical_axes(self, params: Any) -> Any:
        """The names of every parameter's axes, in a tree like `params`; see `layers.logical_axes`."""
        return logical_axes(params, _AXES)

    def setup(self) -> None:
        widths = tuple(self.base * m for m in self.multipliers)
        shared = {"norm": self.norm, "head_dim": self.head_dim, "dtype": self.dtype, "remat": self.remat}
        self.encoder = Encoder(
            widths,
            tuple(self.windows),
            self.encoder_blocks,
            attend=self.attention == "both",
            out=self.latent_channels,
            **shared,
        )
        self.quantiser = Quantiser(self.codes, self.latent_channels, self.lookup)
        self.decoder = Decoder(widths, (3,) * len(widths), self.blocks, attend=self.attention != "none", **shared)
        self.out = Conv(self.channels, (3, 3), dtype=self.dtype)

    def _field(self, mask: Mask | None, grid: Grid) -> FewTimes:
        """A mask as times: 0 is known, 1 is the hole."""
        if mask is None or not self.told:
            index = jnp.zeros((1, *grid, 1), jnp.int8)
        else:
            index = jnp.asarray(mask > 0.5, jnp.int8)
        return timefield.assembled(jnp.array([[0.0, 1.0]]), index)

    def _check_mask(self, mask: Mask | None, batch: int, grid: Grid) -> None:
        if mask is None:
            return
        checks.mask("mask", mask)
        if mask.shape[0] not in (1, batch) or mask.shape[1:3] != grid:
            raise ValueError(f"expected a mask {[batch, *grid, 1]}, got {list(mask.shape)}")

    def encode(self, images: Image, mask: Mask | None = None) -> Latents:
        """Latents [b, h / factor, w / factor, z], float32, before they are quantised; of "cosine", of length 1.

        Hole pixels are grey (0) before anything looks at them.

        Raises:
            ValueError: other channels, a size that is no multiple of `factor`, or a mask of another size.
        """
        checks.images("images", images)
        b, h, w, c = images.shape
        if c != self.channels or h % self.factor or w % self.factor:
            sizes = f"[b, h, w, {self.channels}] with h and w multiples of {self.factor}"
            raise ValueError(f"expected images {sizes}, got {images.shape}")
        self._check_mask(mask, b, (h, w))
        if mask is not None:
            images = jnp.where(mask > 0.5, jnp.zeros((), images.dtype), images)
        return self.quantiser.directed(self.encoder(images, self._field(mask, (h, w))))

    def quantise(self, latents: Latents) -> Quantised:
        """The codes of latents, their index, and the two losses; see `Quantised`.

        Raises:
            ValueError: other channels.
        """
        if latents.shape[-1] != self.latent_channels:
            raise ValueError(f"expected latents of {self.latent_channels} channels, got {latents.shape[-1]}")
        return self.quantiser(latents)

    def index(self, latents: Latents) -> Int[Array, "b _gh _gw"]:
        """Which code each latent is nearest to."""
        return self.quantise(latents).index

    def embed(self, index: Int[Array, "b gh gw"]) -> Latents:
        """The latents that codes stand for: `decode` gives the same image for them as for all that are nearest."""
        return self.quantiser.embed(index)

    def features(self, codes: Latents, mask: Mask | None = None) -> Changed:
        """What the last convolution (`last`) makes images of, from codes: the decoder's two parts, for its training.

        Raises:
            ValueError: a mask of another size than the images'.
        """
        b, gh, gw, _ = codes.shape
        grid = gh * self.factor, gw * self.factor
        self._check_mask(mask, b, grid)
        return self.decoder(codes, self._field(mask, grid))

    def last(self, features: Features) -> Image:
        """Images, float32, of features."""
        return self.out(features).astype(jnp.float32)

    def decode(self, latents: Latents, mask: Mask | None = None) -> Image:
        """Images [b, h, w, c] in about [-1, 1], float32, of latents, which are quantised first.

        Args:
            mask: which pixels the latents of known cells were made without.

        Raises:
            ValueError: as `quantise` and `features`.
        """
        return self.last(self.features(self.quantise(latents).latents, mask))

    def __call__(self, images: Image, mask: Mask | None = None) -> Image:
        """Images through encoder, codes and decoder."""
        return self.decode(self.encode(images, mask), mask)


def shapes(module: LocalisedAutoencoder) -> Any:
    """Shapes and types of the parameters, in their tree."""
    images = jnp.zeros((1, module.factor, module.factor, module.channels))
    return jax.eval_shape(lambda key: module.init(key, images), jax.random.key(0))["params"]
