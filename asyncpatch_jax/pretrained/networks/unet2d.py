"""Stable Diffusion's UNet (1.5, 2.1, XL), told a time per cell; Rombach et al. 2022, arXiv 2112.10752.

Parameters and numbers are those of diffusers' `UNet2DConditionModel`. Time enters through the residual blocks alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from asyncpatch_jax import timefield
from asyncpatch_jax.pretrained.networks.configuration import check
from asyncpatch_jax.pretrained.networks.layers import GroupNorm, TimestepEmbedding, sinusoid, wide
from asyncpatch_jax.pretrained.networks.resnet2d import conv
from asyncpatch_jax.pretrained.networks.times import level_times
from asyncpatch_jax.pretrained.networks.transformer2d import Maps, Reading
from asyncpatch_jax.pretrained.networks.unet2d_blocks import DownBlock, Layers, Level, MidBlock, UpBlock
from asyncpatch_jax.sharding import constrain
from asyncpatch_jax.types import Condition, FewTimes, Image, TimeField

# attention maps are those of layers on a quarter of the latent's rows and columns (AsynDM, arXiv 2510.04504)
QUARTER = 2


class UNet2DCondition(nn.Module):
    """A pretrained UNet `(x, t, cond) -> (out, aux)` on latents; t in its own units, as a rule 0 ... 999.

    Attributes:
        in_channels, out_channels: of the latents.
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
            cond: tokens [b, l, context]; of SDXL also pooled and sizes. `blur` acts in the middle block; `label`,
                `guidance`, `reference` and `text_time` have no meaning here.
            train: as all networks take it; there is no dropout.

        Raises:
            ValueError: height or width is no multiple of `multiple`, the field or the condition does not fit, or maps
                are asked for where no layer has any.
        """
        b, height, width, channels = x.shape
        if channels != self.in_channels:
            raise ValueError(f"expected {self.in_channels} channels, got {channels}")
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"expected height and width to be multiples of {self.multiple}, got {height}x{width}")
        timefield.check(t, b)
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

        x = constrain(conv(self.down[0].width, self.dtype, "conv_in")(x.astype(self.dtype)), "batch", None, None, None)
        skips = [x]
        for i, level in enumerate(self.down):
            block = DownBlock(level, shared, i == last, name=f"down_blocks.{i}")
            x, more, new = block(x, times[i], plain, asked(i))
            skips, maps = skips + more, maps if new is None else new
        x, new = MidBlock(self.mid, shared, name="mid_block")(x, times[last], reading, asked(last))
        maps = maps if new is None else new
        for i, level in enumerate(self.up):
            block = UpBlock(level, shared, i == last, name=f"up_blocks.{i}")
            x, new = block(x, skips, times[last - i], plain, asked(last - i))
            maps = maps if new is None else new

        x = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="conv_norm_out")(x))
        out = conv(self.out_channels, self.dtype, "conv_out")(x)
        return out.astype(wide(self.dtype)), self._aux(cond, maps, (height, width))

    def _sinusoid(self, t: Float[Array, "_b j"], width: int) -> Float[Array, "_b j {width}"]:
        return sinusoid(t, width, flip_sin_to_cos=self.flip_sin_to_cos, shift=self.freq_shift, dtype=self.dtype)

    def _reading(self, cond: Condition | None, batch: int) -> Reading:
        if cond is None or cond.tokens is None or cond.tokens.shape[::2] != (batch, self.context):
            got = None if cond is None or cond.tokens is None else cond.tokens.shape
            raise ValueError(f"expected cond.tokens of shape [{batch}, l, {self.context}], got {got}")
        return Reading(cond.tokens, cond.mask, cond.blur)

    def _added(self, cond: Condition) -> Float[Array, "b 1 e"] | None:
        """SDXL's embedding of the pooled text and of sizes (Podell et al. 2023, section 2.2)."""
        if self.added is None:
            return None
        each, pooled = self.added
        got = [None if part is None else part.shape[1] for part in (cond.pooled, cond.sizes)]
        if got != [pooled, 6]:
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
        if maps.cross is not None:
            shares = jnp.einsum("bnm,bmk->bnk", maps.cross, cond.spans.weight, precision="highest")
            grid = (size[0] >> QUARTER, size[1] >> QUARTER)
            aux["maps"] = shares.reshape(shares.shape[0], *grid, -1) / self._mapped_layers
        return aux


