"""Stable Diffusion's UNet (1.5, 2.1, XL), told a time per cell; Rombach et al. 2022, arXiv 2112.10752.

Parameters and numbers are those of diffusers' `UNet2DConditionModel`. Time enters through the residual blocks alone.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from msgspec import Meta

from asyncpatch_jax import timefield
from asyncpatch_jax.pretrained.networks.configuration import (
    Channels,
    Count,
    Epsilon,
    Few,
    Side,
    Width,
    Widths,
    expect_divides,
    read,
)
from asyncpatch_jax.pretrained.networks.layers import GroupNorm, TimestepEmbedding, sinusoid, wide
from asyncpatch_jax.pretrained.networks.resnet2d import conv
from asyncpatch_jax.pretrained.networks.times import level_times
from asyncpatch_jax.pretrained.networks.transformer2d import Maps, Reading
from asyncpatch_jax.pretrained.networks.unet2d_blocks import DownBlock, Layers, Level, MidBlock, UpBlock
from asyncpatch_jax.schema import Settings
from asyncpatch_jax.sharding import constrain
from asyncpatch_jax.types import Condition, FewTimes, Image, TimeField

# attention maps are those of layers on a quarter of the latent's rows and columns (AsynDM, arXiv 2510.04504)
QUARTER = 2


class UNet2DCondition(nn.Module):
    """A pretrained UNet `(x, t, cond) -> (out, aux)` on latents; t in its own units, as a rule 0 ... 999.

    Attributes:
        in_channels, out_channels: what the first layer takes and the last one makes. The latents have `out_channels`;
            what is more is `cond.reference`: of networks for inpainting a mask and the latents of the rest.
        down: levels from full resolution on; each has half the rows and columns of the one before.
        up: levels from the lowest on.
        mid: the lowest level's block between the two ways.
        context: width of the text tokens.
        groups, eps: of group norms.
        linear: see `Transformer2D`.
        flip_sin_to_cos, freq_shift: of the embedding of timesteps.
        added: SDXL's width of each embedded size, and of the pooled text; None: neither is taken.
        dtype: compute type; times and reductions are float32 or wider.
    """

    in_channels: int
    out_channels: int
    down: tuple[Level, ...]
    up: tuple[Level, ...]
    mid: Level
    context: int
    groups: int = 32
    eps: float = 1e-5
    linear: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    added: tuple[int, int] | None = None
    dtype: Any = jnp.float32

    @property
    def inpaints(self) -> bool:
        """Whether it is made for inpainting, and shown what is kept."""
        return self.in_channels > self.out_channels

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this."""
        return 2 ** (len(self.down) - 1)

    @nn.compact
    def __call__(
        self, x: Image, t: TimeField | FewTimes, cond: Condition | None = None, *, train: bool = False
    ) -> tuple[Image, dict[str, jax.Array]]:
        """Predict from latents x [b, h, w, c] at field t [b, gh, gw, 1]: out [b, h, w, c] in float32, and aux.

        `aux["maps"]` [b, h / 4, w / 4, k] is there if `cond.spans` is: how much each cell attends to the tokens of each
        object, the mean over heads and then over layers. `aux["self_maps"]` [b, n, n] is the same of self-attention
        over these n = h w / 16 cells; under jit it costs nothing unless it is read.

        Args:
            cond: tokens [b, l, context]; of SDXL also pooled and sizes; for inpainting also reference [b, h, w,
                in_channels - out_channels]: the mask (1 = made anew) and the latents of the rest, as diffusers has them
                beside x. `blur` acts in the middle block; `label`, `guidance` and `text_time` have no meaning here.
            train: as all networks take it; there is no dropout.

        Raises:
            ValueError: height or width is no multiple of `multiple`, the field or the condition does not fit, or maps
                are asked for where no layer has any.
        """
        b, height, width, channels = x.shape
        if channels != self.out_channels:
            raise ValueError(f"expected {self.out_channels} channels, got {channels}")
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"expected height and width to be multiples of {self.multiple}, got {height}x{width}")
        timefield.check(t, b)
        cond = cond or Condition()
        reading = self._reading(cond, b)
        maps = self._no_maps(cond, b, (height, width))

        added = self._added(cond)
        embed_time = TimestepEmbedding(4 * self.down[0].width, self.dtype, name="time_embedding")

        def embed(times: Float[Array, "_b j"]) -> Float[Array, "_b2 j e"]:
            emb = embed_time(self._sinusoid(times, self.down[0].width))
            return nn.silu(emb if added is None else emb + added)

        grids = [(height >> level, width >> level) for level in range(len(self.down))]
        times = level_times(t, embed, grids)
        shared = Layers(self.groups, self.eps, self.linear, self.dtype)
        plain = reading._replace(blur=None)
        last = len(self.down) - 1

        def asked(level: int) -> Maps | None:
            return maps if level == QUARTER else None

        x = self._shown(x, cond).astype(self.dtype)
        x = constrain(conv(self.down[0].width, self.dtype, "conv_in")(x), "batch", None, None, None)
        skips = [x]
        for i, level in enumerate(self.down):
            block = DownBlock(level, shared, i == last, name=f"down_blocks.{i}")
            x, more, new = block(x, times[i], plain, asked(i))
            skips, maps = skips + more, maps if new is None else new
        x, new = MidBlock(self.mid, shared, name="mid_block")(x, times[last], reading, asked(last))
        maps = maps if new is None else new
        for i, level in enumerate(self.up):
            up = UpBlock(level, shared, i == last, name=f"up_blocks.{i}")
            x, new = up(x, skips, times[last - i], plain, asked(last - i))
            maps = maps if new is None else new

        x = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="conv_norm_out")(x))
        out = conv(self.out_channels, self.dtype, "conv_out")(x)
        return out.astype(wide(self.dtype)), self._aux(cond, maps, (height, width))

    def _shown(self, x: Image, cond: Condition) -> Float[Array, "b h w {self.in_channels}"]:
        """The latents, and beside them what a network for inpainting is shown of the image."""
        if not self.inpaints:
            return x
        wanted = (*x.shape[:3], self.in_channels - self.out_channels)
        if cond.reference is None or cond.reference.shape != wanted:
            got = None if cond.reference is None else cond.reference.shape
            raise ValueError(f"expected cond.reference of shape {wanted}, a mask and latents to inpaint, got {got}")
        return jnp.concatenate([x, cond.reference.astype(x.dtype)], axis=-1)

    def _sinusoid(self, t: Float[Array, "_b j"], width: int) -> Float[Array, "_b j {width}"]:
        return sinusoid(t, width, flip_sin_to_cos=self.flip_sin_to_cos, shift=self.freq_shift, dtype=self.dtype)

    def _reading(self, cond: Condition, batch: int) -> Reading:
        if cond.tokens is None or cond.tokens.shape[::2] != (batch, self.context):
            got = None if cond.tokens is None else cond.tokens.shape
            raise ValueError(f"expected cond.tokens of shape [{batch}, l, {self.context}], got {got}")
        return Reading(cond.tokens, cond.mask, cond.blur)

    def _added(self, cond: Condition) -> Float[Array, "b 1 e"] | None:
        """SDXL's embedding of the pooled text and of sizes (Podell et al. 2023, section 2.2)."""
        if self.added is None:
            return None
        each, pooled = self.added
        got = [None if part is None else part.shape[1] for part in (cond.pooled, cond.sizes)]
        if cond.pooled is None or cond.sizes is None or got != [pooled, 6]:
            raise ValueError(f"expected cond.pooled and cond.sizes of widths {pooled} and 6, got {got[0]} and {got[1]}")
        sizes = self._sinusoid(cond.sizes, each).reshape(cond.sizes.shape[0], -1)
        both = jnp.concatenate([cond.pooled.astype(sizes.dtype), sizes], axis=-1)
        return TimestepEmbedding(4 * self.down[0].width, self.dtype, name="add_embedding")(both)[:, None]

    @property
    def _mapped_layers(self) -> int:
        """Transformer layers on the grid that attention maps are taken from."""
        levels = len(self.down)
        if levels <= QUARTER:
            return 0
        down, up = self.down[QUARTER], self.up[levels - 1 - QUARTER]
        mid = self.mid.depth if levels == QUARTER + 1 else 0
        return down.layers * down.depth + mid + (up.layers + 1) * up.depth

    def _no_maps(self, cond: Condition, batch: int, size: tuple[int, int]) -> Maps | None:
        if not self._mapped_layers:
            if cond.spans is not None:
                raise ValueError("expected no cond.spans: this UNet has no attention at a quarter of the resolution")
            return None
        cells = (size[0] >> QUARTER) * (size[1] >> QUARTER)
        own = jnp.zeros((batch, cells, cells), jnp.float32)
        if cond.spans is None:
            return Maps(None, None, own)
        index = cond.spans.index
        return Maps(index, jnp.zeros((batch, cells, index.shape[1]), jnp.float32), own)

    def _aux(self, cond: Condition, maps: Maps | None, size: tuple[int, int]) -> dict[str, jax.Array]:
        if maps is None:
            return {}
        aux = {"self_maps": maps.own / self._mapped_layers}
        if maps.cross is not None and cond.spans is not None:
            shares = jnp.einsum("bnm,bmk->bnk", maps.cross, cond.spans.weight, precision="highest")
            grid = (size[0] >> QUARTER, size[1] >> QUARTER)
            aux["maps"] = shares.reshape(shares.shape[0], *grid, -1) / self._mapped_layers
        return aux


