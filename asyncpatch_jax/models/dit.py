"""DiT (Peebles & Xie 2023, arXiv 2212.09748), told its noise level per token.

adaLN-zero acts per token, the final layer included; a 1x1 field modulates all tokens at once, as the original does.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from asyncpatch_jax import timefield
from asyncpatch_jax.models.dropout import Dropout, Seed, first_seed, seeds
from asyncpatch_jax.models.layers import (
    AXES,
    Attention,
    Remat,
    check_network,
    logical_axes,
    project,
    rematerialised,
    told,
    with_reference,
)
from asyncpatch_jax.models.modulated import modulated_norm, normalise
from asyncpatch_jax.models.times import MAX_FREQUENCY, LevelTimes, MeanOf, modulation
from asyncpatch_jax.sharding import constrain
from asyncpatch_jax.types import Condition, FewTimes, Image, TimeField

Tokens = Float[Array, "b th tw d"]

_SIZES = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 128, "depth": 4, "heads": 4, "patch": 2},
    **{f"{size}/{patch}": {**shape, "patch": patch} for size, shape in _SIZES.items() for patch in (2, 4, 8)},
}
_AXES = {
    **AXES,
    "patches/kernel": ("pixels", "channels"),
    "mlp_in/kernel": ("channels", "hidden"),
    "mlp_in/bias": ("hidden",),
    "mlp_out/kernel": ("hidden", "channels"),
    "out/kernel": ("channels", "pixels"),
    "log_variance/kernel": ("channels", "pixels"),
}


def positions(height: int, width: int, dim: int) -> Float[Array, "1 {height} {width} {dim}"]:
    """Fixed sine-cosine features of row and column, half of `dim` each: any size, any aspect ratio."""

    def axis(n: int) -> jax.Array:
        freqs = 10_000.0 ** (-jnp.arange(dim // 4, dtype=jnp.float32) / (dim // 4))
        angles = jnp.arange(n, dtype=jnp.float32)[:, None] * freqs[None, :]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    rows = jnp.broadcast_to(axis(height)[:, None], (height, width, dim // 2))
    cols = jnp.broadcast_to(axis(width)[None, :], (height, width, dim // 2))
    return jnp.concatenate([rows, cols], axis=-1)[None]


class DiTBlock(nn.Module):
    """Self-attention, [cross-attention], MLP, each gated per token; returns (x, None) for `nn.scan`."""

    heads: int
    mlp_ratio: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Tokens, seed: Seed | None, times: LevelTimes, context: Any) -> tuple[Tokens, None]:
        def flat(h: Tokens) -> Float[Array, "b n d"]:
            return h.reshape(h.shape[0], -1, h.shape[-1])

        def modulated(x: Tokens, scale: jax.Array, shift: jax.Array) -> Tokens:
            table = jnp.concatenate([scale, shift], axis=-1)
            return modulated_norm(x, "layer", None, None, table, times, silu=False, dtype=self.dtype)

        # each [b|1, J, d], of the J times
        table = project(times.emb, 6 * x.shape[-1], self.dtype, "modulation")
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(table, 6, axis=-1)
        (gate_a,), (gate_m,) = (modulation(gate, times, 1, timefield.grid_of(x)) for gate in (gate_a, gate_m))
        # adaLN-zero closes the gates at initialisation, so the attention and MLP outputs themselves start random
        attend = Attention(self.heads, self.dtype, zero_init=False, name="self")
        h = attend(flat(modulated(x, scale_a, shift_a))).reshape(x.shape)
        x = x + gate_a * Dropout(self.dropout, name="attention_dropout")(h, seed)
        if context is not None:
            cross = Attention(self.heads, self.dtype, name="cross")
            x = x + cross(flat(normalise(x, "layer").astype(self.dtype)), *context).reshape(x.shape)
        h = modulated(x, scale_m, shift_m)
        h = nn.Dense(self.mlp_ratio * x.shape[-1], dtype=self.dtype, name="mlp_in")(h)
        h = nn.gelu(constrain(h, "batch", None, None, "hidden"), approximate=True)
        h = nn.Dense(x.shape[-1], dtype=self.dtype, name="mlp_out")(h)
        x = x + gate_m * Dropout(self.dropout, name="mlp_dropout")(h, seed)
        return constrain(x, "batch", None, None, None), None


class DiT(nn.Module):
    """A diffusion transformer `(x, t, cond) -> (out, aux)` whose field may have any grid from 1x1 to per pixel.

    A token's modulation is the mean of those at its pixels' times, unless `mean_of` says otherwise.

    Attributes:
        patch: side of a token's patch in pixels; height and width must be multiples of it.
        width, depth, heads, mlp_ratio: of the transformer.
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
        scan: loop over the blocks instead of unrolling them (compiles faster). Parameters are the same either way.

    Raises:
        ValueError: a size below its least, or a width that is no multiple of 4 and of the heads.
    """

    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: int = 4
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
        check_network(self, "patch", "width", "depth", "heads", "mlp_ratio")
        if self.width % 4:
            raise ValueError(
                f"expected a width that is a multiple of 4 (sine and cosine of row and column), got {self.width}"
            )
        if self.width % self.heads:
            raise ValueError(f"expected a width that {self.heads} heads divide, got {self.width}")
        super().__post_init__()

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this."""
        return self.patch

    def logical_axes(self, params: Any) -> Any:
        """The names of every parameter's axes, in a tree like `params`; see `layers.logical_axes`."""
        return logical_axes(params, _AXES)

    @nn.compact
    def __call__(
        self, x: Image, t: TimeField | FewTimes, cond: Condition | None = None, *, train: bool = False
    ) -> tuple[Image, dict[str, jax.Array]]:
        """Predict from x [b, h, w, c] at field t [b, gh, gw, 1]: out [b, h, w, c] in float32, and aux.

        Raises:
            ValueError: height or width is no multiple of the patch, or the field or condition does not fit.
        """
        _, height, width, channels = x.shape
        grid = (height // self.patch, width // self.patch)
        (times,), context = told(self, x, t, cond, self.width, [grid])

        x = with_reference(self, x, cond)
        patches = rearrange(x.astype(self.dtype), "b (h p) (w q) c -> b h w (p q c)", p=self.patch, q=self.patch)
        x = constrain(nn.Dense(self.width, dtype=self.dtype, name="patches")(patches), "batch", None, None, None)
        x = x + positions(*grid, self.width).astype(self.dtype)

        loop = self.scan and self.depth > 1
        block_class = rematerialised(DiTBlock, self.remat, loop=loop)
        stack = nn.scan(
            block_class,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.depth,
            unroll=1 if loop else 0,  # 0 writes no loop; `depth` = 1 would write one of one trip
        )
        seed = first_seed(self.make_rng("dropout")) if train and self.dropout else None
        layers = seeds(seed, self.depth)
        x, _ = stack(self.heads, self.mlp_ratio, self.dropout, self.dtype, name="blocks")(x, layers, times, context)

        shift, scale = jnp.split(project(times.emb, 2 * self.width, self.dtype, "modulation_out"), 2, axis=-1)
        table = jnp.concatenate([scale, shift], axis=-1)
        x = modulated_norm(x, "layer", None, None, table, times, silu=False, dtype=self.dtype)

        def unpatch(features: int, x: Tokens, name: str) -> Image:
            dense = nn.Dense(self.patch**2 * features, kernel_init=nn.initializers.zeros, dtype=self.dtype, name=name)
            pixels = rearrange(dense(x), "b h w (p q c) -> b (h p) (w q) c", p=self.patch, q=self.patch)
            return pixels.astype(jnp.float32)

        out = unpatch(channels, x, "out")
        # the head learns from what the body computes and never changes it: its gradient stops here
        aux = {"log_variance": unpatch(1, jax.lax.stop_gradient(x), "log_variance")} if self.log_variance else {}
        return out, aux
