"""Attention of every pair of positions, by the kernel that the platform has for long sequences, else by XLA.

XLA stores the logits of all pairs, in float32; a flash kernel (Dao et al. 2022, arXiv 2205.14135) keeps them on the
chip. The kernels are JAX's own: splash attention on TPU, cuDNN's on NVIDIA GPUs. Softmax is in float32 everywhere.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.extend.backend import get_backend
from jaxtyping import Array, Bool, Float

from asyncpatch_jax import sharding

Heads = Float[Array, "b n h d"]

# One attention layer with its projections, batch 32, 16 heads of 72 (DiT-XL/2), compiled for v6e at the compiler's own
# effort: gigabytes of HBM and millions of cycles (the kernel's by its schedule), XLA -> kernel.
#   n      forward                       gradient
#   256    0.52 -> 0.13    0.4 -> 0.8     1.4 -> 1.0     2.6 ->  3.0
#   512    3.1  -> 0.7     4.6 -> 2.0     5.4 -> 2.5     8.5 ->  6.7
#   1024   5.3  -> 1.5     8.5 -> 4.7    19.2 -> 5.5    27.7 -> 16.1
# 12 heads of 64 are alike; so is n = 4096. At 256, where most logits stay on the chip, XLA wins. Not measured on GPUs.
FLASH_FROM = 512
# Blocks of 2048 save a tenth of the kernel's cycles and do not fit v4 and v5e; blocks of 256 take three to four times
# as many, more than XLA: a length that no block from FLASH_FROM on divides goes to XLA.
_LARGEST_BLOCK = 1024
_LAYOUT = ("batch", None, "heads", None)


def attend(
    q: Heads, k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], mask: Bool[Array, "b #h #n m"] | None = None
) -> Heads:
    """softmax(q k^T / sqrt(d)) v per head, by the form that is fastest where the program will run.

    Args:
        mask: which keys each query may attend to; None for all of them.
    """
    n, d = q.shape[1], q.shape[3]
    if mask is not None or q.shape != k.shape or q.dtype != jnp.bfloat16 or d % 8 or d > 128:
        return plain(q, k, v, mask)
    kernels = {}
    block = next((size for size in range(_LARGEST_BLOCK, FLASH_FROM - 1, -128) if n % size == 0), None)
    if block is not None:
        kernels["tpu"] = partial(flash, block)
    if n >= FLASH_FROM and _has_cudnn():
        kernels["cuda"] = partial(jax.nn.dot_product_attention, implementation="cudnn")
    if not kernels:
        return plain(q, k, v)
    # what any of the platforms' forms keeps for the backward pass is kept: XLA's computes the logits anew
    form = partial(jax.lax.platform_dependent, **kernels, default=jax.checkpoint(plain))
    return sharding.per_shard(form, [_LAYOUT] * 3, _LAYOUT)(q, k, v)


def plain(
    q: Heads, k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], mask: Bool[Array, "b #h #n m"] | None = None
) -> Heads:
    """Attention as XLA runs it.

    Heads before positions: of 12 heads and 256 positions, the other order (that of `jax.nn.dot_product_attention`) ends
    the TPU's compiler (libtpu 0.0.52: "Unimplemented DMA from hbm to hbm"); where both compile, they are one program.
    """
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    logits = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    shares = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bhmd->bhnd", shares, v).swapaxes(1, 2)


def flash(block: int, q: Heads, k: Heads, v: Heads, interpret: bool = False) -> Heads:
    """JAX's splash attention without a mask.

    Args:
        block: positions, of queries and of keys, whose logits are on the chip at once; a multiple of 128 that divides
            the length.
        interpret: run the TPU's kernel as it is, slowly, on any device; for tests.
    """
    n, heads, d = q.shape[1:]
    # of heads of fewer than 128 channels, lanes hold positions: no channels are padded to 128
    minor = splash.QKVLayout.SEQ_MINOR if d < 128 else splash.QKVLayout.HEAD_DIM_MINOR
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        use_fused_bwd_kernel=True,
        q_layout=minor,
        k_layout=minor,
        v_layout=minor,
    )
    everything = masks.MultiHeadMask([masks.FullMask((n, n))] * heads)
    kernel = splash.make_splash_mha_single_device(everything, block_sizes=sizes, interpret=interpret)
    q, k, v = (x.swapaxes(1, 2) for x in (q / math.sqrt(d), k, v))
    return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)


def _has_cudnn() -> bool:
    """Whether this machine's GPUs run cuDNN's attention, whose support JAX looks up when a program is traced."""
    backend = get_backend()
    return "cuda" in backend.platform_version and all(float(d.compute_capability) >= 8 for d in backend.local_devices())
