"""The TPU's kernel, interpreted, against XLA's attention; and which form a platform gets."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax.models import attention
from asyncpatch_jax.models.layers import Attention
from tests import drawn


def heads(b, n, h, d, dtype=jnp.float32):
    return [jax.device_put(np.asarray(part).astype(dtype)) for part in drawn.normal(4, b, n, h, d)]


def run(form, q, k, v, cotangent):
    """(value, gradients)."""

    @jax.jit
    def both(q, k, v, cotangent):
        y, pull = jax.vjp(form, q, k, v)
        return y, *pull(cotangent)

    y, *gradients = both(q, k, v, cotangent)
    assert y.dtype == q.dtype
    return y, *gradients


def close(got, expected, share):
    for a, b in zip(got, expected, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= share * np.abs(b).max()


interpreted = partial(attention.flash, (128, 128), interpret=True)
sums_of_kernel, plain_sums = jax.jit(partial(interpreted, log_sums=True)), jax.jit(attention.plain_sums)


# one block, several blocks, heads that are no power of two, heads as wide as a TPU's lanes, lengths that are padded
@pytest.mark.parametrize(("n", "d"), [(128, 16), (384, 8), (128, 72), (256, 128), (200, 16)])
def test_kernel_equals_xla(n, d):
    args = heads(2, n, 3, d)
    close(run(interpreted, *args), run(jax.nn.dot_product_attention, *args), 1e-5)


def test_bfloat16():
    """Against XLA in float32."""
    args = heads(2, 256, 2, 24, jnp.bfloat16)
    exact = run(jax.nn.dot_product_attention, *(jax.device_put(np.asarray(a, np.float32)) for a in args))
    close(run(interpreted, *args), exact, 0.02)


def test_long_sequences_without_the_kernel_equal_xla():
    args = heads(1, attention.FLASH_FROM, 2, 8, jnp.bfloat16)
    close(run(attention.attend, *args), run(jax.nn.dot_product_attention, *args), 0.01)


def weights(q, k):
    """All pairs' softmax weights, the mean over heads, in float64."""
    q, k = (np.asarray(x, np.float64) for x in (q, k))
    shares = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1]))
    return (shares / shares.sum(-1, keepdims=True)).mean(1)


COLUMNS = jax.device_put(np.int32([[0, 5, 5], [130, 6, 40]]))


# as long as the queries, or not; of padded lengths or not
@pytest.mark.parametrize(("n", "m"), [(256, 256), (150, 150), (128, 200), (150, 256)])
def test_log_sums_of_the_kernel(n, m):
    q, (k, v) = heads(2, n, 3, 8)[0], heads(2, m, 3, 8)[1:3]
    for a, b in zip(sums_of_kernel(q, k, v), plain_sums(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [False, True])
def test_columns_are_columns_of_the_softmax(monkeypatch, kernel):
    q, k, v, _ = heads(2, 150, 3, 8)
    if kernel:

        def by_kernel(q, k, v, mask, default, out, log_sums):
            return interpreted(q, k, v, log_sums=log_sums)

        monkeypatch.setattr(attention, "_by_platform", by_kernel)
    # a function of its own, whose trace no other form's is taken for
    out, shares = jax.jit(lambda *args: attention.attend_columns(*args))(q, k, v, COLUMNS)
    expected = np.stack([w[:, c] for w, c in zip(weights(q, k), np.asarray(COLUMNS), strict=True)])
    np.testing.assert_allclose(shares, expected, rtol=1e-5)
    np.testing.assert_allclose(out, jax.jit(attention.plain)(q, k, v), rtol=1e-5, atol=1e-6)


def test_float64_stays_so():
    with jax.enable_x64(True):
        q, k, v = np.random.default_rng(0).normal(size=(3, 1, 9, 2, 4))
        logits = np.einsum("bnhd,bmhd->bhnm", q, k) / 2
        sums = np.exp(logits).sum(-1)
        out, log_sums = plain_sums(q, k, v)
        np.testing.assert_allclose(log_sums, np.log(sums).swapaxes(1, 2), rtol=1e-14)
        exact = np.einsum("bhnm,bmhd->bnhd", np.exp(logits) / sums[..., None], v)
        np.testing.assert_allclose(out, exact, rtol=1e-13, atol=1e-15)


def test_columns_under_a_mask():
    """A masked key has no share, and what is left adds up to 1."""
    q, k, v, _ = heads(2, 8, 2, 4)
    mask = (np.arange(8) < np.array([[3], [8]]))[:, None, None, :]
    columns = np.tile(np.arange(8, dtype=np.int32), (2, 1))
    shares = np.asarray(jax.jit(attention.attend_columns)(q, k, v, columns, mask)[1])
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-6)
    assert not shares[0, :, 3:].any()
    np.testing.assert_allclose(shares[:1, :, :3], weights(np.asarray(q)[:1], np.asarray(k)[:1, :3]), rtol=1e-5)


