"""What transformers with joint attention are told, SD3 and FLUX alike: times and text; and what they refuse.

What both networks do before their first layer; `joint` has the layers.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from asyncpatch_jax import timefield
from asyncpatch_jax.models.times import LevelTimes
from asyncpatch_jax.pretrained.networks.joint import Stream, dense
from asyncpatch_jax.pretrained.networks.layers import TimestepEmbedding, sinusoid
from asyncpatch_jax.pretrained.networks.times import level_times
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.types import Condition, FewTimes, Image, TimeField


class TimeTextEmbedding(nn.Module):
    """Times, the pooled text and a distilled guidance scale in one embedding, after the silu before each projection.

    diffusers' `CombinedTimestepTextProjEmbeddings` and `CombinedTimestepGuidanceTextProjEmbeddings`.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, times: Float[Array, "_b j"], pooled: Float[Array, "b p"], guidance: Float[Array, "b"] | None = None
    ) -> Float[Array, "b j {self.width}"]:
        def embedded(times: jax.Array, name: str) -> jax.Array:
            return TimestepEmbedding(self.width, self.dtype, name=name)(sinusoid(times, 256, dtype=self.dtype))

        emb = embedded(times, "timestep_embedder")
        if guidance is not None:
            emb = emb + embedded(1000.0 * guidance[:, None], "guidance_embedder")
        text = TimestepEmbedding(self.width, self.dtype, name="text_embedder")(pooled)
        return nn.silu(emb + text[:, None])


def text_time(t: TimeField | FewTimes, cond: Condition) -> Float[Array, "_b 1"]:
    """What the text tokens are told: `cond.text_time`, or else the mean of the field over all cells but clean ones.

    A cell at 0 is known: it is no part of what the text is about, and would tell it of less noise than there is.

    Raises:
        ValueError: a text time that is not float32 [b].
    """
    if cond.text_time is not None:
        if cond.text_time.dtype != jnp.float32 or cond.text_time.ndim != 1:
            raise ValueError(f"expected text_time as float32 [b], got {cond.text_time.dtype}{cond.text_time.shape}")
        return cond.text_time[:, None]
    return timefield.noisy_mean(t)[:, None]


def told(
    t: TimeField | FewTimes, cond: Condition, grid: Grid, width: int, dtype: Any
) -> tuple[LevelTimes, LevelTimes, Stream]:
    """Times of the image's tokens and of the text's, and the text's tokens.

    Args:
        cond: that `check_condition` let pass, with tokens and what is pooled of them.
        grid: of the image's tokens.
    """
    tokens: Any = cond.tokens
    pooled: Any = cond.pooled
    embedding = TimeTextEmbedding(width, dtype, name="time_text_embed")
    (times,) = level_times(t, lambda j: embedding(j, pooled, cond.guidance), [grid])
    text_times = LevelTimes(embedding(text_time(t, cond), pooled, cond.guidance), grid=(1, 1))
    return times, text_times, dense(width, "context_embedder", dtype)(tokens.astype(dtype))[:, None]


def grid_of_tokens(x: Image, channels: int, side: int, what: str = "latents") -> Grid:
    """Rows and columns of the tokens of `what`, each of which is side x side of them.

    Raises:
        ValueError: other channels, or no whole tokens.
    """
    if x.shape[-1] != channels or x.shape[1] % side or x.shape[2] % side:
        raise ValueError(
            f"expected {what} [b, h, w, {channels}] whose height and width are multiples of {side}, "
            f"got shape {tuple(x.shape)}"
        )
    return x.shape[1] // side, x.shape[2] // side


def check_condition(cond: Condition | None, batch: int, needed: Mapping[str, int], optional: set[str]) -> Condition:
    """Refuse a condition that a network does not take.

    Args:
        needed: fields, and the width of each; 0 for a field without channels.
        optional: fields that the network can do without.

    Raises:
        ValueError: a field that is missing, of another batch or width, or that the network does not read.
    """
    names = ", ".join(needed)
    cond = cond or Condition()
    for field, value in cond._asdict().items():
        if value is None:
            if field in needed:
                raise ValueError(f"expected a condition with {names}, got no {field}")
            continue
        if field not in needed and field not in optional:
            raise ValueError(f"expected a condition with {names}, got {field} too, which this network does not read")
        width = needed.get(field, 0)
        for array in jax.tree.leaves(value):
            if array.shape[0] != batch or (width and array.shape[-1] != width):
                raise ValueError(
                    f"expected {field} for {batch} images{f', of width {width}' * bool(width)}, got {array.shape}"
                )
    return cond
