"""BERT (Devlin et al. 2019, arXiv 1810.04805) and RoBERTa (Liu et al. 2019, arXiv 1907.11692), up to one layer.

Names of parameters are those of transformers' `BertModel` and `RobertaModel`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from asyncpatch_jax.pretrained.networks.blip import Attention
from asyncpatch_jax.pretrained.networks.configuration import (
    TRANSFORMERS,
    Count,
    Epsilon,
    Id,
    Length,
    Vocabulary,
    Width,
    encoder,
    read,
)
from asyncpatch_jax.pretrained.networks.layers import ACTIVATIONS, LayerNorm, stacked
from asyncpatch_jax.schema import Settings

_GELU = ACTIVATIONS["gelu"]


class Layer(nn.Module):
    """A post-norm transformer layer."""

    heads: int
    mlp: int
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], mask: Bool[Array, "b 1 1 l"]) -> tuple[Float[Array, "b l d"], None]:
        x = Attention(self.heads, self.dtype, self.eps, name="attention")(x, x, mask)
        h = _GELU(nn.Dense(self.mlp, dtype=self.dtype, name="intermediate.dense")(x))
        h = x + nn.Dense(x.shape[-1], dtype=self.dtype, name="output.dense")(h)
        return LayerNorm(self.eps, dtype=self.dtype, name="output.LayerNorm")(h), None


class Bert(nn.Module):
    """Ids [b, l] with their mask (False at padding, which comes last) to vectors after the last layer [b, l, d].

    first: the place of the first token: RoBERTa's tables begin with places of padding.
    """

    vocab: int
    width: int
    mlp: int
    layers: int
    heads: int
    positions: int
    types: int
    first: int
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        sizes = {"word": self.vocab, "position": self.positions, "token_type": self.types}
        tables = {
            name: nn.Embed(size, self.width, dtype=self.dtype, name=f"embeddings.{name}_embeddings")
            for name, size in sizes.items()
        }
        # padding may reach over the table's end; nobody looks at it
        places = jnp.minimum(self.first + jnp.arange(ids.shape[1])[None], self.positions - 1)
        x = tables["word"](ids) + tables["position"](places) + tables["token_type"](jnp.zeros_like(places))
        x = LayerNorm(self.eps, dtype=self.dtype, name="embeddings.LayerNorm")(x)
        settings = {"heads": self.heads, "mlp": self.mlp, "eps": self.eps, "dtype": self.dtype}
        return stacked(Layer, settings, self.layers, "encoder.layer", x, mask[:, None, None, :])


class Config(Settings, frozen=True):
    """A config.json of transformers."""

    model_type: Literal["bert", "roberta"]
    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Count
    num_attention_heads: Count
    max_position_embeddings: Length
    type_vocab_size: Id = 2
    layer_norm_eps: Epsilon = 1e-12
    pad_token_id: Id | None = 0

    fixed: ClassVar[Mapping[str, Any]] = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
    ignored: ClassVar[frozenset[str]] = (TRANSFORMERS - {"model_type"}) | {
        *("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout", "initializer_range"),
        *("bos_token_id", "eos_token_id", "gradient_checkpointing", "is_cross_attention_supported"),
    }


def from_config(config: Mapping[str, Any], layers: int, dtype: Any = jnp.float32) -> Bert:
    """The module that a config.json describes, with so many of its layers.

    Raises:
        ValueError: a setting that is missing or not implemented, or fewer layers than that.
    """
    given = read(config, Config, "BERT")
    if not 0 <= layers <= given.num_hidden_layers:
        raise ValueError(f"expected a layer from 0 to {given.num_hidden_layers}, got {layers}")
    first = (given.pad_token_id or 0) + 1 if given.model_type == "roberta" else 0
    tables = {"positions": given.max_position_embeddings, "types": given.type_vocab_size, "first": first}
    return Bert(given.vocab_size, eps=given.layer_norm_eps, **{**encoder(given, dtype), **tables, "layers": layers})


def kept(name: str, layers: int) -> str | None:
    """The module's name of a checkpoint's tensor; None for one of a later layer, or of a head that predicts words."""
    name = name.removeprefix("bert.").removeprefix("roberta.")
    start, *rest = name.split(".")
    if start not in ("embeddings", "encoder") or name == "embeddings.position_ids":
        return None
    later = start == "encoder" and len(rest) > 1 and rest[1].isdecimal() and int(rest[1]) >= layers
    return None if later else name
