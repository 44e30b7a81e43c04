"""Layers that UNet and DiT share: norms, modulation by the time field (FiLM), attention, and what conditions them.

Norms and softmax reduce in float32 whatever the compute type.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.models.attention import attend
from asyncpatch_jax.models.modulated import modulated_norm, normalise
from asyncpatch_jax.models.times import MIN_FREQUENCY, LevelTimes, MeanOf, TimeEmbedding
from asyncpatch_jax.sharding import constrain
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.types import Condition, FewTimes, Image, TimeField

NormKind = Literal["group", "rms"]
Remat = Literal["none", "products", "blocks"]
Features = Float[Array, "b h w d"]
# tokens to attend to, and which of them count
Context = tuple[Float[Array, "b l d"], Bool[Array, "b l"]]

# names of the axes of these layers' parameters, by the end of their path: see `logical_axes`
AXES: dict[str, tuple[str | None, ...]] = {
    "bias": ("channels",),
    "scale": ("channels",),
    "time/in/kernel": ("frequencies", "embedding"),
    "time/out/kernel": ("embedding", "embedding"),
    "label/embedding": ("table", "table"),
    "null_token": (None, None, "embedding"),
    "tokens/kernel": ("context", "embedding"),
    "film/kernel": ("embedding", "channels"),
    "modulation/kernel": ("embedding", "channels"),
    "modulation_out/kernel": ("embedding", "channels"),
    "qkv/kernel": ("channels", None, "heads", "head_dim"),
    "q/kernel": ("channels", "heads", "head_dim"),
    "kv/kernel": ("channels", None, "heads", "head_dim"),
    "self/out/kernel": ("heads", "head_dim", "channels"),
    "cross/out/kernel": ("heads", "head_dim", "channels"),
}


def logical_axes(params: Any, table: Mapping[str, tuple[str | None, ...]]) -> Any:
    """What the axes of each parameter are: a tuple of names in place of every leaf, for `sharding.parameters`.

    A parameter of one more axis than its names is a stack of layers.

    Args:
        params: parameters or their shapes.
        table: names by the end of a parameter's path; the longest end counts.

    Raises:
        ValueError: a parameter that is not in the table, or has another number of axes.
    """

    def names(path: Any, leaf: Any) -> tuple[str | None, ...]:
        full = jax.tree_util.keystr(path, simple=True, separator="/")
        parts = full.split("/")
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        found = next((table[end] for end in ends if end in table), None)
        if found is None or leaf.ndim - len(found) not in (0, 1):
            raise ValueError(f"expected names of the axes of {full}, of shape {leaf.shape}, got {found}")
        return ("layers",) * (leaf.ndim - len(found)) + found

    return jax.tree_util.tree_map_with_path(names, params)


def check_network(model: Any, *sizes: str) -> None:
    """Refuse settings of a network that cannot be.

    Args:
        model: with `dropout`, `num_classes`, `context_dim`, `reference`, `radians`, `mean_of` and `remat`.
        sizes: names of the settings that are whole numbers from 1 on.

    Raises:
        ValueError: by the setting's name.
    """
    for name in sizes:
        checks.whole(name, getattr(model, name))
    for name in ("num_classes", "context_dim", "reference"):
        checks.whole(name, getattr(model, name), 0)
    checks.number("dropout", model.dropout, 0, below=1)
    checks.number("radians", model.radians, MIN_FREQUENCY)
    checks.choice("mean_of", model.mean_of, get_args(MeanOf))
    checks.choice("remat", model.remat, get_args(Remat))


def rematerialised(block: type[nn.Module], remat: Remat, *, loop: bool = False) -> type[nn.Module]:
    """The same block, which keeps less for the backward pass and computes it again there.

    Args:
        remat: "none": keep all; "products": only the results of convolutions and matrix products, so that elementwise
            work is done twice; "blocks": nothing but the block's input, so that all is done twice.
        loop: the block is the body of a loop, where XLA cannot merge both computations, as it else would.

    Raises:
        ValueError: another name.
    """
    if remat not in ("none", "products", "blocks"):
        raise ValueError(f"expected remat = 'none', 'products' or 'blocks', got {remat!r}")
    if remat == "none":
        return block
    return nn.remat(block, prevent_cse=not loop, policy=_is_product if remat == "products" else None)


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("dot_general", "conv_general_dilated")


class ConditionEmbedding(nn.Module):
    """Label embedding [b, 1, width] and cross-attention context ([b, 1 + l, width], which of it counts).

    The label table's last row, `num_classes`, is "no class"; the context begins with one learned token that always
    counts, so that an empty prompt is well defined.

    Raises:
        ValueError: the condition has what the model does not take, or tokens of another width.
    """

    num_classes: int
    context_dim: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, cond: Condition | None, batch: int) -> tuple[Float[Array, "b 1 e"] | None, Context | None]:
        cond = cond or Condition()
        if cond.label is not None and not self.num_classes:
            raise ValueError("expected no labels (the model has num_classes = 0), got labels")
        if cond.tokens is not None and not self.context_dim:
            raise ValueError("expected no tokens (the model has context_dim = 0), got tokens")
        label = context = None
        if self.num_classes:
            index = jnp.full((batch,), self.num_classes) if cond.label is None else cond.label
            table = nn.Embed(
                self.num_classes + 1,
                self.width,
                embedding_init=nn.initializers.normal(1.0),
                dtype=self.dtype,
                name="label",
            )
            label = table(index)[:, None, :]
        if self.context_dim:
            null = self.param("null_token", nn.initializers.normal(0.02), (1, 1, self.width), jnp.float32)
            tokens = jnp.broadcast_to(null, (batch, 1, self.width)).astype(self.dtype)
            mask = jnp.ones((batch, 1), bool)
            project = nn.Dense(self.width, dtype=self.dtype, name="tokens")
            if cond.tokens is None:
                project(jnp.zeros((batch, 1, self.context_dim)))  # its parameters exist whether or not there is text
            else:
                if cond.tokens.shape[-1] != self.context_dim:
                    raise ValueError(f"expected tokens of width {self.context_dim}, got {cond.tokens.shape[-1]}")
                given = jnp.ones(cond.tokens.shape[:2], bool) if cond.mask is None else cond.mask
                tokens = jnp.concatenate([tokens, project(cond.tokens)], axis=1)
                mask = jnp.concatenate([mask, given], axis=1)
            context = (tokens, mask)
        return label, context


def told(
    model: Any, x: Image, t: TimeField | FewTimes, cond: Condition | None, width: int, grids: Sequence[Grid]
) -> tuple[list[LevelTimes], Context | None]:
    """What all blocks of a network are told: the times of each level, the label in them, and a context to attend to.

    Args:
        model: with `multiple`, `num_classes`, `context_dim`, `radians`, `mean_of` and `dtype`, in whose `__call__` this
            is called.
        width: of embedded times.

    Raises:
        ValueError: height or width is no multiple of the model's, or the field or the condition does not fit.
    """
    batch, height, across, _ = x.shape
    if height % model.multiple or across % model.multiple:
        raise ValueError(f"expected height and width to be multiples of {model.multiple}, got {height}x{across}")
    timefield.check(t, batch)
    embed = ConditionEmbedding(model.num_classes, model.context_dim, width, model.dtype, name="condition")
    label, context = embed(cond, batch)
    embed_times = TimeEmbedding(width, model.dtype, model.radians, model.mean_of, name="time")
    return embed_times(t, label, grids), context


def with_reference(model: Any, x: Image, cond: Condition | None) -> Float[Array, "b h w _c2"]:
    """The image, and on further channels what the network is shown beside it; zeros where there is nothing to show.

    Args:
        model: with `reference`, how many channels that are.

    Raises:
        ValueError: a reference of another shape, or one for a network that takes none.
    """
    given = None if cond is None else cond.reference
    wanted = (*x.shape[:3], model.reference)
    if given is None:
        return jnp.concatenate([x, jnp.zeros(wanted, x.dtype)], axis=-1) if model.reference else x
    if given.shape != wanted or not model.reference:
        expected = f"cond.reference of shape {wanted}" if model.reference else "no reference (the model takes none)"
        raise ValueError(f"expected {expected}, got shape {given.shape}")
    return jnp.concatenate([x, given.astype(x.dtype)], axis=-1)


def _affine(module: nn.Module, kind: NormKind, channels: int) -> tuple[jax.Array, jax.Array | None]:
    """A norm's own scale and (of a group norm) bias [1, 1, 1, d]."""
    shape = (channels,)
    scale = module.param("scale", nn.initializers.ones, shape, jnp.float32).reshape(1, 1, 1, -1)
    bias = (
        module.param("bias", nn.initializers.zeros, shape, jnp.float32).reshape(1, 1, 1, -1)
        if kind == "group"
        else None
    )
    return scale, bias


