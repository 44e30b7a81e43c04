"""CLIPScore (Hessel et al. 2021, arXiv 2104.08718): how well an image fits a text, by the cosine of CLIP's embeddings.

Say next to a number which CLIP it is from, which of the three scales it has, and what stands before the text.
"""

import json
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from asyncpatch_jax.pretrained.clip import CLIPModel
from asyncpatch_jax.pretrained.loading import Component, load_component
from asyncpatch_jax.pretrained.tokenizers import Tokenizer, read_tokenizer

# of OpenAI's training images; OpenCLIP's weights have them too
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_BATCH = 32


class ClipScores(NamedTuple):
    """Of each image and its text, [b].

    cosine: of the two embeddings, -1 ... 1.
    score: 2.5 max(cosine, 0), the CLIPScore of Hessel et al.
    percent: 100 max(cosine, 0), which other libraries call CLIP score.
    """

    cosine: Float[np.ndarray, "b"]
    score: Float[np.ndarray, "b"]
    percent: Float[np.ndarray, "b"]


def read_clip(folder: epath.PathLike, dtype: Any = jnp.float32) -> tuple[Component, Tokenizer]:
    """A folder of transformers' `CLIPModel` with its tokenizer, such as clip-vit-large-patch14.

    Raises:
        ValueError: another model, or one that normalises or resizes images in another way.
    """
    folder = epath.Path(folder)
    component = load_component(folder, dtype=dtype)
    if not isinstance(component.module, CLIPModel):
        raise ValueError(f"expected a CLIPModel in {folder}, got {type(component.module).__name__}")
    settings = folder / "preprocessor_config.json"
    if settings.exists():
        content = json.loads(settings.read_text())
        for key, want in (("image_mean", _MEAN), ("image_std", _STD), ("resample", 3)):
            if not np.allclose(content.get(key, want), want, atol=1e-6):
                raise ValueError(f"expected {key} = {want} in {settings}, got {content[key]}")
    return component, read_tokenizer(folder)


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
    if len(images) != len(texts):
        raise ValueError(f"expected a text for each of {len(images)} images, got {len(texts)}")
    ids = tokenizer.encode([prefix + text for text in texts]).ids
    parts = []
    for start in range(0, len(images), _BATCH):
        # the last batch is filled up, so that all have one shape
        rows = np.minimum(np.arange(start, start + min(_BATCH, len(images))), len(images) - 1)
        parts.append(_cosines(component.module, component.params, ids[rows], images[rows]))
    cosine = np.concatenate([np.asarray(part, np.float32) for part in parts])[: len(images)]
    positive = np.maximum(cosine, 0)
    return ClipScores(cosine, 2.5 * positive, 100 * positive)


@partial(jax.jit, static_argnums=0)
def _cosines(
    module: nn.Module, params: Any, ids: Int[Array, "b l"], images: UInt8[Array, "b h w 3"]
) -> Float[Array, "b"]:
    vectors = module.apply({"params": params}, ids, preprocess(images, module.vision.size))[:2]
    kind = jnp.promote_types(vectors[0].dtype, jnp.float32)
    texts, pictures = (v.astype(kind) / jnp.linalg.norm(v.astype(kind), axis=-1, keepdims=True) for v in vectors)
    return (texts * pictures).sum(-1)


def preprocess(images: UInt8[Array, "b h w 3"], size: int) -> Float[Array, "b {size} {size} 3"]:
    """Images as CLIP was trained on them: the shorter side to `size`, the centre square, normalised colours.

    Resized as by the Pillow of the time of its training: bicubic and antialiased, along rows before along columns, each
    rounded to 8 bits. (Pillow 13 begins with the columns of tall images: where values overshoot 8 bits, it differs.)
    """
    height, width = images.shape[1:3]
    short = min(height, width)
    new = (size * height // short, size * width // short)
    pixels = images.astype(jnp.float32)
    pixels = _rounded(jnp.einsum("bhwc,ow->bhoc", pixels, bicubic(width, new[1]), precision="highest"))
    pixels = _rounded(jnp.einsum("bhwc,oh->bowc", pixels, bicubic(height, new[0]), precision="highest"))
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    pixels = pixels[:, top : top + size, left : left + size] / 255
    mean, std = (jnp.array(values, jnp.float32).reshape(1, 1, 1, 3) for values in (_MEAN, _STD))
    return (pixels - mean) / std


def _rounded(pixels: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.clip(jnp.floor(pixels + 0.5), 0, 255)


@lru_cache(maxsize=32)
def bicubic(before: int, after: int) -> Float[np.ndarray, "{after} {before}"]:
    """The matrix that resizes a line of pixels as Pillow's BICUBIC.

    Keys' kernel with a = -1/2, stretched to the pixels of the coarser line; what reaches over the edge is left out.
    """
    step = before / after
    stretch = max(step, 1.0)
    centre = (np.arange(after)[:, None] + 0.5) * step
    place = np.arange(before)[None, :]
    x = np.abs((place + 0.5 - centre) / stretch)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    # Pillow keeps whole pixels between these bounds
    low, high = np.trunc(centre - 2 * stretch + 0.5), np.trunc(centre + 2 * stretch + 0.5)
    weights = np.where((place >= low) & (place < high), weights, 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
