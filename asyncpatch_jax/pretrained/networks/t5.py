"""The encoder of T5 v1.1 (Raffel et al. 2020, arXiv 1910.10683; Shazeer 2020, arXiv 2002.05202).

Names of parameters are those of transformers' files; the blocks are stacked (`encoder.block.0:24`), but not the table
of relative positions, which the first one has and all of them use.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int
from msgspec import Meta

from asyncpatch_jax.pretrained.networks.configuration import (
    TRANSFORMERS,
    Count,
    Epsilon,
    Vocabulary,
    Width,
    class_name,
    read,
)
from asyncpatch_jax.pretrained.networks.layers import ACTIVATIONS, RMSNorm, wide
from asyncpatch_jax.schema import Settings


def buckets(length: int, num: int, furthest: int) -> Int[np.ndarray, "{2*length-1}"]:
    """The bucket of each distance key - query, from 1 - length to length - 1.

    Half of the `num` buckets are for each direction; in each, half are for one distance each, and the others grow with
    the logarithm up to the distance `furthest`. In float32, as PyTorch has it: at powers of two, rounding decides.
    """
    side = num // 2
    exact = side // 2
    distance = np.arange(1 - length, length)
    far = np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(exact)
    scaled = np.log(far) / np.float32(np.log(furthest / exact)) * np.float32(side - exact)
    large = np.minimum(exact + scaled.astype(np.int32), side - 1)
    return np.where(distance > 0, side, 0) + np.where(np.abs(distance) < exact, np.abs(distance), large)


class Block(nn.Module):
    """Self-attention and a gated MLP, each after an RMS norm; logits are not scaled, and positions enter as `bias`.

    The sum of the layers grows to tens of thousands, so it is held in float32, and so are the products added to it.
    """

    heads: int
    head_width: int
    mlp: int
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], bias: Float[Array, "#b h n n"]) -> tuple[Float[Array, "b n d"], None]:
        b, n, d = x.shape
        kind = wide(self.dtype)
        h = RMSNorm(self.eps, self.dtype, name="layer.0.layer_norm")(x)
        inner = self.heads * self.head_width
        q, k, v = (
            self._dense(inner, f"layer.0.SelfAttention.{which}")(h).reshape(b, n, self.heads, -1) for which in "qkv"
        )
        logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=kind) + bias
        shares = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        h = jnp.einsum("bhnm,bmhd->bnhd", shares, v).reshape(b, n, inner)
        x = x + self._dense(d, "layer.0.SelfAttention.o", kind)(h)
        h = RMSNorm(self.eps, self.dtype, name="layer.1.layer_norm")(x)
        gate = ACTIVATIONS["gelu_new"](self._dense(self.mlp, "layer.1.DenseReluDense.wi_0")(h))
        h = gate * self._dense(self.mlp, "layer.1.DenseReluDense.wi_1")(h)
        return x + self._dense(d, "layer.1.DenseReluDense.wo", kind)(h), None

    def _dense(self, features: int, name: str, out: Any = None) -> nn.Dense:
        product = partial(jax.lax.dot_general, preferred_element_type=out)
        return nn.Dense(features, use_bias=False, dtype=self.dtype, dot_general=product, name=name)


class T5Encoder(nn.Module):
    """Ids [b, l] to embeddings of tokens [b, l, d], after the final norm.

    Of a `mask` [b, l], tokens that are False are attended to by none. The pipelines of SD3 and FLUX give none: padding
    counts there.
    """

    vocab: int
    width: int
    mlp: int
    layers: int
    heads: int
    head_width: int
    num_buckets: int
    furthest: int
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"] | None = None) -> Float[Array, "b l d"]:
        kind = wide(self.dtype)
        x = nn.Embed(self.vocab, self.width, dtype=self.dtype, name="shared")(ids).astype(kind)
        length = ids.shape[1]
        name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
        table = nn.Embed(self.num_buckets, self.heads, dtype=kind, name=name)
        of_distance = table(jnp.asarray(buckets(length, self.num_buckets, self.furthest)))
        place = jnp.arange(length)
        bias = of_distance[place[None, :] - place[:, None] + length - 1].transpose(2, 0, 1)[None]
        if mask is not None:
            bias = jnp.where(mask[:, None, None, :], bias, jnp.finfo(kind).min)
        scanned = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers, in_axes=nn.broadcast
        )
        block = scanned(
            self.heads, self.head_width, self.mlp, self.eps, self.dtype, name=f"encoder.block.0:{self.layers}"
        )
        x, _ = block(x, bias)
        return RMSNorm(self.eps, self.dtype, name="encoder.final_layer_norm")(x)


class Config(Settings, frozen=True):
    """An encoder's config.json. Defaults are transformers'; T5 v1.0, which has no gate, does not name its MLP."""

    feed_forward_proj: Literal["gated-gelu"]
    vocab_size: Vocabulary = 32128
    d_model: Width = 512
    d_kv: Width = 64
    d_ff: Width = 2048
    num_layers: Count = 6
    num_heads: Count = 8
    relative_attention_num_buckets: Annotated[int, Meta(ge=4, le=2**12, multiple_of=2)] = 32
    relative_attention_max_distance: Annotated[int, Meta(ge=2, le=2**20)] = 128
    layer_norm_epsilon: Epsilon = 1e-6

    fixed: ClassVar[Mapping[str, Any]] = {"dense_act_fn": "gelu_new", "is_gated_act": True}
    ignored: ClassVar[frozenset[str]] = TRANSFORMERS | {
        "pad_token_id", "bos_token_id", "eos_token_id", "dropout_rate", "classifier_dropout", "initializer_factor",
        "num_decoder_layers", "n_positions", "scale_decoder_outputs",
    }  # fmt: skip


def from_config(config: Mapping[str, Any], dtype: Any = jnp.float32) -> T5Encoder:
    """The encoder that a config.json describes.

    Raises:
        ValueError: another architecture, or a setting that is not implemented.
    """
    if (name := class_name(config)) not in ("T5EncoderModel", "T5ForConditionalGeneration"):
        raise ValueError(f"expected architectures = ['T5EncoderModel'] in config.json, got {name}")
    given = read(config, Config, "T5EncoderModel")
    # half of the buckets of each direction are for one distance each, the others reach from there to the furthest
    if given.relative_attention_max_distance <= given.relative_attention_num_buckets // 4:
        raise ValueError(
            f"expected relative_attention_max_distance > {given.relative_attention_num_buckets // 4}, a quarter of the "
            f"buckets, got {given.relative_attention_max_distance}"
        )
    return T5Encoder(
        vocab=given.vocab_size,
        width=given.d_model,
        mlp=given.d_ff,
        layers=given.num_layers,
        heads=given.num_heads,
        head_width=given.d_kv,
        num_buckets=given.relative_attention_num_buckets,
        furthest=given.relative_attention_max_distance,
        eps=given.layer_norm_epsilon,
        dtype=dtype,
    )


def example(module: T5Encoder) -> tuple[Array, ...]:
    """The smallest arguments that `module.init` takes, for the shapes of its parameters."""
    return (jnp.zeros((1, 2), jnp.int32),)