_USED = {
    *("in_channels", "out_channels", "block_out_channels", "layers_per_block", "down_block_types", "up_block_types"),
    *("transformer_layers_per_block", "attention_head_dim", "num_attention_heads", "cross_attention_dim"),
    *("norm_num_groups", "norm_eps", "use_linear_projection", "flip_sin_to_cos", "freq_shift"),
    *("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
}
_FIXED = {
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
_IGNORED = {"sample_size", "dropout", "upcast_attention", "addition_embed_type_num_heads"}
_DEPTHS = {
    "DownBlock2D": False,
    "CrossAttnDownBlock2D": True,
    "UpBlock2D": False,
    "CrossAttnUpBlock2D": True,
}


def from_config(config: Mapping[str, Any], dtype: Any = jnp.float32) -> UNet2DCondition:
    """The network of a `unet/config.json`.

    Raises:
        ValueError: a setting that is not implemented, or lists of unequal length.
    """
    check(config, "UNet2DCondition", _USED, _FIXED, _IGNORED)
    widths = tuple(config["block_out_channels"])
    levels = len(widths)

    def each(name: str, default: Any) -> tuple[int, ...]:
        """A setting of every level; one number stands for all."""
        value = config.get(name)
        value = default if value is None else value
        value = (value,) * levels if isinstance(value, int) else tuple(value)
        if len(value) != levels or not all(isinstance(part, int) for part in value):
            raise ValueError(f"expected {name} to be a whole number or {levels} of them, got {config.get(name)!r}")
        return value

    # the public files call the number of heads their dimension
    heads = each("num_attention_heads" if config.get("num_attention_heads") else "attention_head_dim", 8)
    layers, depths = each("layers_per_block", 2), each("transformer_layers_per_block", 1)
    contexts = each("cross_attention_dim", 1280)
    if len(set(contexts)) > 1:
        raise ValueError(f"expected one cross_attention_dim for all levels, got {contexts}")

    def way(name: str, kinds: Sequence[str], order: Sequence[int]) -> tuple[Level, ...]:
        allowed = [kind for kind in _DEPTHS if kind.endswith("DownBlock2D") == (name == "down_block_types")]
        if len(kinds) != levels or not set(kinds) <= set(allowed):
            raise ValueError(f"expected {name} to be {levels} out of {allowed}, got {list(kinds)}")
        pairs = zip(order, kinds, strict=True)
        return tuple(Level(widths[i], layers[i], depths[i] if _DEPTHS[kind] else 0, heads[i]) for i, kind in pairs)

    return UNet2DCondition(
        in_channels=config.get("in_channels", 4),
        out_channels=config.get("out_channels", 4),
        down=way("down_block_types", config["down_block_types"], range(levels)),
        up=way("up_block_types", config["up_block_types"], range(levels)[::-1]),
        mid=Level(widths[-1], 1, depths[-1], heads[-1]),
        context=contexts[0],
        groups=config.get("norm_num_groups", 32),
        eps=float(config.get("norm_eps", 1e-5)),
        linear=config.get("use_linear_projection", False),
        flip_sin_to_cos=config.get("flip_sin_to_cos", True),
        freq_shift=float(config.get("freq_shift", 0)),
        added=_added(config),
        dtype=dtype,
    )


def _added(config: Mapping[str, Any]) -> tuple[int, int] | None:
    kind = config.get("addition_embed_type")
    if kind is None:
        return None
    if kind != "text_time":
        raise ValueError(f"expected addition_embed_type = None or 'text_time', got {kind!r}")
    each = config["addition_time_embed_dim"]
    return each, config["projection_class_embeddings_input_dim"] - 6 * each


def example(model: UNet2DCondition) -> tuple[Image, TimeField, Condition]:
    """Arguments of the smallest sizes that the network takes, for its initialisation and the shapes of parameters."""
    size = model.multiple
    pooled = None if model.added is None else jnp.zeros((1, model.added[1]))
    sizes = None if model.added is None else jnp.zeros((1, 6))
    cond = Condition(tokens=jnp.zeros((1, 2, model.context)), pooled=pooled, sizes=sizes)
    return jnp.zeros((1, size, size, model.in_channels)), timefield.constant(0.0, 1), cond
