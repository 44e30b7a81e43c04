"""The predictions that a guidance mixes: by a call each, or all of them by one call on interleaved copies.

Conditional first, then unconditional, then what else a guidance needs.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from asyncpatch_jax import checks
from asyncpatch_jax.types import Denoiser, Image, Prediction, Times

Number = float | Float[Array, ""]
Scale = Number | Float[Array, "_b"]

Branches = Callable[[Image, Times], tuple[Prediction, ...]]
# (conditional, unconditional)
Pair = Callable[[Image, Times], tuple[Prediction, Prediction]]


def two_calls(cond: Denoiser, uncond: Denoiser) -> Pair:
    """The conditional and the unconditional prediction by a network call each."""
    calls = separate_calls(cond, uncond)

    def pair(x: Image, times: Times) -> tuple[Prediction, Prediction]:
        first, second = calls(x, times)
        return first, second

    return pair


def separate_calls(*denoisers: Denoiser) -> Branches:
    """Each denoiser's prediction, by a network call each.

    Raises:
        ValueError: none, or what is no function.
    """
    if not denoisers:
        raise ValueError("expected one denoiser or more, got none")
    for denoise in denoisers:
        check_denoiser(denoise)

    def branches(x: Image, times: Times) -> tuple[Prediction, ...]:
        return tuple(denoise(x, times) for denoise in denoisers)

    return branches


def one_call(denoise: Denoiser, images: int, copies: int = 2) -> Branches:
    """All branches by one network call on `copies` copies of each image, which lie next to each other.

    So a batch that is sharded stays where it is, while conditions one after the other would cost an all-to-all.

    Args:
        denoise: bound to a condition [images * copies] that has an image's branches next to each other:
            conditional, unconditional (and further ones) of the first image, then of the second.
        images: how many images the condition is for; a guidance below may ask for several fields of each.

    Raises:
        ValueError: fewer than one copy, or a batch that is no multiple of `images`.
    """
    check_denoiser(denoise)
    checks.whole("images", images)
    checks.whole("copies", copies)

    def branches(x: Image, times: Times) -> tuple[Prediction, ...]:
        batch = x.shape[0]
        if batch % images:
            raise ValueError(f"expected a batch that is a multiple of {images} images, got {batch}")

        def spread(leaf: Shaped[Array, "_b ..."]) -> Shaped[Array, "_b2 ..."]:
            # what holds for all images at once, the values or the index of a field of few times, stays
            if leaf.shape[0] == 1 and batch > 1:
                return leaf
            # image, branch, field: a condition's rows are repeated for the fields of its branch
            grouped = leaf.reshape(images, 1, batch // images, *leaf.shape[1:])
            copied = jnp.broadcast_to(grouped, (images, copies, *grouped.shape[2:]))
            return copied.reshape(batch * copies, *leaf.shape[1:])

        def branch(leaf: Shaped[Array, "_b ..."], k: int) -> Shaped[Array, "_b2 ..."]:
            return leaf.reshape(images, copies, batch // images, *leaf.shape[1:])[:, k].reshape(-1, *leaf.shape[1:])

        both = denoise(spread(x), jax.tree.map(spread, times))
        return tuple(jax.tree.map(lambda leaf, k=k: branch(leaf, k), both) for k in range(copies))

    return branches


def mixed(pred: Prediction, weight: Float[Array, "_b _h _w 1"], other: Prediction) -> Prediction:
    """`pred + weight (pred - other)`, exactly `pred` at weight 0; with the conditional branch's `aux`.

    x = alpha x0 + sigma eps holds for both, hence for the mixture.
    """
    x0, eps = pred.x0 + weight * (pred.x0 - other.x0), pred.eps + weight * (pred.eps - other.eps)
    return Prediction(x0, eps, pred.aux)


def check_denoiser(denoise: Any) -> None:
    """Refuse what is no function.

    Raises:
        ValueError: with what makes one.
    """
    checks.function("a denoiser", denoise, "(x, times) -> Prediction, as bind(...) makes")


def check_pair(pair: Any) -> None:
    """Refuse what is no function.

    Raises:
        ValueError: with what makes one.
    """
    checks.function("branches", pair, "(x, times) -> predictions, as two_calls(cond, uncond) makes")


def check_scale(name: str, scale: Any, low: checks.Bound = -math.inf, high: checks.Bound = math.inf) -> None:
    """Refuse what is no number within bounds, or array of them; once, where a guidance is made.

    Raises:
        ValueError: by name.
    """
    if not checks.is_array(scale):
        checks.number(name, scale, low, high)
    checks.numbers(name, scale, low, high)


def per_image(scale: Scale, batch: int) -> Float[Array, "_b 1 1 1"]:
    """A scale as [b|1, 1, 1, 1]; repeated where another guidance interleaves copies of each image.

    Raises:
        ValueError: neither one scale nor one for each image.
    """
    scale = jnp.atleast_1d(jnp.asarray(scale, jnp.float32))
    if scale.ndim > 1 or batch % scale.shape[0]:
        raise ValueError(f"expected one guidance scale, or one for each of {batch} images, got shape {scale.shape}")
    if scale.shape[0] > 1:
        scale = jnp.repeat(scale, batch // scale.shape[0])
    return scale.reshape(-1, 1, 1, 1)


def interleave(a: Shaped[Array, "b ..."], b: Shaped[Array, "b ..."]) -> Shaped[Array, "_b2 ..."]:
    """The rows of two batches next to each other: a0, b0, a1, b1, ..."""
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])
