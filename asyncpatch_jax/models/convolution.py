"""Convolutions whose gradients are fast on a CPU inside of loops too.

XLA:CPU computes a convolution quickly only where the axes are in the order [b, h, w, c] by [h, w, c, d]. Others it
brings into that order at a program's top level, but not in the body of a loop (its pass `ConvCanonicalization` looks at
the entry computation alone), where they take up to forty times as long. JAX writes the gradients of a convolution with
its axes renamed, so that a loop over blocks, or over the parts of a batch whose gradients are accumulated, falls in
that trap. Here what a CPU differentiates is written so that the gradients come out in the fast order; TPUs and GPUs,
which choose layouts themselves, get JAX's own form.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

_FORWARD = ("NHWC", "HWIO", "NHWC")
# the axes of what moves, such that the transpose of the map, which swaps two of them, has those of _FORWARD
_BY_IMAGE = ("NHWC", "HWOI", "NHWC")
_BY_KERNEL = ("CHWN", "IHWO", "HWNC")

Images = Float[Array, "b h w c"]
Kernel = Float[Array, "kh kw c d"]


def convolution(
    x: Images,
    kernel: Kernel,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    dimension_numbers: Any = None,
    **settings: Any,
) -> Float[Array, "b _h _w d"]:
    """`jax.lax.conv_general_dilated` of images [b, h, w, c] and a kernel [kh, kw, c, d], in all modes of derivatives.

    Args:
        dimension_numbers: only there because flax gives it; axes are as above.
        settings: the others of `conv_general_dilated`.
    """
    conv = partial(jax.lax.conv_general_dilated, window_strides=window_strides, padding=padding, **settings)
    return _differentiable(x, kernel, conv)


# all are functions of the file: one that a call defines is looked at anew by whoever checks types
_Conv = Callable[..., jax.Array]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _differentiable(x: jax.Array, kernel: jax.Array, conv: _Conv) -> jax.Array:
    return _forward(conv, x, kernel)


def _jvp(conv: _Conv, primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dk) = primals, tangents
    out, terms = _forward(conv, x, kernel), []
    if not isinstance(dx, SymbolicZero):
        terms.append(_on_cpu(partial(_by_image, conv), partial(_forward, conv), dx, kernel))
    if not isinstance(dk, SymbolicZero):
        terms.append(_on_cpu(partial(_by_kernel, conv), partial(_of_kernel, conv), dk, x))
    return out, sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(out)


_differentiable.defjvp(_jvp, symbolic_zeros=True)


def _forward(conv: _Conv, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return conv(x, kernel, dimension_numbers=_FORWARD)


def _of_kernel(conv: _Conv, kernel: jax.Array, x: jax.Array) -> jax.Array:
    return _forward(conv, x, kernel)


def _by_image(conv: _Conv, dx: jax.Array, kernel: jax.Array) -> jax.Array:
    return conv(dx, kernel.transpose(0, 1, 3, 2), dimension_numbers=_BY_IMAGE)


def _by_kernel(conv: _Conv, dk: jax.Array, x: jax.Array) -> jax.Array:
    out = conv(x.transpose(3, 1, 2, 0), dk.transpose(2, 0, 1, 3), dimension_numbers=_BY_KERNEL)
    return out.transpose(2, 0, 1, 3)


def _on_cpu(cpu: Callable[..., jax.Array], elsewhere: Callable[..., jax.Array], *args: Array) -> jax.Array:
    """`cpu` where a program is lowered for one; the arguments are kept for the backward pass, not their transposes."""
    return jax.lax.platform_dependent(*args, cpu=jax.checkpoint(cpu, prevent_cse=False), default=elsewhere)


# flax's module in two dimensions, with flax's parameters
Conv = partial(nn.Conv, conv_general_dilated_cls=lambda: convolution)
