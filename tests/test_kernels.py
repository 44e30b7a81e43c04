"""The TPU's kernel, interpreted, against the XLA form of the same function: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax.models import kernels
from asyncpatch_jax.models.modulated import modulated_norm
from asyncpatch_jax.models.times import LevelTimes


def case(b, h, w, d, j, *, shared=False, mixed=False, dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    x, scale = normal(b, h, w, d).astype(dtype), 1 + np.float32(0.1) * normal(1, 1, 1, d)
    table = normal(1 if shared else b, j, 2 * d).astype(dtype)
    if j == 1:
        times = LevelTimes(None, grid=(1, 1))
    elif mixed:
        weights = np.exp(normal(b, h, w, j))
        times = LevelTimes(None, weights=weights / weights.sum(-1, keepdims=True))
    elif j <= 12:
        times = LevelTimes(None, position=rng.integers(0, j, (b, h, w, 1), np.int32))
    else:
        times = LevelTimes(None, position=rng.uniform(1, j - 2, (b, h, w, 1)).astype(np.float32))
    return jax.device_put((x, scale, table, times))


def run(interpret, x, scale, table, times, kind, silu):
    """(value, gradients with respect to x, scale and table), from the kernel or from XLA."""

    def call(x, scale, table):
        own = None if kind == "layer" else scale
        return modulated_norm(x, kind, own, None, table, times, silu=silu, dtype=x.dtype, interpret=interpret)

    @jax.jit
    def with_gradients(cotangent, *args):
        y, pull = jax.vjp(call, *args)
        return y, *pull(cotangent)

    cotangent = np.random.default_rng(1).normal(size=x.shape).astype(x.dtype)
    y, *gradients = with_gradients(cotangent, x, scale, table)
    assert y.dtype == x.dtype
    return y, *gradients


def both(*args):
    """`run` by the kernel and by XLA."""
    return run(True, *args), run(False, *args)


def close(got, expected, share):
    got, expected = (np.asarray(a, np.float32) for a in (got, expected))
    assert np.abs(got - expected).max() <= share * max(np.abs(expected).max(), 1e-3)


@pytest.mark.parametrize(
    ("shape", "options", "kind", "block"),
    [
        ((8, 3, 8, 128, 2), {}, "rms", (8, 24, 8)),
        ((8, 3, 8, 128, 2), {}, "layer", (1, 8, 8)),
        ((16, 3, 3, 128, 12), {"mixed": True}, "rms", (16, 9, 16)),
        ((16, 4, 4, 128, 4), {"mixed": True}, "layer", (1, 16, 8)),
        ((3, 4, 4, 256, 12), {"shared": True}, "rms", (1, 8, 8)),
        ((3, 4, 4, 256, 12), {"shared": True}, "layer", (1, 16, 8)),
        ((2, 3, 8, 128, 67), {"shared": True}, "rms", (1, 24, 8)),
        ((8, 3, 5, 128, 67), {}, "rms", (8, 5, 8)),
        ((8, 3, 5, 128, 67), {"mixed": True, "shared": True}, "rms", (8, 3, 8)),
        ((8, 3, 8, 128, 67), {"mixed": True, "shared": True}, "layer", (1, 8, 8)),
    ],
)
def test_kernel_equals_xla(monkeypatch, shape, options, kind, block):
    """Also where an image's cells are several blocks, as the memory of a chip makes them for larger images."""
    x, scale, table, times = case(*shape, **options)
    b, h, w, d, j = shape
    asked = (b, h * w, d), j, not options.get("shared"), kind == "rms" and b % 8 == 0, 4
    while kernels.blocks(*asked).cells > block[1]:
        monkeypatch.setattr(kernels, "_VMEM", 0.99 * kernels._VMEM)
    assert kernels.blocks(*asked) == block
    for got, expected in zip(*both(x, scale, table, times, kind, kind == "rms"), strict=True):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        close(got, expected, 1e-5)


@pytest.mark.parametrize(("b", "grid", "j"), [(16, (3, 5), 12), (8, (3, 5), 67), (2, (4, 8), 67)])
def test_bfloat16(b, grid, j):
    """Against XLA in float32: the kernel reduces in float32 and rounds activations and weights once."""
    x, scale, table, times = case(b, *grid, 128, j, dtype=jnp.bfloat16)
    got = run(True, x, scale, table, times, "rms", True)
    x, table = (jax.device_put(np.asarray(part, np.float32)) for part in (x, table))
    exact = run(False, x, scale, table, times, "rms", True)
    for mine, truth in zip(got, exact, strict=True):
        close(mine, truth, 0.03)


def test_sizes_that_do_not_fit_run_by_xla():
    for shape, j in [((2, 15, 128), 9), ((2, 16, 96), 9), ((2, 16, 2**20), 67)]:
        assert kernels.blocks(shape, j, True, False, 4) is None
    x, scale, table, times = case(2, 3, 5, 96, 67)
    for got, expected in zip(*both(x, scale, table, times, "rms", True), strict=True):
        close(got, expected, 1e-5)


def test_times_have_gradients_when_asked_for():
    x, scale, table, times = case(8, 3, 5, 128, 16)

    def loss(position, interpret):
        at = times.replace(position=position)
        y = modulated_norm(x, "rms", scale, None, table, at, silu=True, dtype=x.dtype, interpret=interpret)
        return jnp.sum(jnp.sin(y))

    got, expected = (
        jax.jit(jax.grad(loss), static_argnums=1)(times.position, interpret) for interpret in (True, False)
    )
    assert np.abs(np.asarray(expected)).max() > 0
    close(got, expected, 1e-5)


def test_inside_scan_and_remat():
    x, scale, table, times = case(8, 3, 5, 128, 67)

    def loss(scale, interpret):
        @jax.checkpoint
        def block(h, _):
            y = modulated_norm(h, "rms", scale, None, table, times, silu=True, dtype=x.dtype, interpret=interpret)
            return h + y, None

        return jnp.sum(jax.lax.scan(block, x, None, length=3)[0])

    got, expected = (jax.jit(jax.grad(loss), static_argnums=1)(scale, interpret) for interpret in (True, False))
    close(got, expected, 1e-5)


@pytest.mark.parametrize("cells", [(1, 3), (6, 1), (3, 3)])
def test_a_coarser_field_is_laid_out_over_the_image(cells):
    """Also of one row or column."""
    x, scale, table, _ = case(8, 6, 3, 128, cells[0] * cells[1])
    at = np.arange(cells[0] * cells[1], dtype=np.float32).reshape(1, *cells, 1)
    at = jax.device_put(at.repeat(6 // cells[0], 1).repeat(3 // cells[1], 2))
    expected = run(False, x, scale, table, LevelTimes(None, position=at), "rms", True)
    for form in both(x, scale, table, LevelTimes(None, grid=cells), "rms", True):
        for got, want in zip(form, expected, strict=True):
            close(got, want, 1e-5)