_Counts = Annotated[tuple[Count, ...], Meta(max_length=8)]


class Config(Settings, frozen=True):
    """A `unet/config.json`; one number stands for all levels. Defaults are diffusers'."""

    block_out_channels: Widths
    down_block_types: tuple[Literal["DownBlock2D", "CrossAttnDownBlock2D"], ...]
    up_block_types: tuple[Literal["UpBlock2D", "CrossAttnUpBlock2D"], ...]
    in_channels: Channels = 4
    out_channels: Channels = 4
    sample_size: Side | None = None
    layers_per_block: Few | Annotated[tuple[Few, ...], Meta(max_length=8)] = 2
    transformer_layers_per_block: Count | _Counts = 1
    # the public files call the number of heads their dimension
    attention_head_dim: Count | _Counts | None = 8
    num_attention_heads: Count | _Counts | None = None
    cross_attention_dim: Width | Widths = 1280
    norm_num_groups: Count = 32
    norm_eps: Epsilon = 1e-5
    use_linear_projection: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[float, Meta(ge=0, le=1)] = 0.0
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: Width | None = None
    projection_class_embeddings_input_dim: Width | None = None

    fixed: ClassVar[Mapping[str, Any]] = {
        "act_fn": "silu",
        "center_input_sample": False,
        "class_embed_type": None,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim_type": None,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "only_cross_attention": False,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "attention_type": "default",
        "resnet_out_scale_factor": 1.0,
    }
    ignored: ClassVar[frozenset[str]] = frozenset({"dropout", "upcast_attention", "addition_embed_type_num_heads"})