class Norm(nn.Module):
    """Group norm (Wu & He 2018) or RMS norm, by name, with a learned scale and (group) bias."""

    kind: NormKind
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        scale, bias = _affine(self, self.kind, x.shape[-1])
        h = normalise(x, self.kind) * scale
        return (h if bias is None else h + bias).astype(self.dtype)


class ModulatedNorm(nn.Module):
    """A norm, scale and shift from the time field, and silu; the plain norm at initialisation."""

    kind: NormKind
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, times: LevelTimes) -> Features:
        scale, bias = _affine(self, self.kind, x.shape[-1])
        table = project(times.emb, 2 * x.shape[-1], self.dtype, "film")
        return modulated_norm(x, self.kind, scale, bias, table, times, silu=True, dtype=self.dtype)


def project(emb: Float[Array, "_b j e"], features: int, dtype: Any, name: str) -> Float[Array, "_b j {features}"]:
    """Modulations of the embedded times, zero at initialisation."""
    dense = nn.Dense(features, kernel_init=nn.initializers.zeros, dtype=dtype, name=name)
    return constrain(dense(emb), "batch", None, None)


class Attention(nn.Module):
    """Multi-head attention with RMS-normed queries and keys, from x to itself or to a context.

    With `zero_init` the output is zero at initialisation, for residual branches without a gate.

    Raises:
        ValueError: the width is no multiple of the number of heads.
    """

    heads: int
    dtype: Any = jnp.float32
    zero_init: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b l e"] | None = None,
        mask: Bool[Array, "b l"] | None = None,
    ) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"expected a width that {self.heads} heads divide, got {width}")
        shape = (self.heads, width // self.heads)
        if context is None:
            qkv = nn.DenseGeneral((3, *shape), use_bias=False, dtype=self.dtype, name="qkv")(x)
            q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        else:
            q = nn.DenseGeneral(shape, use_bias=False, dtype=self.dtype, name="q")(x)
            kv = nn.DenseGeneral((2, *shape), use_bias=False, dtype=self.dtype, name="kv")(context)
            k, v = kv[:, :, 0], kv[:, :, 1]
        q, k, v = (constrain(part, "batch", None, "heads", None) for part in (q, k, v))
        q = nn.RMSNorm(use_fast_variance=False, dtype=self.dtype, name="q_norm")(q)
        k = nn.RMSNorm(use_fast_variance=False, dtype=self.dtype, name="k_norm")(k)
        out = attend(q, k, v, mask=None if mask is None else mask[:, None, None, :])
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        return nn.DenseGeneral(width, axis=(-2, -1), kernel_init=init, dtype=self.dtype, name="out")(out)
