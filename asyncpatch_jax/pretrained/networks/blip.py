"""ImageReward (Xu et al. 2023, arXiv 2304.05977): BLIP's image-grounded text encoder (Li et al. 2022, arXiv 2201.12086)
with one number at its end, what people would think of an image for a prompt.

Names of parameters are those of the published file without its prefix `blip.`; the head is one affine map, see
`metrics.conversion`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from asyncpatch_jax.models.attention import attend
from asyncpatch_jax.models.convolution import Conv
from asyncpatch_jax.pretrained.networks.configuration import (
    TRANSFORMERS,
    Count,
    Length,
    Side,
    Vocabulary,
    Width,
    encoder,
    read,
)
from asyncpatch_jax.pretrained.networks.layers import ACTIVATIONS, LayerNorm, image_tokens, stacked, text_tokens, wide
from asyncpatch_jax.schema import Settings

# timm's norms in the image encoder, BERT's in the text encoder
_VISION_EPS, _TEXT_EPS = 1e-6, 1e-12
_GELU = ACTIVATIONS["gelu"]


class VisionLayer(nn.Module):
    """A pre-norm transformer layer, as timm's `Block`."""

    heads: int
    mlp: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> tuple[Float[Array, "b n d"], None]:
        b, n, d = x.shape
        h = LayerNorm(_VISION_EPS, dtype=self.dtype, name="norm1")(x)
        qkv = nn.Dense(3 * d, dtype=self.dtype, name="attn.qkv")(h).reshape(b, n, 3, self.heads, -1)
        h = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(b, n, d)
        x = x + nn.Dense(d, dtype=self.dtype, name="attn.proj")(h)
        h = LayerNorm(_VISION_EPS, dtype=self.dtype, name="norm2")(x)
        h = _GELU(nn.Dense(self.mlp, dtype=self.dtype, name="mlp.fc1")(h))
        return x + nn.Dense(d, dtype=self.dtype, name="mlp.fc2")(h), None


class VisionTransformer(nn.Module):
    """The image encoder: normalised pixels [b, h, w, 3] to tokens, the class token first [b, n, d]."""

    width: int
    mlp: int
    layers: int
    heads: int
    size: int
    patch: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        patch = (self.patch, self.patch)
        embed = Conv(self.width, patch, patch, dtype=self.dtype, name="patch_embed.proj")
        first = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width), jnp.float32)
        x = image_tokens(pixels, self.size, embed, first, self.dtype)
        x = x + self.param("pos_embed", nn.initializers.normal(0.02), (1, *x.shape[1:]), jnp.float32).astype(self.dtype)
        settings = {"heads": self.heads, "mlp": self.mlp, "dtype": self.dtype}
        x = stacked(VisionLayer, settings, self.layers, "blocks", x)
        return LayerNorm(_VISION_EPS, dtype=self.dtype, name="norm")(x)


class Attention(nn.Module):
    """BERT's attention with its residual and the norm after it; keys and values are of `source`."""

    heads: int
    dtype: Any = jnp.float32
    eps: float = _TEXT_EPS

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], source: Float[Array, "b m e"], mask: Bool[Array, "b 1 1 m"] | None
    ) -> Float[Array, "b n d"]:
        b, n, d = x.shape
        q, k, v = (
            nn.Dense(d, dtype=self.dtype, name=f"self.{name}")(values).reshape(b, values.shape[1], self.heads, -1)
            for name, values in (("query", x), ("key", source), ("value", source))
        )
        h = attend(q, k, v, mask).reshape(b, n, d)
        h = x + nn.Dense(d, dtype=self.dtype, name="output.dense")(h)
        return LayerNorm(self.eps, dtype=self.dtype, name="output.LayerNorm")(h)


class TextLayer(nn.Module):
    """A post-norm transformer layer that attends to the text, then to the image."""

    heads: int
    mlp: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b 1 1 l"], image: Float[Array, "b n e"]
    ) -> tuple[Float[Array, "b l d"], None]:
        x = Attention(self.heads, self.dtype, name="attention")(x, x, mask)
        x = Attention(self.heads, self.dtype, name="crossattention")(x, image, None)
        h = _GELU(nn.Dense(self.mlp, dtype=self.dtype, name="intermediate.dense")(x))
        h = x + nn.Dense(x.shape[-1], dtype=self.dtype, name="output.dense")(h)
        return LayerNorm(_TEXT_EPS, dtype=self.dtype, name="output.LayerNorm")(h), None


class TextEncoder(nn.Module):
    """BERT that sees an image: ids [b, l] and the image's tokens to vectors [b, l, d]."""

    vocab: int
    width: int
    mlp: int
    layers: int
    heads: int
    positions: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"], image: Float[Array, "b n e"]
    ) -> Float[Array, "b l d"]:
        names = "word_embeddings", "position_embeddings"
        x = text_tokens(ids, self.vocab, self.positions, self.width, names, self.dtype)
        x = LayerNorm(_TEXT_EPS, dtype=self.dtype, name="embeddings.LayerNorm")(x)
        settings = {"heads": self.heads, "mlp": self.mlp, "dtype": self.dtype}
        return stacked(TextLayer, settings, self.layers, "encoder.layer", x, mask[:, None, None, :], image)


class ImageReward(nn.Module):
    """Prompts as ids [b, l] with their mask (False at padding), and normalised pixels [b, h, w, 3], to rewards [b].

    Over the authors' data, rewards have about mean 0 and standard deviation 1.
    """

    text: TextEncoder
    vision: VisionTransformer

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"], pixels: Float[Array, "b h w 3"]
    ) -> Float[Array, "b"]:
        image = self.vision.copy(name="visual_encoder")(pixels)
        first = self.text.copy(name="text_encoder")(ids, mask, image)[:, 0]
        return nn.Dense(1, dtype=wide(self.text.dtype), name="head")(first)[:, 0]


class Layers(Settings, frozen=True):
    """What both encoders' settings say; none has a default."""

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Count
    num_attention_heads: Count

    fixed: ClassVar[Mapping[str, Any]] = {"hidden_act": "gelu"}
    ignored: ClassVar[frozenset[str]] = TRANSFORMERS


class TextConfig(Layers, frozen=True):
    vocab_size: Vocabulary
    max_position_embeddings: Length


class VisionConfig(Layers, frozen=True):
    image_size: Side
    patch_size: Side


class Config(Settings, frozen=True):
    """The config.json that `launch.convert_metric` writes."""

    text_config: dict[str, Any]
    vision_config: dict[str, Any]

    ignored: ClassVar[frozenset[str]] = TRANSFORMERS


def from_config(config: Mapping[str, Any], dtype: Any = jnp.float32) -> ImageReward:
    """The module that a config.json describes.

    Raises:
        ValueError: a setting that is missing or not implemented.
    """
    both = read(config, Config, "ImageReward")
    text = read(both.text_config, TextConfig, "ImageReward's text encoder")
    vision = read(both.vision_config, VisionConfig, "ImageReward's image encoder")
    return ImageReward(
        TextEncoder(text.vocab_size, positions=text.max_position_embeddings, **encoder(text, dtype)),
        VisionTransformer(size=vision.image_size, patch=vision.patch_size, **encoder(vision, dtype)),
    )


def example(module: ImageReward) -> tuple[Array, ...]:
    """The smallest arguments that `module.init` takes, for the shapes of its parameters."""
    size = module.vision.size
    return jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool), jnp.zeros((1, size, size, 3))
