"""UNet after Dhariwal & Nichol 2021 (arXiv 2105.05233), told its noise level per cell.

Every residual block gets scale and shift (FiLM) from the time field: their mean over the pixels that a cell of the
block's level stands for (or, as an option, those of the mean of the pixels' times).
"""

from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from asyncpatch_jax import checks
from asyncpatch_jax.models.convolution import Conv
from asyncpatch_jax.models.dropout import Dropout, Seed, first_seed, seeds
from asyncpatch_jax.models.layers import (
    AXES,
    Attention,
    Features,
    ModulatedNorm,
    Norm,
    NormKind,
    Remat,
    check_network,
    logical_axes,
    rematerialised,
    told,
    with_reference,
)
from asyncpatch_jax.models.times import MAX_FREQUENCY, LevelTimes, MeanOf
from asyncpatch_jax.sharding import constrain
from asyncpatch_jax.types import Condition, FewTimes, Image, TimeField

# The paper names parameter counts; its widths are lost from its text. 600M (634 M) keeps the shape of the nearest
# public ImageNet-64 configuration (multipliers 1-2-3-4, attention on the two lowest levels, dropout .1), whose base of
# 192 has 292 M here: widened to multiples of 256, which fill a TPU's matrix unit, and a fourth block. 60M has 62 M.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"base": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_dim": 32},
    "60M": {"base": 128, "multipliers": (1, 2, 2, 3), "blocks": 2, "attention": (2, 3), "dropout": 0.1},
    "600M": {"base": 256, "multipliers": (1, 2, 3, 4), "blocks": 4, "attention": (2, 3), "dropout": 0.1},
}

_CONV = ("window", "window", "channels", "channels")
# of networks of such blocks, between a convolution "stem" and one "out"
BLOCK_AXES: dict[str, tuple[str | None, ...]] = {
    **AXES,
    "stem/kernel": _CONV,
    "conv_in/kernel": ("window", "window", "channels", "hidden"),
    "conv_in/bias": ("hidden",),
    "conv_out/kernel": ("window", "window", "hidden", "channels"),
    "skip/kernel": ("channels", "channels"),
    "out/kernel": _CONV,
}
_AXES = {**BLOCK_AXES, "log_variance/kernel": _CONV}

Changed = Float[Array, "b _h _w _d"]  # of another resolution or width


def _downsample(x: Features) -> Changed:
    return nn.avg_pool(x, (2, 2), (2, 2))


def _upsample(x: Features) -> Changed:
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class ResBlock(nn.Module):
    """norm, silu, [resample], conv, norm + FiLM, silu, dropout, conv, added to the (resampled, projected) input."""

    features: int
    resample: str  # "", "down" or "up"
    norm: NormKind
    dropout: float
    dtype: Any
    window: int = 3  # side of both convolutions'

    @nn.compact
    def __call__(self, x: Features, times: LevelTimes, seed: Seed | None) -> Changed:
        change = {"": lambda h: h, "down": _downsample, "up": _upsample}[self.resample]
        window, zeros = (self.window, self.window), nn.initializers.zeros
        h = nn.silu(Norm(self.norm, self.dtype, name="norm_in")(x))
        h = Conv(self.features, window, dtype=self.dtype, name="conv_in")(change(h))
        h = constrain(h, "batch", None, None, None)  # what comes next looks at all channels of a pixel
        h = ModulatedNorm(self.norm, self.dtype, name="norm_out")(h, times)
        h = constrain(h, "batch", None, None, None)
        h = Dropout(self.dropout, name="dropout")(h, seed)
        h = Conv(self.features, window, kernel_init=zeros, dtype=self.dtype, name="conv_out")(h)
        x = change(x)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="skip")(x)
        return constrain(x + h, "batch", None, None, None)


class AttentionBlock(nn.Module):
    """Self-attention over a level's pixels, then cross-attention to the context if there is one."""

    head_dim: int
    norm: NormKind
    dtype: Any

    @nn.compact
    def __call__(self, x: Features, context: Any) -> Features:
        b, h, w, d = x.shape
        if d % self.head_dim:
            raise ValueError(f"expected a width that head_dim = {self.head_dim} divides, got {d}")
        heads = d // self.head_dim
        # flat before the norm only for attention: group norm must see the whole level
        flat = Norm(self.norm, self.dtype, name="norm")(x).reshape(b, h * w, d)
        x = x + Attention(heads, self.dtype, name="self")(flat).reshape(x.shape)
        if context is not None:
            flat = Norm(self.norm, self.dtype, name="norm_context")(x).reshape(b, h * w, d)
            x = x + Attention(heads, self.dtype, name="cross")(flat, *context).reshape(x.shape)
        return x