@pytest.mark.usefixtures("cudnn")
def test_long_sequences_columns_come_from_the_platforms_kernel():
    n = attention.FLASH_FROM + 64
    q, columns = jax.ShapeDtypeStruct((2, n, 2, 64), jnp.bfloat16), jax.ShapeDtypeStruct((2, 3), jnp.int32)
    for platform, call in [("tpu", "tpu_custom_call"), ("cuda", "__cudnn$fmha")]:
        traced = jax.jit(attention.attend_columns).trace(q, q, q, columns)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("@" + call) == 1
        assert f"{n}x{n}x" not in text


def _lowered(platform, shape=(2, attention.FLASH_FROM, 2, 64), dtype=jnp.bfloat16, mask=None, grad=False):
    q = jax.ShapeDtypeStruct(shape, dtype)
    form = partial(attention.attend, mask=mask)
    if grad:
        form = jax.grad(lambda *qkv: attention.attend(*qkv, mask=mask).astype(jnp.float32).sum(), (0, 1, 2))
    return jax.jit(form).trace(q, q, q).lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture
def cudnn(monkeypatch):
    """As on a machine with a GPU."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(attention, "_has_cudnn", lambda: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("cudnn")
def test_long_sequences_go_to_the_platforms_kernel():
    for platform, call in [("tpu", "tpu_custom_call"), ("cuda", "__cudnn$fmha")]:
        for grad in (False, True):
            text = _lowered(platform, grad=grad)
            assert text.count("@" + call) == 1 + grad
            assert f"{attention.FLASH_FROM}x{attention.FLASH_FROM}x" not in text  # nor are XLA's logits kept
    assert "custom_call" not in _lowered("cpu")


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize(
    "options",
    [
        {"shape": (2, 256, 2, 64)},
        {"dtype": jnp.float32},
        {"shape": (2, attention.FLASH_FROM, 2, 12)},
        {"shape": (2, attention.FLASH_FROM, 2, 256)},
        {"mask": jnp.ones((2, 1, 1, attention.FLASH_FROM), bool)},
    ],
)
def test_all_else_goes_to_xla(options):
    for platform in ("tpu", "cuda", "cpu"):
        assert "custom_call" not in _lowered(platform, **options)


@pytest.mark.parametrize(("n", "padded"), [(attention.FLASH_FROM + 64, 640), (1408, 1536), (4429, 4480), (4608, 4608)])
def test_lengths_that_no_block_divides_are_padded(n, padded):
    text = _lowered("tpu", (2, n, 2, 64))
    assert text.count("@tpu_custom_call") == 1
    assert f"tensor<2x2x64x{padded}xbf16>" in text


def test_machines_without_a_gpu_trace_no_cudnn():
    assert not attention._has_cudnn()
    assert "custom_call" not in _lowered("cuda")


def test_masked_keys_do_not_count():
    q, k, v, _ = (np.asarray(part) for part in heads(2, 8, 2, 4))
    mask = np.arange(8) < np.array([[3], [8]])
    attend = jax.jit(attention.attend)
    got = np.asarray(attend(q, k, v, mask=mask[:, None, None, :]))
    np.testing.assert_allclose(got[:1], attend(q[:1], k[:1, :3], v[:1, :3]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1:], attend(q[1:], k[1:], v[1:]), rtol=1e-5, atol=1e-6)


def test_layer_runs_it(monkeypatch):
    """With the kernel in its place, the layer is the same."""
    layer, x = Attention(2, jnp.bfloat16, zero_init=False), drawn.normal(2, 128, 32)
    x = jax.device_put(np.asarray(x).astype(jnp.bfloat16))
    params = {"params": drawn.params(layer, x)}
    y = jax.jit(layer.apply)(params, x)
    monkeypatch.setattr("asyncpatch_jax.models.layers.attend", lambda q, k, v, mask: interpreted(q, k, v))
    close([jax.jit(lambda *args: layer.apply(*args))(params, x)], [y], 0.03)
