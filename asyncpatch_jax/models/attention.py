"""Attention of every pair of positions, by the kernel that the platform has for long sequences, else by XLA.

XLA stores the logits of all pairs, in float32; a flash kernel (Dao et al. 2022, arXiv 2205.14135) keeps them on the
chip. The kernels are JAX's own: splash attention on TPU, cuDNN's on NVIDIA GPUs. Softmax is in float32 everywhere.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.extend.backend import get_backend
from jaxtyping import Array, Bool, Float, Float32, Int

from asyncpatch_jax import sharding

Heads = Float[Array, "b n h d"]
OtherHeads = Float[Array, "b m h d"]
Mask = Bool[Array, "b #h #n m"]
LogSums = Float[Array, "b n h"]

# One attention layer with its projections, batch 32, 16 heads of 72 (DiT-XL/2), compiled for v6e at the compiler's own
# effort: gigabytes of HBM and millions of cycles (the kernel's by its schedule), XLA -> kernel.
#   n      forward                       gradient
#   256    0.52 -> 0.13    0.4 -> 0.8     1.4 -> 1.0     2.6 ->  3.0
#   512    3.1  -> 0.7     4.6 -> 2.0     5.4 -> 2.5     8.5 ->  6.7
#   1024   5.3  -> 1.5     8.5 -> 4.7    19.2 -> 5.5    27.7 -> 16.1
# 12 heads of 64 are alike; so is n = 4096. At 256, where most logits stay on the chip, XLA wins. Not measured on GPUs.
FLASH_FROM = 512
# Blocks of 2048 save a tenth of the kernel's cycles and do not fit v4 and v5e; blocks of 256 take three to four times
# as many, more than XLA: a length that no block from FLASH_FROM on divides is padded.
_LARGEST_BLOCK = 1024
_LAYOUT = ("batch", None, "heads", None)


def attend(q: Heads, k: OtherHeads, v: OtherHeads, mask: Mask | None = None) -> Heads:
    """softmax(q k^T / sqrt(d)) v per head, by the form that is fastest where the program will run.

    Args:
        mask: which keys each query may attend to; None for all of them.
    """
    return _by_platform(q, k, v, mask, plain, _LAYOUT, log_sums=False)


def attend_columns(
    q: Heads, k: OtherHeads, v: OtherHeads, columns: Int[Array, "b c"], mask: Mask | None = None
) -> tuple[Heads, Float32[Array, "b n c"]]:
    """`attend`, and how much of each query's attention goes to a few keys: the mean over heads of softmax weights.

    The weights are exp(q k^T / sqrt(d) - s) of these keys alone, with the logarithm s of the softmax's sum over *all*
    keys, which the kernels know: all pairs' weights are stored nowhere. The TPU's kernel has no gradient here.

    Args:
        columns: positions of the keys, of each image.
        mask: which keys each query may attend to; the weight of another one is 0.
    """
    out, log_sums = _by_platform(q, k, v, mask, plain_sums, [_LAYOUT, _LAYOUT[:3]], log_sums=True)
    few = jnp.take_along_axis(k, columns[:, :, None, None], axis=1)
    kind = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bnhd,bchd->bhnc", q, few, preferred_element_type=kind) / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = jnp.where(jnp.take_along_axis(mask, columns[:, None, None, :], axis=3), logits, -jnp.inf)
    shares = jnp.exp(logits - log_sums.swapaxes(1, 2)[..., None].astype(kind))
    return out, shares.mean(1).astype(jnp.float32)


def mean_weights(q: Heads, k: OtherHeads) -> Float32[Array, "b n m"]:
    """Softmax weights of all pairs, averaged over heads, of which one at a time is there."""
    kind = jnp.promote_types(q.dtype, jnp.float32)

    def add(total: jax.Array, head: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        logits = jnp.einsum("bnd,bmd->bnm", *head, preferred_element_type=kind) / math.sqrt(q.shape[-1])
        return total + jax.nn.softmax(logits, axis=-1).astype(jnp.float32), None

    b, n, heads, _ = q.shape
    start = jnp.zeros((b, n, k.shape[1]), jnp.float32)
    total, _ = jax.lax.scan(add, start, (jnp.moveaxis(q, 2, 0), jnp.moveaxis(k, 2, 0)))
    return total / heads


def _by_platform(
    q: Heads, k: OtherHeads, v: OtherHeads, mask: Mask | None, default: Callable[..., Any], out: Any, log_sums: bool
) -> Any:
    n, d = q.shape[1], q.shape[3]
    if mask is not None or min(n, k.shape[1]) < FLASH_FROM or q.dtype != jnp.bfloat16 or d % 8 or d > 128:
        return default(q, k, v, mask)
    kernels = {"tpu": partial(flash, (_block(n), _block(k.shape[1])), log_sums=log_sums)}
    if _has_cudnn():
        kernels["cuda"] = partial(_cudnn, log_sums=log_sums)
    # what any of the platforms' forms keeps for the backward pass is kept: XLA's computes the logits anew
    form = partial(jax.lax.platform_dependent, **kernels, default=jax.checkpoint(default))
    return sharding.per_shard(form, [_LAYOUT] * 3, out)(q, k, v)


def _block(n: int) -> int:
    """The block that n positions need the least padding for; the larger of two."""
    return min(range(_LARGEST_BLOCK, FLASH_FROM - 1, -128), key=lambda size: -(-n // size) * size)


def plain(q: Heads, k: OtherHeads, v: OtherHeads, mask: Mask | None = None) -> Heads:
    """Attention as XLA runs it.

    Heads before positions: of 12 heads and 256 positions, the other order (that of `jax.nn.dot_product_attention`) ends
    the TPU's compiler (libtpu 0.0.52: "Unimplemented DMA from hbm to hbm"); where both compile, they are one program.
    """
    return plain_sums(q, k, v, mask)[0]


def plain_sums(q: Heads, k: OtherHeads, v: OtherHeads, mask: Mask | None = None) -> tuple[Heads, LogSums]:
    """Attention as XLA runs it, and the logarithms of the softmax's sums."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    kind = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=kind) / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(kind).min)
    shares = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bhnm,bhmd->bhnd", shares, v).swapaxes(1, 2)
    return out, jax.nn.logsumexp(logits, axis=-1).swapaxes(1, 2)