class Block(nn.Module):
    """What repeats in a level: [concatenate the skip], residual block, [attention]; returns (x, x) for `nn.scan`."""

    features: int
    attend: bool
    head_dim: int
    norm: NormKind
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Features, skip: Changed | None, seed: Seed | None, times: LevelTimes, context: Any
    ) -> tuple[Changed, Changed]:
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        x = ResBlock(self.features, "", self.norm, self.dropout, self.dtype, name="res")(x, times, seed)
        if self.attend:
            x = AttentionBlock(self.head_dim, self.norm, self.dtype, name="attention")(x, context)
        return x, x


class UNet(nn.Module):
    """A UNet `(x, t, cond) -> (out, aux)` whose field may have any grid from 1x1 to per pixel.

    Attributes:
        base, multipliers: widths of the levels are base * multipliers; each level halves the resolution.
        blocks: residual blocks a level (one more on the way up).
        attention: levels (0 = full resolution) with self-attention, and cross-attention when `context_dim` is set.
        norm: "group" or "rms".
        num_classes: 0 for none; labels then count 0 ... num_classes - 1, and num_classes means "no class".
        context_dim: width of the conditioning tokens; 0 for none.
        reference: channels of `cond.reference` [b, h, w, reference], which is stacked on the image: what a network for
            inpainting is shown; 0 for none.
        log_variance: predict `aux["log_variance"]` [b, h, w, 1] too.
        radians: that the fastest feature of a time turns from t = 0 to 1. Above 8 every cell of a field is embedded for
            itself, which costs a field per pixel a projection a pixel in each block.
        mean_of: what a cell that stands for several of the field's is told: the mean of the "modulations" at their
            times, or the modulation at the mean of their "times".
        dtype: compute type; parameters, times and reductions stay float32.
        remat: what blocks keep for the backward pass, see `layers.rematerialised`.
        scan: loop over a level's equal blocks instead of unrolling them (compiles faster). Parameters are the same
            either way.

    Raises:
        ValueError: a size below its least, attention on no level (with a `context_dim`) or one that does not exist, a
            width that `head_dim` does not divide, or an unknown norm.
    """

    base: int = 64
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (2, 3)
    head_dim: int = 64
    norm: NormKind = "group"
    dropout: float = 0.0
    num_classes: int = 0
    context_dim: int = 0
    reference: int = 0
    log_variance: bool = False
    radians: float = MAX_FREQUENCY
    mean_of: MeanOf = "modulations"
    dtype: Any = jnp.float32
    remat: Remat = "none"
    scan: bool = False

    def __post_init__(self) -> None:
        check_network(self, "base", "blocks", "head_dim")
        checks.choice("norm", self.norm, get_args(NormKind))
        if not isinstance(self.multipliers, tuple | list) or not self.multipliers:
            got = "()" if self.multipliers == () else checks.shown(self.multipliers)
            raise ValueError(f"expected multipliers of one level or more, such as (1, 2), got {got}")
        for multiplier in self.multipliers:
            checks.whole("multiplier", multiplier)
        levels = len(self.multipliers)
        if not isinstance(self.attention, tuple | list) or not set(self.attention) <= set(range(levels)):
            raise ValueError(f"expected attention on levels out of 0 ... {levels - 1}, got {self.attention}")
        if self.context_dim and not self.attention:
            raise ValueError("expected attention on at least one level for a model with context_dim, got none")
        # the middle attends too, at the width of the lowest level
        for level in {*self.attention, levels - 1} if self.attention else ():
            if (width := self.base * self.multipliers[level]) % self.head_dim:
                raise ValueError(f"expected a width that head_dim = {self.head_dim} divides, got {width}")
        super().__post_init__()

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this."""
        return 2 ** (len(self.multipliers) - 1)

    def logical_axes(self, params: Any) -> Any:
        """The names of every parameter's axes, in a tree like `params`; see `layers.logical_axes`."""
        return logical_axes(params, _AXES)

    @nn.compact
    def __call__(
        self, x: Image, t: TimeField | FewTimes, cond: Condition | None = None, *, train: bool = False
    ) -> tuple[Image, dict[str, jax.Array]]:
        """Predict from x [b, h, w, c] at field t [b, gh, gw, 1]: out [b, h, w, c] in float32, and aux.

        Raises:
            ValueError: height or width is no multiple of 2^(levels - 1), or the field or condition does not fit.
        """
        _, height, width, channels = x.shape
        levels = len(self.multipliers)
        widths = [self.base * m for m in self.multipliers]
        grids = [(height >> level, width >> level) for level in range(levels)]
        times, context = told(self, x, t, cond, 4 * self.base, grids)
        seed = first_seed(self.make_rng("dropout")) if train and self.dropout else None

        res_class, block_class = (rematerialised(block, self.remat) for block in (ResBlock, Block))

        def resample(level: int, how: str, name: str) -> nn.Module:
            return res_class(widths[level], how, self.norm, self.dropout, self.dtype, name=name)

        def block_args(level: int) -> tuple[Any, ...]:
            attend = level in self.attention
            return widths[level], attend, self.head_dim, self.norm, self.dropout, self.dtype

        def repeat(level: int, skips: jax.Array | None, x: Features, name: str) -> tuple[Changed, jax.Array]:
            """The level's equal blocks, with stacked parameters; `skips` and the outputs are stacked on axis 0."""
            length = self.blocks - 1
            loop = self.scan and length > 1
            stack = nn.scan(
                rematerialised(Block, self.remat, loop=loop),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast if skips is None else 0, 0, nn.broadcast, nn.broadcast),
                length=length,
                unroll=1 if loop else 0,  # 0 writes no loop; `length` would write one of one trip
            )
            return stack(*block_args(level), name=name)(x, skips, seeds(seed, length), times[level], context)

        x = with_reference(self, x, cond)
        x = Conv(self.base, (3, 3), dtype=self.dtype, name="stem")(x.astype(self.dtype))
        x = constrain(x, "batch", None, None, None)
        entries, firsts, rest = [], [], []  # per level: its input, its first block's output, the other blocks' outputs
        for level in range(levels):
            if level:
                x = resample(level - 1, "down", f"down_{level}")(x, times[level], seed)
            entries.append(x)
            x, _ = block_class(*block_args(level), name=f"encode_{level}_first")(x, None, seed, times[level], context)
            firsts.append(x)
            if self.blocks > 1:
                x, outs = repeat(level, None, x, f"encode_{level}")
                rest.append(outs)

        x = resample(levels - 1, "", "middle_in")(x, times[-1], seed)
        if self.attention:
            x = AttentionBlock(self.head_dim, self.norm, self.dtype, name="middle_attention")(x, context)
        x = resample(levels - 1, "", "middle_out")(x, times[-1], seed)

        for level in reversed(range(levels)):
            # last in, first out: the skips of blocks n .. 2 come stacked, then the first block's and the level's input
            last = rest[level][-1] if self.blocks > 1 else firsts[level]
            x, _ = block_class(*block_args(level), name=f"decode_{level}_first")(x, last, seed, times[level], context)
            if self.blocks > 1:
                skips = (
                    jnp.concatenate([rest[level][-2::-1], firsts[level][None]])
                    if self.blocks > 2
                    else firsts[level][None]
                )
                x, _ = repeat(level, skips, x, f"decode_{level}")
            x, _ = block_class(*block_args(level), name=f"decode_{level}_last")(
                x, entries[level], seed, times[level], context
            )
            if level:
                x = resample(level, "up", f"up_{level}")(x, times[level - 1], seed)

        x = nn.silu(Norm(self.norm, self.dtype, name="norm_out")(x))
        zeros = nn.initializers.zeros
        out = Conv(channels, (3, 3), kernel_init=zeros, dtype=self.dtype, name="out")(x).astype(jnp.float32)
        aux = {}
        if self.log_variance:
            # the head learns from what the body computes and never changes it: its gradient stops here
            head = Conv(1, (3, 3), kernel_init=zeros, dtype=self.dtype, name="log_variance")
            aux["log_variance"] = head(jax.lax.stop_gradient(x)).astype(jnp.float32)
        return out, aux
