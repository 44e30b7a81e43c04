"""LAION's aesthetic predictor: an affine map of CLIP's image embedding to how people rate images, about 1 to 10."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from asyncpatch_jax.pretrained.networks import clip
from asyncpatch_jax.pretrained.networks.layers import wide


class AestheticPredictor(nn.Module):
    """Normalised pixels [b, h, w, 3] to ratings [b]; names of CLIP's parameters have the prefix `clip.`."""

    encoder: clip.CLIPVisionModel

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b"]:
        kind = wide(self.encoder.vision.dtype)
        vector = self.encoder.copy(name="clip")(pixels).astype(kind)
        vector = vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)
        return nn.Dense(1, dtype=kind, name="head")(vector)[:, 0]


def from_config(config: Mapping[str, Any], dtype: Any = jnp.float32) -> AestheticPredictor:
    """The module that a config.json describes: settings of a CLIPVisionModelWithProjection under another name.

    Raises:
        ValueError: a setting that is not implemented.
    """
    vision: Any = clip.from_config({**config, "architectures": ["CLIPVisionModelWithProjection"]}, dtype)
    return AestheticPredictor(vision)


def example(module: AestheticPredictor) -> tuple[Array, ...]:
    """The smallest arguments that `module.init` takes, for the shapes of its parameters."""
    return clip.example(module.encoder)
