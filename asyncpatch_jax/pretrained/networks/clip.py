"""CLIP's text and image encoders (Radford et al. 2021, arXiv 2103.00020), also OpenCLIP's, as transformers stores them.

Stable Diffusion reads its text with them, and CLIPScore compares an image with a text. Names of parameters are those of
the public files, with the prefix `text_model.`; the layers of an encoder are stacked (`encoder.layers.0:12`).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from asyncpatch_jax.models.attention import attend
from asyncpatch_jax.models.convolution import Conv
from asyncpatch_jax.pretrained.networks.configuration import (
    TRANSFORMERS,
    Count,
    Epsilon,
    Id,
    Length,
    Side,
    Vocabulary,
    Width,
    class_name,
    encoder,
    read,
)
from asyncpatch_jax.pretrained.networks.layers import ACTIVATIONS, LayerNorm, image_tokens, text_tokens
from asyncpatch_jax.schema import Settings


class TextFeatures(NamedTuple):
    """What a text encoder says of a text; jit drops what nobody reads.

    last: after the last layer and the final norm [b, l, d].
    penultimate: before the last layer, without a norm: `hidden_states[-2]` [b, l, d].
    pooled: `last` at the end-of-text token [b, d].
    projected: `pooled` in the space that texts and images share [b, p]; None of an encoder without projection.
    """

    last: Float[Array, "b l d"]
    penultimate: Float[Array, "b l d"]
    pooled: Float[Array, "b d"]
    projected: Float[Array, "b p"] | None = None


class Layer(nn.Module):
    """A pre-norm transformer layer; the carry holds its input beside its output, so that the last one's is at hand."""

    heads: int
    mlp: int
    act: str
    eps: float
    causal: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, carry: tuple[Float[Array, "b n d"], Float[Array, "b n d"]]
    ) -> tuple[tuple[Float[Array, "b n d"], Float[Array, "b n d"]], None]:
        x, _ = carry
        b, n, d = x.shape
        h = LayerNorm(self.eps, dtype=self.dtype, name="layer_norm1")(x)
        q, k, v = (
            nn.Dense(d, dtype=self.dtype, name=f"self_attn.{which}_proj")(h).reshape(b, n, self.heads, -1)
            for which in "qkv"
        )
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((n, n), bool)), (b, 1, n, n)) if self.causal else None
        h = attend(q, k, v, mask).reshape(b, n, d)
        middle = x + nn.Dense(d, dtype=self.dtype, name="self_attn.out_proj")(h)
        h = LayerNorm(self.eps, dtype=self.dtype, name="layer_norm2")(middle)
        h = ACTIVATIONS[self.act](nn.Dense(self.mlp, dtype=self.dtype, name="mlp.fc1")(h))
        return (middle + nn.Dense(d, dtype=self.dtype, name="mlp.fc2")(h), x), None


def _encoder(layers: int, **settings: Any) -> nn.Module:
    scanned = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=layers)
    return scanned(**settings, name=f"encoder.layers.0:{layers}")


class TextModel(nn.Module):
    """The causal text encoder: ids [b, l] to the features of a text."""

    vocab: int
    width: int
    mlp: int
    layers: int
    heads: int
    positions: int
    act: str
    eps: float
    eos: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> TextFeatures:
        names = "token_embedding", "position_embedding"
        x = text_tokens(ids, self.vocab, self.positions, self.width, names, self.dtype)
        settings = {"heads": self.heads, "mlp": self.mlp, "act": self.act, "eps": self.eps, "dtype": self.dtype}
        (x, penultimate), _ = _encoder(self.layers, causal=True, **settings)((x, x))
        last = LayerNorm(self.eps, dtype=self.dtype, name="final_layer_norm")(x)
        # 2 stands in old configurations, where it was never any token's id: the end of text is then the largest id
        ends = jnp.argmax(ids if self.eos == 2 else ids == self.eos, axis=-1)
        pooled = jnp.take_along_axis(last, ends[:, None, None], axis=1)[:, 0]
        return TextFeatures(last, penultimate, pooled)


class VisionModel(nn.Module):
    """The image encoder: normalised pixels [b, h, w, 3] to the embedding of the class token [b, d]."""

    width: int
    mlp: int
    layers: int
    heads: int
    size: int
    patch: int
    act: str
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        patch = (self.patch, self.patch)
        embed = Conv(self.width, patch, patch, use_bias=False, dtype=self.dtype, name="embeddings.patch_embedding")
        first = self.param("embeddings.class_embedding", nn.initializers.normal(0.02), (self.width,), jnp.float32)
        x = image_tokens(pixels, self.size, embed, first, self.dtype)
        places = nn.Embed(x.shape[1], self.width, dtype=self.dtype, name="embeddings.position_embedding")
        x = x + places(jnp.arange(x.shape[1])[None])
        # the name is misspelt in the files
        x = LayerNorm(self.eps, dtype=self.dtype, name="pre_layrnorm")(x)
        settings = {"heads": self.heads, "mlp": self.mlp, "act": self.act, "eps": self.eps, "dtype": self.dtype}
        (x, _), _ = _encoder(self.layers, causal=False, **settings)((x, x))
        return LayerNorm(self.eps, dtype=self.dtype, name="post_layernorm")(x[:, 0])