def from_config(config: Mapping[str, Any], dtype: Any = jnp.float32) -> UNet2DCondition:
    """The network of a `unet/config.json`.

    Raises:
        ValueError: a setting that is missing or not implemented, or lists of unequal length.
    """
    given = read(config, Config, "UNet2DConditionModel")
    widths = given.block_out_channels
    levels = len(widths)

    def each(name: str) -> tuple[Any, ...]:
        """A setting of every level; one number stands for all."""
        value = getattr(given, name)
        value = (value,) * levels if isinstance(value, int) else value
        if value is None or len(value) != levels:
            raise ValueError(f"expected {name} to be a whole number or {levels} of them, got {config.get(name)!r}")
        return value

    heads = each("num_attention_heads" if given.num_attention_heads else "attention_head_dim")
    layers, depths, contexts = (
        each(name) for name in ("layers_per_block", "transformer_layers_per_block", "cross_attention_dim")
    )
    if len(set(contexts)) > 1:
        raise ValueError(f"expected one cross_attention_dim for all levels, got {contexts}")
    expect_divides("block_out_channels", widths, given.norm_num_groups, "groups")
    _expect_sines("block_out_channels[0]", widths[0], given.freq_shift)

    def way(name: str, order: range) -> tuple[Level, ...]:
        kinds = getattr(given, name)
        if len(kinds) != levels:
            raise ValueError(f"expected {name} of {levels} levels, as block_out_channels has, got {len(kinds)}")
        found = []
        for i, kind in zip(order, kinds, strict=True):
            depth = depths[i] if kind.startswith("CrossAttn") else 0
            if depth:
                expect_divides(f"block_out_channels[{i}]", widths[i : i + 1], heads[i], "heads")
            found.append(Level(widths[i], layers[i], depth, heads[i]))
        return tuple(found)

    if given.in_channels not in (given.out_channels, 2 * given.out_channels + 1):
        raise ValueError(
            f"expected in_channels = out_channels = {given.out_channels}, or {2 * given.out_channels + 1} of a network "
            f"for inpainting (latents, a mask, and the latents of the rest), got {given.in_channels}"
        )
    expect_divides("block_out_channels[-1]", widths[-1:], heads[-1], "heads")
    return UNet2DCondition(
        in_channels=given.in_channels,
        out_channels=given.out_channels,
        down=way("down_block_types", range(levels)),
        up=way("up_block_types", range(levels)[::-1]),
        mid=Level(widths[-1], 1, depths[-1], heads[-1]),
        context=contexts[0],
        groups=given.norm_num_groups,
        eps=given.norm_eps,
        linear=given.use_linear_projection,
        flip_sin_to_cos=given.flip_sin_to_cos,
        freq_shift=given.freq_shift,
        added=_added(given),
        dtype=dtype,
    )


def _expect_sines(name: str, width: int, shift: float) -> None:
    if width % 2 or width // 2 <= shift:
        raise ValueError(f"expected an even {name}, more than {2 * shift:g}, for sines and cosines, got {width}")


def _added(given: Config) -> tuple[int, int] | None:
    if given.addition_embed_type is None:
        return None
    each, both = given.addition_time_embed_dim, given.projection_class_embeddings_input_dim
    if each is None or both is None or both <= 6 * each:
        raise ValueError(
            "expected addition_time_embed_dim for each of 6 sizes, and a wider projection_class_embeddings_input_dim "
            f"with the text beside them, got {each} and {both}"
        )
    _expect_sines("addition_time_embed_dim", each, given.freq_shift)
    return each, both - 6 * each


def example(model: UNet2DCondition) -> tuple[Image, TimeField, Condition]:
    """Arguments of the smallest sizes that the network takes, for its initialisation and the shapes of parameters."""
    size = model.multiple
    pooled = None if model.added is None else jnp.zeros((1, model.added[1]))
    sizes = None if model.added is None else jnp.zeros((1, 6))
    beside = model.in_channels - model.out_channels
    reference = jnp.zeros((1, size, size, beside)) if beside else None
    cond = Condition(tokens=jnp.zeros((1, 2, model.context)), pooled=pooled, sizes=sizes, reference=reference)
    return jnp.zeros((1, size, size, model.out_channels)), timefield.constant(0.0, 1), cond
