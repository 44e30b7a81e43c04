"""Norm, scale and shift by the time field, SiLU: what stands between two convolutions or before a transformer's matmul.

Each has one definition here. XLA computes it in one pass where one time or a few are chosen from elementwise, but not
the gradient of a few: their sums over pixels are passes of their own. To mix more times is a matrix product, whose
result XLA stores. So on TPU a kernel (`kernels.py`), chosen when a program is lowered for a platform, has RMS and layer
norm and that product in one pass, forward and backward, for many times and where a few are differentiated. Group norm,
whose statistics are of whole images, and other devices have the XLA form.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from asyncpatch_jax import sharding, timefield
from asyncpatch_jax.models import kernels
from asyncpatch_jax.models.times import CHOSEN, LevelTimes, modulation

Kind = Literal["group", "rms", "layer"]
Features = Float[Array, "b h w d"]
Channels = Float[Array, "1 1 1 d"]
EPSILON = 1e-6


def normalise(x: Features, kind: Kind) -> Features:
    """x over its root mean square ("rms"), or less its mean over its deviation, per pixel or per group; in float32.

    Groups have all pixels of 1/32 of the channels (or as near to 32 groups as divide them). Two passes: the mean of
    squares less the square of the mean loses all digits where a mean is large against its spread.
    """
    x = x.astype(jnp.float32)
    if kind in ("rms", "layer"):
        return kernels.normalise(x, kind, EPSILON)[0]
    if kind != "group":
        raise ValueError(f"expected norm = 'group' or 'rms', got {kind!r}")
    b, h, w, channels = x.shape
    groups = math.gcd(32, channels)

    def mean(x: Features) -> Float[Array, "b 1 1 d"]:
        per_group = x.reshape(b, h, w, groups, channels // groups).mean((1, 2, 4))
        return jnp.repeat(per_group, channels // groups, axis=1)[:, None, None]

    centred = x - mean(x)
    return centred * jax.lax.rsqrt(mean(centred * centred) + 1e-5)


def modulated_norm(
    x: Features,
    kind: Kind,
    scale: Channels | None,
    bias: Channels | None,
    table: Float[Array, "_b j d2"],
    times: LevelTimes,
    *,
    silu: bool,
    dtype: Any,
    interpret: bool = False,
) -> Features:
    """`norm(x) * (1 + scale) + shift` per pixel (FiLM, Perez et al. 2018), [silu].

    Gradients flow to x, the norm's parameters and the table, and to times that are differentiated too (guidance through
    a field), for which every device has the XLA form.

    Args:
        scale, bias: the norm's own; None for none.
        table: scale and shift of each of the J times [b|1, J, 2 d].
        interpret: run the TPU's kernel as it is, slowly, on any device; for tests.
    """
    times = dataclasses.replace(times, emb=None)
    place = _place(times, table.shape[1], timefield.grid_of(x))
    if place is None or kind == "group" or x.shape[-1] % 128:
        return _reference(x, scale, bias, table, times, kind=kind, silu=silu, dtype=dtype)
    function = functools.partial(_fused, kind, silu, jnp.dtype(dtype), interpret)
    batch = ("batch", None, None, None)
    args = [x.astype(dtype), jnp.ones((1, 1, 1, x.shape[-1])) if scale is None else scale, table.astype(dtype), place]
    names = [batch, (None,) * 4, batch[:3], batch]
    return sharding.per_shard(function, names, batch)(*args)


def _place(times: LevelTimes, count: int, grid: tuple[int, int]) -> Float[Array, "_b h w _j"] | None:
    """Where each pixel is among the J times: positions [b|1, h, w, 1] or weights [b|1, h, w, J].

    None for one time, a few cells, and as many times as pixels, whose table is the map itself.
    """
    if count == 1:
        return None
    if times.weights is not None:
        weights = times.weights
        return jnp.broadcast_to(weights, (weights.shape[0], *grid, count))
    position = times.position
    if position is None:
        cells = times.cells
        if count <= CHOSEN or count >= math.prod(grid) or any(g % n for g, n in zip(grid, cells, strict=True)):
            return None
        position = jnp.arange(count).reshape(1, *cells, 1)
    position = timefield.resize(position.astype(jnp.float32), grid)
    return jnp.broadcast_to(position, (position.shape[0], *grid, 1))


def _times(place: Float[Array, "_b h w _j"], count: int) -> LevelTimes:
    return LevelTimes(None, weights=place) if place.shape[-1] == count else LevelTimes(None, position=place)


def _reference(x, scale, bias, table, times, *, kind: Kind, silu: bool, dtype) -> Features:
    h = normalise(x, kind)
    h = h if scale is None else h * scale
    h = (h if bias is None else h + bias).astype(dtype)
    film_scale, film_shift = modulation(table, times, 2, x.shape[1:3])
    h = h * (1 + film_scale) + film_shift
    return nn.silu(h) if silu else h


def _xla(kind: Kind, silu: bool, dtype, x, scale, table, place) -> Features:
    times = _times(place, table.shape[1])
    return _reference(x, scale, None, table, times, kind=kind, silu=silu, dtype=dtype)


def _on_tpu(interpret: bool, kernel, xla, *args):
    return kernel(*args) if interpret else jax.lax.platform_dependent(*args, tpu=kernel, default=xla)


def _cut(kind: Kind, x: Features, table: Float[Array, "_b j d2"]) -> kernels.Blocks | None:
    b, h, w, d = x.shape
    convolved = kind == "rms" and b % 8 == 0  # layer norm stands before matmuls, which keep an image together
    return kernels.blocks((b, h * w, d), table.shape[1], table.shape[0] > 1, convolved, x.dtype.itemsize)


def _arguments(x, scale, table, place):
    """As `kernels` takes them: x [b, n, d], gain [d], table, positions [b, n, 1] or None, weights [b, n, J] or None."""
    b, h, w, d = x.shape
    place = jnp.broadcast_to(place, (b, *place.shape[1:])).reshape(b, h * w, -1)
    pair = (None, place) if place.shape[-1] == table.shape[1] else (place, None)
    return x.reshape(b, h * w, d), scale.reshape(d), table, *pair


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _fused(kind: Kind, silu: bool, dtype, interpret: bool, x, scale, table, place) -> Features:
    if table.shape[1] <= CHOSEN:
        return _xla(kind, silu, dtype, x, scale, table, place)
    return _one_pass(kind, silu, dtype, interpret, x, scale, table, place)


def _one_pass(kind: Kind, silu: bool, dtype, interpret: bool, x, scale, table, place) -> Features:
    cut = _cut(kind, x, table)
    xla = functools.partial(_xla, kind, silu, dtype)
    if cut is None:
        return xla(x, scale, table, place)

    def kernel(*args) -> Features:
        options = {"cut": cut, "norm": kind, "silu": silu, "eps": EPSILON, "interpret": interpret}
        return kernels.forward(*_arguments(*args), **options).reshape(x.shape)

    return _on_tpu(interpret, kernel, xla, x, scale, table, place)


def _fused_forward(kind: Kind, silu: bool, dtype, interpret: bool, *primals):
    args = [p.value for p in primals]
    # to be differentiated with respect to the times is known when traced, and kept in the residuals' structure
    exact = None if primals[3].perturbed else ()
    return _one_pass(kind, silu, dtype, interpret, *args), (args, exact)


def _fused_backward(kind: Kind, silu: bool, dtype, interpret: bool, residuals, dy):
    args, exact = residuals
    x, scale, table, place = args

    def xla(dy, *args):
        return jax.vjp(functools.partial(_xla, kind, silu, dtype), *args)[1](dy)

    cut = _cut(kind, x, table)
    if isinstance(dy, jax.custom_derivatives.SymbolicZero):
        return tuple(jnp.zeros_like(a) for a in args)
    if cut is None or exact is None:
        return xla(dy, *args)

    def kernel(dy, *args):
        options = {"cut": cut, "norm": kind, "silu": silu, "eps": EPSILON, "interpret": interpret}
        dx, dgain, dtable = kernels.backward(*_arguments(*args), dy.reshape(dy.shape[0], -1, dy.shape[-1]), **options)
        return dx.reshape(x.shape), dgain.reshape(scale.shape).astype(scale.dtype), dtable.astype(table.dtype)

    def known(dy, *args):
        return xla(dy, *args)[:3]

    return (*_on_tpu(interpret, kernel, known, dy, *args), jnp.zeros_like(place))  # times that nobody differentiates


_fused.defvjp(_fused_forward, _fused_backward, symbolic_zeros=True)