class CLIPTextModel(nn.Module):
    """A text encoder as a pipeline's folder holds it; `projection` is the width of the shared space, 0 for none."""

    text: TextModel
    projection: int = 0

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> TextFeatures:
        features = self.text.copy(name="text_model")(ids)
        if not self.projection:
            return features
        project = nn.Dense(self.projection, use_bias=False, dtype=self.text.dtype, name="text_projection")
        return features._replace(projected=project(features.pooled))


class CLIPVisionModel(nn.Module):
    """An image encoder with its projection: normalised pixels [b, h, w, 3] to the shared space [b, p]."""

    vision: VisionModel
    projection: int

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        project = nn.Dense(self.projection, use_bias=False, dtype=self.vision.dtype, name="visual_projection")
        return project(self.vision.copy(name="vision_model")(pixels))


class CLIPModel(nn.Module):
    """Both encoders: texts and images as vectors [b, p] of one space, not normalised, and the scale of cosines."""

    text: TextModel
    vision: VisionModel
    projection: int

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b l"], pixels: Float[Array, "b2 h w 3"]
    ) -> tuple[Float[Array, "b p"], Float[Array, "b2 p"], Float[Array, ""]]:
        project = nn.Dense(self.projection, use_bias=False, dtype=self.text.dtype, name="text_projection")
        texts = project(self.text.copy(name="text_model")(ids).pooled)
        project = nn.Dense(self.projection, use_bias=False, dtype=self.vision.dtype, name="visual_projection")
        images = project(self.vision.copy(name="vision_model")(pixels))
        scale = self.param("logit_scale", nn.initializers.constant(2.6592), (), jnp.float32)
        return texts, images, jnp.exp(scale)


Activation = Literal["silu", "swish", "relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu"]
_IGNORED = TRANSFORMERS | {"attention_dropout", "dropout", "initializer_factor", "initializer_range"}


class _Encoder(Settings, frozen=True):
    """What the config.json of either encoder says. Defaults here and below are transformers'."""

    projection_dim: Width = 512
    num_hidden_layers: Count = 12
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5

    ignored: ClassVar[frozenset[str]] = _IGNORED


class TextConfig(_Encoder, frozen=True):
    """A text encoder's config.json."""

    vocab_size: Vocabulary = 49408
    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_attention_heads: Count = 8
    max_position_embeddings: Length = 77
    eos_token_id: Id = 49407

    # what ids mean to the tokenizer is the tokenizer's to say
    ignored: ClassVar[frozenset[str]] = _IGNORED | {"bos_token_id", "pad_token_id"}


class VisionConfig(_Encoder, frozen=True):
    """An image encoder's config.json."""

    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_attention_heads: Count = 12
    image_size: Side = 224
    patch_size: Side = 32

    fixed: ClassVar[Mapping[str, Any]] = {"num_channels": 3}


class Config(Settings, frozen=True):
    """The config.json of both encoders together; old files hold each twice, and the second one counts."""

    text_config: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None
    text_config_dict: dict[str, Any] | None = None
    vision_config_dict: dict[str, Any] | None = None
    projection_dim: Width = 512

    ignored: ClassVar[frozenset[str]] = _IGNORED | {"logit_scale_init_value"}


def _shared(given: _Encoder, dtype: Any) -> dict[str, Any]:
    return {**encoder(given, dtype), "act": given.hidden_act, "eps": given.layer_norm_eps}


def _text(given: TextConfig, dtype: Any) -> TextModel:
    return TextModel(
        given.vocab_size,
        positions=given.max_position_embeddings,
        eos=given.eos_token_id,
        **_shared(given, dtype),
    )


def _vision(given: VisionConfig, dtype: Any) -> VisionModel:
    return VisionModel(size=given.image_size, patch=given.patch_size, **_shared(given, dtype))


def from_config(config: Mapping[str, Any], dtype: Any = jnp.float32) -> nn.Module:
    """The module that a config.json describes, by its `architectures`.

    Raises:
        ValueError: another architecture, or a setting that is not implemented.
    """
    match name := class_name(config):
        case "CLIPTextModel":
            return CLIPTextModel(_text(read(config, TextConfig, name), dtype))
        case "CLIPTextModelWithProjection":
            text = read(config, TextConfig, name)
            return CLIPTextModel(_text(text, dtype), text.projection_dim)
        case "CLIPVisionModelWithProjection":
            vision = read(config, VisionConfig, name)
            return CLIPVisionModel(_vision(vision, dtype), vision.projection_dim)
        case "CLIPModel":
            both = read(config, Config, name)
            text = read({**(both.text_config or {}), **(both.text_config_dict or {})}, TextConfig, "CLIPTextModel")
            images = {**(both.vision_config or {}), **(both.vision_config_dict or {})}
            vision = read(images, VisionConfig, "CLIPVisionModel")
            return CLIPModel(_text(text, dtype), _vision(vision, dtype), both.projection_dim)
    known = "CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection or CLIPModel"
    raise ValueError(f"expected architectures of one of {known} in config.json, got {name!r}")


def example(module: nn.Module) -> tuple[Array, ...]:
    """The smallest arguments that `module.init` takes, for the shapes of its parameters."""
    ids = jnp.zeros((1, 2), jnp.int32)
    if isinstance(module, CLIPTextModel):
        return (ids,)
    pixels = jnp.zeros((1, module.vision.size, module.vision.size, 3))
    return (pixels,) if isinstance(module, CLIPVisionModel) else (ids, pixels)
