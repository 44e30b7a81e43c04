"""From a network and its parameters to the function that samplers call."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.process import Kind, Process, check_kind, check_process, predict, scale_velocity
from asyncpatch_jax.types import Condition, Denoiser, Image, Prediction, Times


def bind(model: nn.Module, params: Any, process: Process, kind: Kind, cond: Condition | None = None) -> Denoiser:
    """The denoiser `(x, times) -> Prediction` of a network `(x, t, cond) -> (out, aux)` that predicts `kind`.

    Velocities are multiplied with `times.gain`, if there is one.

    A guidance that asks for k fields at once calls it with k copies of each image next to each other [b * k, ...]
    (interleaved, so that a sharded batch axis needs no all-to-all); the condition is repeated to match.

    Raises:
        ValueError: no network, process, kind or condition; later, what is no image or no `Times`, or a batch that is no
            multiple of the condition's.
    """
    checks.instance("model", model, nn.Module, "UNet(...) or DiT(...)")
    check_process(process)
    check_kind(kind)
    if cond is not None:
        checks.instance("cond", cond, Condition, "Condition(label=labels)")

    def denoise(x: Image, times: Times) -> Prediction:
        checks.images("x", x)
        checks.instance("times", times, Times, "Times(field, field): the level, and what the network is told")
        aux: Any
        out, aux = model.apply({"params": params}, x, times.told, _repeat(cond, x.shape[0]))
        pred = predict(process, kind, out.astype(jnp.float32), x, times.level)
        if times.gain is not None:
            pred = scale_velocity(process, pred, times.gain, times.level)
        return pred._replace(aux=aux)

    return denoise


def reference_of(known: Image, mask: Float[Array, "b h w 1"]) -> Float[Array, "b h w c2"]:
    """What a network that was trained to inpaint is shown [b, h, w, c + 1]: the known pixels, and 1 where they are.

    It is 0 in the hole, so that an image of which nothing is known is shown as zeros: what such a network takes for a
    condition without `reference`.

    Args:
        known: [b, h, w, c]; what lies in the hole does not matter.
        mask: [b, h, w, 1], 1 in the hole.
    """
    there = mask <= 0.5
    return jnp.concatenate([jnp.where(there, known, 0.0), there.astype(known.dtype)], axis=-1)


def one_time(denoise: Denoiser) -> Denoiser:
    """A denoiser that is told one time an image: the largest of the field, at which the hole is while it is filled.

    For networks that were trained with one, and see on other channels what is known (`training.supervised_loss`).
    """

    def told_one(x: Image, times: Times) -> Prediction:
        largest = timefield.dense(times.told).max((1, 2), keepdims=True)
        return denoise(x, times._replace(told=largest))

    return told_one


def _repeat(cond: Condition | None, batch: int) -> Condition | None:
    def leaf(array: jax.Array) -> jax.Array:
        if batch % array.shape[0]:
            raise ValueError(f"expected a condition whose batch divides {batch} images, got shape {array.shape}")
        return jnp.repeat(array, batch // array.shape[0], axis=0)

    return jax.tree.map(leaf, cond)