def flash(
    blocks: tuple[int, int], q: Heads, k: OtherHeads, v: OtherHeads, *, log_sums: bool = False, interpret: bool = False
) -> Heads | tuple[Heads, LogSums]:
    """JAX's splash attention without a mask; lengths that the blocks do not divide are padded.

    Args:
        blocks: positions, of queries and of keys, whose logits are on the chip at once; multiples of 128.
        log_sums: give the logarithms of the softmax's sums too; that has no gradient.
        interpret: run the TPU's kernel as it is, slowly, on any device; for tests.
    """
    n, heads, d = q.shape[1:]
    m = k.shape[1]
    pad_n, pad_m = (-size % block for size, block in zip((n, m), blocks, strict=True))
    # of heads of fewer than 128 channels, lanes hold positions: no channels are padded to 128
    minor = splash.QKVLayout.SEQ_MINOR if d < 128 else splash.QKVLayout.HEAD_DIM_MINOR
    sizes = splash.BlockSizes(
        block_q=blocks[0],
        block_kv=blocks[1],
        block_q_dkv=blocks[0],
        block_kv_dkv=blocks[1],
        use_fused_bwd_kernel=True,
        q_layout=minor,
        k_layout=minor,
        v_layout=minor,
    )
    everything = masks.MultiHeadMask([masks.FullMask((n + pad_n, m + pad_m))] * heads)
    kernel = splash.make_splash_mha_single_device(
        everything, block_sizes=sizes, save_residuals=log_sums, interpret=interpret
    )
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).swapaxes(1, 2)
        for x, pad in ((q / math.sqrt(d), pad_n), (k, pad_m), (v, pad_m))
    )
    # a query attends to the keys of its segment: what pads the keys is of another one
    ids = splash.SegmentIds(jnp.zeros(n + pad_n, jnp.int32), (jnp.arange(m + pad_m) >= m).astype(jnp.int32))
    result = jax.vmap(partial(kernel, segment_ids=ids if pad_m else None))(q, k, v)
    if not log_sums:
        return result.swapaxes(1, 2)[:, :n]
    out, (sums,) = result
    return out.swapaxes(1, 2)[:, :n], sums.swapaxes(1, 2)[:, :n]


def _cudnn(q: Heads, k: OtherHeads, v: OtherHeads, *, log_sums: bool) -> Heads | tuple[Heads, LogSums]:
    if not log_sums:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    # jax.nn's function rounds the logarithms to bfloat16: a weight would be off by 3 %
    from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention

    out, sums = dot_product_attention(q, k, v, scale=1 / math.sqrt(q.shape[-1]), return_residual=True)
    return out, sums.swapaxes(1, 2)


def _has_cudnn() -> bool:
    """Whether this machine's GPUs run cuDNN's attention, whose support JAX looks up when a program is traced."""
    backend = get_backend()
    return "cuda" in backend.platform_version and all(float(d.compute_capability) >= 8 for d in backend.local_devices())
