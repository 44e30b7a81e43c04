"""One pass over an image's cells on TPU: norm, scale and shift by the cell's time, SiLU; forward and backward.

`modulated.py` beside this file says what is computed and has the form that other devices run. Here is how a TPU runs
it. A block is a few images times a few cells, in VMEM together with those images' tables, so that activations
are read and written once whatever the number of times:

1. modulation of each image's cells: weights [J, cells]^T @ table [J, 2d], on the matrix unit, into scratch memory;
2. rows (a few cells at a time, so that values stay in registers): norm, modulation, SiLU;
3. backward: the rows leave their cotangent where the modulation was; weights @ it is added to the table's gradient.

The matrix unit's work is about a tenth of a 3x3 convolution's for any J up to 128.

Where convolutions have 8 images or more on a device, XLA lays their activations out with the images next to the
channels (`{3,0,2,1}`: row, column, image, channel). Another order would be copied on the way in and out, which costs
more than the kernel, so there a block's rows are the same cell of several images (`images` > 1); elsewhere, cells of
one image.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from asyncpatch_jax.models.times import keys

# What a block may take of the 16 MiB of vector memory that the compiler grants a kernel on every TPU since v4.
_VMEM = 11 * 2**20


class Blocks(NamedTuple):
    """How an array is cut: blocks of `images` x `cells`; `rows` (a cell of each image, or cells of one) at a time."""

    images: int
    cells: int
    rows: int


def normalise(x: jax.Array, norm: str, eps: float) -> tuple[jax.Array, jax.Array]:
    """Rows of zero mean ("layer") and unit mean square, and what they were multiplied by."""
    if norm == "layer":
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x * factor, factor


def blocks(shape: tuple[int, int, int], times: int, per_image: bool, interleaved: bool, itemsize: int) -> Blocks | None:
    """The cut of x [b, n, d] that fits in VMEM; None if there is none, as for a width that 128 does not divide."""
    b, n, d = shape
    images = next((k for k in (16, 8) if b % k == 0), 0) if interleaved else 1
    if not images or d % 128:
        return None
    while True:
        step = 1 if images > 1 else 32 // itemsize
        cell = images * d * (8 * itemsize + 1)  # x, dy, dx twice, scale and shift
        tables = (images if per_image else 1) * 2 * d * (2 * itemsize + 8) * 8 * math.ceil(times / 8)
        fits = [c for c in range(step, n + 1, step) if n % c == 0 and tables + c * cell <= _VMEM and c <= 512]
        # short blocks leave the matrix unit waiting for its table
        if fits and (images != 16 or fits[-1] >= min(n, 64)):
            return Blocks(images, fits[-1], images if images > 1 else step)
        if images != 16:
            return Blocks(images, fits[-1], images if images > 1 else step) if fits else None
        images = 8


def _dot(a: jax.Array, b: jax.Array, contract: int) -> jax.Array:
    """Contract axis `contract` of a with axis 0 of b, in float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((contract,), (0,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _weights(ref, image: jax.Array, times: int, given: bool, dtype) -> jax.Array:
    """Weights [J, cells] of one image of the block."""
    if given:
        return ref[image].astype(dtype)
    position = ref[pl.ds(image, 1), :]
    knots = jax.lax.broadcasted_iota(jnp.int32, (times, position.shape[1]), 0).astype(jnp.float32)
    return keys(jnp.abs(position - knots)).astype(dtype)


def _modulations(times: int, cut: Blocks, given: bool, weights, table, maps) -> None:
    """Fill `maps` [cells * images, 2d] with the scale and shift of every row of the block."""

    def image(i: jax.Array, _) -> None:
        w = _weights(weights, i, times, given, table.dtype)
        knots = table[i] if table.shape[0] > 1 else table[0]
        _put(maps, pl.ds(i, cut.cells, stride=_stride(cut)), _dot(w, knots, 0))

    jax.lax.fori_loop(0, cut.images, image, None, unroll=min(cut.images, 4))


def _get(maps, rows) -> jax.Array:
    """Rows [r, 2d] of scratch memory, float32; see `_scratch`."""
    parts = [maps.at[lane][rows, :] for lane in range(maps.shape[0])]
    value = jnp.concatenate(parts, axis=-1)
    if maps.dtype == jnp.float32:
        return value
    halves = value << 16, value & jnp.uint32(0xFFFF0000)
    return jnp.concatenate([jax.lax.bitcast_convert_type(half, jnp.float32) for half in halves], axis=-1)


def _put(maps, rows, value: jax.Array) -> None:
    if maps.dtype != jnp.float32:
        rounded = value.astype(jnp.bfloat16).astype(jnp.float32)
        low, high = jnp.split(jax.lax.bitcast_convert_type(rounded, jnp.uint32), 2, axis=-1)
        value = low >> 16 | high
    for lane in range(maps.shape[0]):
        maps.at[lane][rows, :] = value[:, lane * 128 : (lane + 1) * 128]


def _stride(cut: Blocks) -> int:
    return cut.images + 1 if cut.images > 1 else 1


def _rows(cut: Blocks, k: jax.Array):
    return pl.ds(k * (cut.rows if cut.images == 1 else _stride(cut)), cut.rows)


def _loop(cut: Blocks, width: int, body) -> None:
    """`body(k)` for every group of rows; several at once while they are small, for the sake of the pipelines."""
    count = cut.images * cut.cells // cut.rows
    unroll = max(u for u in (1, 2, 4, 8, 16) if count % u == 0 and (u == 1 or u * cut.rows * width <= 2**15))
    jax.lax.fori_loop(0, count // unroll, lambda k, _: [body(k * unroll + u) for u in range(unroll)] and None, None)


def _forward(times, cut, given, norm, silu, eps, x, gain, table, weights, out, maps) -> None:
    d = x.shape[-1]
    _modulations(times, cut, given, weights, table, maps)

    def group(k: jax.Array) -> None:
        m = _get(maps, _rows(cut, k))
        y, _ = normalise(x[k].astype(jnp.float32), norm, eps)
        y = y * (gain[...] * (1.0 + m[:, :d])) + m[:, d:]
        out[k] = (y * jax.nn.sigmoid(y) if silu else y).astype(out.dtype)

    _loop(cut, d, group)


def _backward(times, cut, given, norm, silu, eps, x, gain, table, weights, dy, dx, dgain, dtable, maps) -> None:
    d = x.shape[-1]
    _modulations(times, cut, given, weights, table, maps)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        dgain[...] = jnp.zeros_like(dgain)
        dtable[...] = jnp.zeros_like(dtable)

    def group(k: jax.Array) -> None:
        m = _get(maps, _rows(cut, k))
        xhat, factor = normalise(x[k].astype(jnp.float32), norm, eps)
        scale = 1.0 + m[:, :d]
        g = dy[k].astype(jnp.float32)
        if silu:
            y = xhat * (gain[...] * scale) + m[:, d:]
            s = jax.nn.sigmoid(y)
            g = g * (s * (1.0 + y * (1.0 - s)))
        gx = g * xhat
        _put(maps, _rows(cut, k), jnp.concatenate([gx * gain[...], g], axis=-1))
        dgain[...] += gx * scale
        g = g * (gain[...] * scale)
        inner = jnp.mean(g * xhat, axis=-1, keepdims=True)
        g = g - jnp.mean(g, axis=-1, keepdims=True) if norm == "layer" else g
        dx[k] = ((g - xhat * inner) * factor).astype(dx.dtype)

    _loop(cut, d, group)

    def image(i: jax.Array, _) -> None:
        w = _weights(weights, i, times, given, table.dtype)
        cotangent = _get(maps, pl.ds(i, cut.cells, stride=_stride(cut))).astype(table.dtype)
        dtable[i if table.shape[0] > 1 else 0] += _dot(w, cotangent, 1)

    jax.lax.fori_loop(0, cut.images, image, None, unroll=min(cut.images, 4))


def _specs(x, gain, table, position, weights, cut: Blocks):
    """Arguments as the kernel wants them, and their blocks: (x, gain, table, weights)."""
    b, n, d = x.shape
    groups, steps = b // cut.images, n // cut.cells
    times = table.shape[1]
    x, spec = _view(x, cut)
    args, specs = [x, gain.astype(jnp.float32)[None]], [spec, pl.BlockSpec((1, d), lambda i, j: (0, 0))]
    per_image = table.shape[0] > 1
    table = table.reshape(-1, cut.images if per_image else 1, times, 2 * d)
    specs.append(pl.BlockSpec((None, *table.shape[1:]), lambda i, j: (i if per_image else 0, 0, 0, 0)))
    # cells come last, in blocks: a block's last axis must be whole or a multiple of 128
    if weights is None:
        w = position.astype(jnp.float32).reshape(groups, cut.images, steps, cut.cells).swapaxes(1, 2)
        specs.append(pl.BlockSpec((None, None, cut.images, cut.cells), lambda i, j: (i, j, 0, 0)))
    else:
        w = weights.astype(table.dtype).reshape(groups, cut.images, steps, cut.cells, times).transpose(0, 2, 1, 4, 3)
        specs.append(pl.BlockSpec((None, None, cut.images, times, cut.cells), lambda i, j: (i, j, 0, 0, 0)))
    return [*args, table, w], specs


def _view(x: jax.Array, cut: Blocks) -> tuple[jax.Array, pl.BlockSpec]:
    """x [b, n, d] as groups of rows, and its blocks."""
    b, n, d = x.shape
    if cut.images > 1:
        return x.swapaxes(0, 1), pl.BlockSpec((cut.cells, cut.images, d), lambda i, j: (j, i, 0))
    view = x.reshape(b, n // cut.rows, cut.rows, d)
    return view, pl.BlockSpec((None, cut.cells // cut.rows, cut.rows, d), lambda i, j: (i, j, 0, 0))


def _unview(y: jax.Array, cut: Blocks, shape: tuple[int, ...]) -> jax.Array:
    return y.swapaxes(0, 1) if cut.images > 1 else y.reshape(shape)


def _scratch(cut: Blocks, d: int, dtype) -> list:
    """Memory for a value of 2d per row: by lanes of 128, since only such rows can be written with a stride.

    Of bfloat16 activations the two halves are bfloat16 in one word, as strided access is to words and takes long.
    """
    packed = dtype == jnp.bfloat16
    shape = ((1 if packed else 2) * d // 128, _stride(cut) * cut.cells, 128)
    return [pltpu.VMEM(shape, jnp.uint32 if packed else jnp.float32)]


def _cost(x, table, w_size: int, passes: int, flops: int) -> pl.CostEstimate:
    times = table.shape[1]
    return pl.CostEstimate(
        flops=flops * x.size + (passes - 1) * 4 * x.size * times,
        transcendentals=x.size,
        bytes_accessed=passes * x.nbytes + table.nbytes * (passes - 1) + w_size,
    )


@functools.partial(jax.jit, static_argnames=("cut", "norm", "silu", "eps", "interpret"))
def forward(x, gain, table, position, weights, *, cut: Blocks, norm: str, silu: bool, eps: float, interpret: bool):
    """x [b, n, d] normalised, modulated and activated; arguments as in `modulated_norm`."""
    b, n, d = x.shape
    args, specs = _specs(x, gain, table, position, weights, cut)
    times = table.shape[1]
    view, spec = args[0], specs[0]
    y = pl.pallas_call(
        functools.partial(_forward, times, cut, weights is not None, norm, silu, eps),
        grid=(b // cut.images, n // cut.cells),
        in_specs=specs,
        out_specs=spec,
        out_shape=jax.ShapeDtypeStruct(view.shape, x.dtype),
        scratch_shapes=_scratch(cut, d, x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=_cost(x, table, args[-1].nbytes, 2, 16),
        interpret=interpret,
        name="modulated_norm",
    )(*args)
    return _unview(y, cut, x.shape)


@functools.partial(jax.jit, static_argnames=("cut", "norm", "silu", "eps", "interpret"))
def backward(x, gain, table, position, weights, dy, *, cut: Blocks, norm: str, silu: bool, eps: float, interpret: bool):
    """Cotangents (dx, dgain float32 [d], dtable float32 of the table's shape) of `forward`."""
    b, n, d = x.shape
    args, specs = _specs(x, gain, table, position, weights, cut)
    times, groups = table.shape[1], b // cut.images
    view, spec = args[0], specs[0]
    sums = jax.ShapeDtypeStruct((groups, *args[2].shape[1:]), jnp.float32)
    sums_spec = pl.BlockSpec((None, *sums.shape[1:]), lambda i, j: (i,) + (0,) * (len(sums.shape) - 1))
    dx, dgain, dtable = pl.pallas_call(
        functools.partial(_backward, times, cut, weights is not None, norm, silu, eps),
        grid=(groups, n // cut.cells),
        in_specs=[*specs, spec],
        out_specs=[spec, pl.BlockSpec((None, cut.rows, d), lambda i, j: (i, 0, 0)), sums_spec],
        out_shape=[
            jax.ShapeDtypeStruct(view.shape, x.dtype),
            jax.ShapeDtypeStruct((groups, cut.rows, d), jnp.float32),
            sums,
        ],
        scratch_shapes=_scratch(cut, d, x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=_cost(x, table, args[-1].nbytes, 3, 32),
        interpret=interpret,
        name="modulated_norm_backward",
    )(*args, _view(dy, cut)[0])
    dtable = dtable.reshape(-1, times, 2 * d)
    if table.shape[0] == 1:
        dtable = jnp.sum(dtable, axis=0, keepdims=True)
    return _unview(dx, cut, x.shape), jnp.sum(dgain, axis=(0, 1)), dtable
