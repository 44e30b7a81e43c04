"""CLIP's text and image encoders (Radford et al. 2021, arXiv 2103.00020), also OpenCLIP's, as transformers stores them.

Stable Diffusion reads its text with them, and CLIPScore compares an image with a text. Names of parameters are those of
the public files, with the prefix `text_model.`; the layers of an encoder are stacked (`encoder.layers.0:12`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from asyncpatch_jax.models.attention import attend
from asyncpatch_jax.pretrained.networks.configuration import TRANSFORMERS, check
from asyncpatch_jax.pretrained.networks.layers import ACTIVATIONS, LayerNorm

# transformers' own, which a config.json leaves out
_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_IGNORED = TRANSFORMERS | {"attention_dropout", "dropout", "initializer_factor", "initializer_range"}


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
        if ids.shape[1] > self.positions:
            raise ValueError(f"expected at most {self.positions} tokens, got {ids.shape[1]}")
        x = nn.Embed(self.vocab, self.width, dtype=self.dtype, name="embeddings.token_embedding")(ids)
        places = jnp.arange(ids.shape[1])[None]
        x = x + nn.Embed(self.positions, self.width, dtype=self.dtype, name="embeddings.position_embedding")(places)
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
        if pixels.shape[1:3] != (self.size, self.size):
            raise ValueError(f"expected images of {self.size} x {self.size} pixels, got {pixels.shape[1:3]}")
        b = pixels.shape[0]
        patch = (self.patch, self.patch)
        embed = nn.Conv(self.width, patch, patch, use_bias=False, dtype=self.dtype, name="embeddings.patch_embedding")
        x = embed(pixels.astype(self.dtype)).reshape(b, -1, self.width)
        first = self.param("embeddings.class_embedding", nn.initializers.normal(0.02), (self.width,))
        first = jnp.broadcast_to(first.astype(self.dtype), (b, 1, self.width))
        x = jnp.concatenate([first, x], axis=1)
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
        scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())
        return texts, images, jnp.exp(scale)


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    if config["hidden_act"] not in ACTIVATIONS:
        raise ValueError(f"expected a hidden_act of {sorted(ACTIVATIONS)}, got {config['hidden_act']!r}")
    if config["hidden_size"] % config["num_attention_heads"]:
        heads = config["num_attention_heads"]
        raise ValueError(f"expected a hidden_size that {heads} heads divide, got {config['hidden_size']}")
    return {
        "width": config["hidden_size"],
        "mlp": config["intermediate_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "act": config["hidden_act"],
        "eps": config["layer_norm_eps"],
    }


def _text(config: Mapping[str, Any], dtype: Any) -> TextModel:
    # what ids mean to the tokenizer is the tokenizer's to say
    check(config, "CLIPTextModel", set(_TEXT), {}, _IGNORED | {"bos_token_id", "pad_token_id"})
    config = {**_TEXT, **config}
    if not isinstance(config["eos_token_id"], int):
        raise ValueError(f"expected one eos_token_id, got {config['eos_token_id']!r}")
    return TextModel(
        config["vocab_size"],
        positions=config["max_position_embeddings"],
        eos=config["eos_token_id"],
        dtype=dtype,
        **_shared(config),
    )


def _vision(config: Mapping[str, Any], dtype: Any) -> VisionModel:
    check(config, "CLIPVisionModel", set(_VISION), {"num_channels": 3}, _IGNORED)
    config = {**_VISION, **config}
    return VisionModel(size=config["image_size"], patch=config["patch_size"], dtype=dtype, **_shared(config))


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    # old files hold both, and the second one counts
    return {**(config.get(f"{name}_config") or {}), **(config.get(f"{name}_config_dict") or {})}


def from_config(config: Mapping[str, Any], dtype: Any = jnp.float32) -> nn.Module:
    """The module that a config.json describes, by its `architectures`.

    Raises:
        ValueError: another architecture, or a setting that is not implemented.
    """
    (architecture,) = config.get("architectures") or (None,)
    match architecture:
        case "CLIPTextModel":
            return CLIPTextModel(_text(config, dtype))
        case "CLIPTextModelWithProjection":
            return CLIPTextModel(_text(config, dtype), {**_TEXT, **config}["projection_dim"])
        case "CLIPVisionModelWithProjection":
            return CLIPVisionModel(_vision(config, dtype), {**_VISION, **config}["projection_dim"])
        case "CLIPModel":
            parts = {f"{name}_config{suffix}" for name in ("text", "vision") for suffix in ("", "_dict")}
            check(config, "CLIPModel", parts | {"projection_dim"}, {}, _IGNORED | {"logit_scale_init_value"})
            text, vision = _text(_part(config, "text"), dtype), _vision(_part(config, "vision"), dtype)
            return CLIPModel(text, vision, config.get("projection_dim", 512))
    known = "CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection or CLIPModel"
    raise ValueError(f"expected architectures of one of {known} in config.json, got {config.get('architectures')!r}")


def example(module: nn.Module) -> tuple[Array, ...]:
    """The smallest arguments that `module.init` takes, for the shapes of its parameters."""
    ids = jnp.zeros((1, 2), jnp.int32)
    if isinstance(module, CLIPTextModel):
        return (ids,)
    pixels = jnp.zeros((1, module.vision.size, module.vision.size, 3))
    return (pixels,) if isinstance(module, CLIPVisionModel) else (ids, pixels)
