"""CLIPScore (Hessel et al. 2021, arXiv 2104.08718): how well an image fits a text, by the cosine of CLIP's embeddings.

Say next to a number which CLIP it is from, which of the three scales it has, and what stands before the text.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8
from msgspec import Struct

from asyncpatch_jax import schema
from asyncpatch_jax.metrics.pixels import MEAN, STD, Pixels, preprocess
from asyncpatch_jax.pretrained.folders.edges import check_tokenizer
from asyncpatch_jax.pretrained.folders.loading import Component, describe_component, load_component
from asyncpatch_jax.pretrained.networks.clip import CLIPModel
from asyncpatch_jax.pretrained.text.tokenizers import Tokenizer, read_tokenizer
from asyncpatch_jax.sampling.batches import batched

BATCH = 32  # images at a time


class ClipScores(NamedTuple):
    """Of each image and its text, [b].

    cosine: of the two embeddings, -1 ... 1.
    score: 2.5 max(cosine, 0), the CLIPScore of Hessel et al.
    percent: 100 max(cosine, 0), which other libraries call CLIP score.
    """

    cosine: Float[np.ndarray, "b"]
    score: Float[np.ndarray, "b"]
    percent: Float[np.ndarray, "b"]


_MEAN, _STD = (MEAN[0], MEAN[1], MEAN[2]), (STD[0], STD[1], STD[2])


class _Preprocessing(Struct, frozen=True):
    """How a preprocessor_config.json makes pixels of images; 3 is Pillow's bicubic."""

    image_mean: tuple[float, float, float] = _MEAN
    image_std: tuple[float, float, float] = _STD
    resample: int = 3


def read_clip(folder: epath.PathLike, dtype: Any = jnp.float32) -> tuple[Component, Tokenizer]:
    """A folder of transformers' `CLIPModel` with its tokenizer, such as clip-vit-large-patch14.

    Raises:
        ValueError: another model, one that normalises or resizes images in another way, or another model's tokenizer.
    """
    folder = epath.Path(folder)
    module = describe_component(folder).module
    if not isinstance(module, CLIPModel):
        raise ValueError(f"expected a CLIPModel in {folder}, got {type(module).__name__}")
    settings = folder / "preprocessor_config.json"
    if settings.exists():
        content = schema.read(settings, _Preprocessing)
        for key, want in (("image_mean", MEAN), ("image_std", STD), ("resample", 3)):
            if not np.allclose(got := getattr(content, key), want, atol=1e-6):
                raise ValueError(f"expected {key} = {want} in {settings}, got {got}")
    tokenizer = read_tokenizer(folder)
    check_tokenizer(tokenizer, module, "this CLIPModel")
    return load_component(folder, dtype=dtype), tokenizer


def clip_score(
    component: Component,
    tokenizer: Tokenizer,
    images: UInt8[np.ndarray, "b h w 3"],
    texts: Sequence[str],
    *,
    prefix: str = "",
) -> ClipScores:
    """How well each image fits its text.

    Args:
        component, tokenizer: from `read_clip`.
        prefix: before each text; Hessel et al. write "A photo depicts ".

    Raises:
        ValueError: not one text for each image.
    """
    cosine = cosines(component, tokenizer, images, [prefix + text for text in texts])
    positive = np.maximum(cosine, 0)
    return ClipScores(cosine, 2.5 * positive, 100 * positive)


def cosines(
    component: Component,
    tokenizer: Tokenizer,
    images: UInt8[np.ndarray, "b h w 3"],
    texts: Sequence[str],
    pixels: Pixels = preprocess,
) -> Float[np.ndarray, "b"]:
    """Cosine of the embeddings of each image and its text, -1 ... 1.

    Args:
        component, tokenizer: from `read_clip`.
        pixels: images of 8 bits and the network's size to what it reads.

    Raises:
        ValueError: not one text for each image.
    """
    if len(images) != len(texts):
        raise ValueError(f"expected a text for each of {len(images)} images, got {len(texts)}")

    def call(part: tuple[np.ndarray, np.ndarray]) -> Float[Array, "b"]:
        return _cosines(component.module, pixels, component.params, *part)

    parts = batched(call, (tokenizer.encode(texts).ids, images), batch=min(BATCH, len(images)))
    return np.concatenate(parts)[: len(images)].astype(np.float32)


@partial(jax.jit, static_argnums=(0, 1))
def _cosines(
    module: nn.Module, pixels: Pixels, params: Any, ids: Int[Array, "b l"], images: UInt8[Array, "b h w 3"]
) -> Float[Array, "b"]:
    vectors: Any = module.apply({"params": params}, ids, pixels(images, module.vision.size))[:2]
    kind = jnp.promote_types(vectors[0].dtype, jnp.float32)
    texts, pictures = (v.astype(kind) / jnp.linalg.norm(v.astype(kind), axis=-1, keepdims=True) for v in vectors)
    return (texts * pictures).sum(-1)
