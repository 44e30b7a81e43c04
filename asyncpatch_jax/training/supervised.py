"""Training a network for inpainting alone: it is shown what is known of an image, and noise is in the hole only."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from asyncpatch_jax import checks, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.denoiser import reference_of
from asyncpatch_jax.process import Kind, Process
from asyncpatch_jax.training.losses import Metrics, Weight, check_settings, drawn_times, loss_at
from asyncpatch_jax.training.times import TimeSampler
from asyncpatch_jax.types import Condition, Image, Times


def supervised_loss(
    params: Any,
    key: Key[Array, "..."],
    x0: Image,
    mask: Float[Array, "b h w 1"],
    cond: Condition | None,
    *,
    model: nn.Module,
    process: Process,
    kind: Kind,
    times: TimeSampler,
    weight: Weight,
    uncertainty: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """`loss` of a network that learns to fill holes, as Palette does (Saharia et al. 2022, arXiv 2111.05826).

    Known pixels are clean and carry no loss; the hole is noised to one time, which is all that the network is told of
    times. Where the hole is, it sees on further channels (`denoiser.reference_of`). Palette's public code has noise in
    the hole of the image that it shows, and no mask; here that hole is 0, and the mask beside it says so.

    Args:
        params: of `model`, whose `reference` is one channel more than the images have.
        mask: 1 in the hole; an image that is all hole teaches the network to make images from nothing.
        times: of one time an image, such as `Synchronous()`.

    Raises:
        ValueError: as `loss`; no mask; or times of several cells.
    """
    check_settings(process, kind, weight, uncertainty)
    checks.images("x0", x0)
    checks.mask("mask", mask)
    keys = keys_lib.per_image(key, x0.shape[0])
    told = timefield.dense(drawn_times(times, keys, (1, 1)))
    if told.shape[1:3] != (1, 1):
        raise ValueError(f"expected one time for each image, such as Synchronous() draws, got a field {told.shape}")
    level = jnp.where(mask > 0.5, told, 0.0)
    cond = (cond or Condition())._replace(reference=reference_of(x0, mask))
    settings: Any = {"model": model, "process": process, "kind": kind, "weight": weight, "uncertainty": uncertainty}
    return loss_at(params, keys, x0, cond, Times(level, told), **settings)
