"""Guidance whose scale differs from one thing in the image to the next."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from asyncpatch_jax import timefield
from asyncpatch_jax.sampling.guidance.branches import Pair, Scale, check_pair, check_scale, mixed, per_image
from asyncpatch_jax.sampling.schedules.masks import nearest
from asyncpatch_jax.types import Denoiser, Image, Prediction, Times

Maps = Float[Array, "b gh gw k"]

# of the authors' code: how often self-attention completes a segment, the bounds of a segment's rate, and what the
# product of rate and scale may not pass
_ROUNDS, _LOW, _HIGH, _MOST = 4, 0.8, 3.0, 15.0
_BLUR = np.exp(-0.5 * (np.arange(-1, 2) / 0.5) ** 2)


def semantic_aware(pair: Pair, scale: Scale) -> Denoiser:
    """Semantic-aware guidance, S-CFG (Shen et al. 2024, arXiv 2404.05384): `u + w rate (c - u)`, a rate per segment.

    A cell belongs to the token of the prompt that it attends to most, compared with how much the whole image does. The
    rate of a token's segment is the mean of |eps_c - eps_u| over the foreground over that of the segment, in .8 ... 3
    and at most 15 / w, so that all segments are guided as strongly as the foreground: the cells that are not the start
    token's.

    The attention is that of the conditional prediction: `aux["maps"]` with one object per token of the prompt, the
    start token first, and `aux["self_maps"]` [b, n, n], both means over layers (UNets and Stable Diffusion 3 give them;
    of joint attention these are the image-text and the image-image block). The authors' code, which is for UNets,
    multiplies the two layer by layer, at two resolutions, and takes the foreground from the unconditional half.

    Args:
        scale: w, one number or one per image [b].

    Raises:
        ValueError: a negative scale, a network without these maps, or maps of a single token.
    """
    check_pair(pair)
    check_scale("scale", scale, 0)

    def denoise(x: Image, times: Times) -> Prediction:
        c, u = pair(x, times)
        w = per_image(scale, x.shape[0])
        maps = _maps(c, "maps")
        owner, foreground = segments(maps, _maps(c, "self_maps"))
        strength = jnp.linalg.norm((c.eps - u.eps).astype(jnp.float32), axis=-1, keepdims=True)
        return mixed(c, w * rates(strength, owner, foreground, w, maps.shape[-1]) - 1.0, u)

    return denoise


def segments(maps: Maps, self_maps: Float[Array, "b n n"]) -> tuple[Int[Array, "b gh gw 1"], Float[Array, "b gh gw 1"]]:
    """The token [b, gh, gw, 1] that each cell belongs to, and 1 where that is foreground.

    Attention is first carried on by self-attention A, as the mean of `A m, A^2 m, A^3 m, A^4 m`, and blurred.

    Raises:
        ValueError: maps of one token alone, or self-attention between other cells.
    """
    batch, height, width, tokens = maps.shape
    if tokens < 2 or self_maps.shape != (batch, height * width, height * width):
        raise ValueError(
            "expected attention maps of the start token and the prompt's tokens, and self-attention between their "
            f"cells, got shapes {maps.shape} and {self_maps.shape}"
        )
    step = maps.astype(jnp.float32).reshape(batch, -1, tokens)
    carried = jnp.zeros_like(step)
    for _ in range(_ROUNDS):
        step = jnp.einsum("bnm,bmk->bnk", self_maps.astype(jnp.float32), step, precision="highest")
        carried = carried + step / _ROUNDS
    maps = _blurred(carried.reshape(batch, height, width, tokens))
    start_or_text = jnp.concatenate([maps[..., :1], maps[..., 1:].sum(-1, keepdims=True)], -1)
    start, text = jnp.split(_relative(start_or_text), 2, axis=-1)
    owner = _relative(maps).argmax(-1, keepdims=True).astype(jnp.int32)
    return owner, (text > start).astype(jnp.float32)


def rates(
    strength: Float[Array, "b h w 1"],
    owner: Int[Array, "b gh gw 1"],
    foreground: Float[Array, "b gh gw 1"],
    scale: Float[Array, "_b 1 1 1"],
    tokens: int,
) -> Float[Array, "b h w 1"]:
    """How much more each pixel is guided than by `scale` alone, blurred over the seams."""
    grid = timefield.grid_of(strength)
    owner, foreground = nearest(owner, grid), nearest(foreground, grid)

    def of_segments(strength: jax.Array, own: jax.Array) -> jax.Array:
        total, count = (
            jax.ops.segment_sum(value, own, num_segments=tokens) for value in (strength, jnp.ones_like(strength))
        )
        return (total / jnp.maximum(count, 1.0))[own]

    flat = (strength.shape[0], -1)
    of_segment = jax.vmap(of_segments)(strength.reshape(flat), owner.reshape(flat)).reshape(strength.shape)
    axes = (1, 2, 3)
    of_foreground = (strength * foreground).sum(axes) / jnp.maximum(foreground.sum(axes), 1.0)
    rate = of_foreground.reshape(-1, 1, 1, 1) / jnp.maximum(of_segment, 1e-8)
    return _blurred(jnp.minimum(jnp.clip(rate, _LOW, _HIGH), _MOST / scale))


def _maps(pred: Prediction, name: str) -> Float[Array, "b ..."]:
    if name not in pred.aux:
        raise ValueError(
            f'expected a network that gives aux["{name}"], as UNets and Stable Diffusion 3 do when their condition '
            f"names the prompt's tokens in `spans`, got {sorted(pred.aux) or 'nothing'} beside the image"
        )
    return pred.aux[name]


def _relative(maps: Maps) -> Maps:
    return maps / (maps.mean((1, 2), keepdims=True) + 1e-8)


def _blurred(maps: Maps) -> Maps:
    """A Gaussian of half a cell over 3x3 cells, as the authors' code."""
    padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    height, width = maps.shape[1:3]
    kernel = (_BLUR / _BLUR.sum()).tolist()
    rows = sum(weight * padded[:, k : k + height] for k, weight in enumerate(kernel))
    return sum(weight * rows[:, :, k : k + width] for k, weight in enumerate(kernel))
