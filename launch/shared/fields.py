"""What a time field costs a network: one call of the denoiser, and one gradient of the loss, for a given field.

The images, the noise and the loss are the same whatever the field; so the ratio of two programs is the price of the
field alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from asyncpatch_jax import sharding, timefield
from asyncpatch_jax.denoiser import bind
from asyncpatch_jax.types import Condition, FewTimes, Times
from launch.shared import build
from launch.shared.programs import Program

PIXELS = "pixels"  # an arbitrary time for each pixel


def field(times: int | str, batch: int, size: tuple[int, int]) -> Any:
    """Shapes of a field of `times` distinct times (1: synchronous), or of `PIXELS`."""
    if times == PIXELS:
        return jax.ShapeDtypeStruct((batch, *size, 1), jnp.float32)
    if times == 1:
        return jax.ShapeDtypeStruct((batch, 1, 1, 1), jnp.float32)
    index = jax.ShapeDtypeStruct((batch, *size, 1), jnp.int8)
    return FewTimes(jax.ShapeDtypeStruct((batch, int(times)), jnp.float32), index)


def forward(run: build.Run, mesh: Mesh, batch: int, times: int | str) -> Program:
    """One call of the denoiser `(params, x, label, field) -> (x0, eps)`."""

    def call(params: Any, x: jax.Array, label: jax.Array, told: Any) -> tuple[jax.Array, jax.Array]:
        with sharding.using(mesh):
            params = sharding.gather(params, run.model.logical_axes(params), run.model.dtype)
            cond = Condition(label=label) if run.num_classes else None
            denoise = bind(run.model, params, run.process, run.kind, cond)
            pred = denoise(x, Times(timefield.dense(told), told))
            return pred.x0, pred.eps

    params, *inputs = _arguments(run, mesh, batch, times)
    return Program(jax.jit(call), (params, *inputs))


def gradient(run: build.Run, mesh: Mesh, batch: int, times: int | str) -> Program:
    """The gradient of the configured loss `(params, x, label, field, key) -> ((loss, metrics), gradient)`."""

    def call(params: Any, x: jax.Array, label: jax.Array, told: Any, key: jax.Array) -> Any:
        loss = build.loss(run.config, run.model, sampler=lambda *_: told)
        with sharding.using(mesh):
            return jax.value_and_grad(loss, has_aux=True)(params, key, {"image": x, "label": label})

    key = sharding.abstract(jax.eval_shape(lambda: jax.random.key(0)), sharding.replicated(mesh))
    return Program(jax.jit(call), (*_arguments(run, mesh, batch, times), key))


def _arguments(run: build.Run, mesh: Mesh, batch: int, times: int | str) -> tuple[Any, ...]:
    images = jax.ShapeDtypeStruct((batch, *run.shape), jnp.float32)
    label = jax.ShapeDtypeStruct((batch,), jnp.int32)
    inputs = sharding.abstract((images, label, field(times, batch, run.shape[:2])), sharding.batch(mesh))
    return sharding.abstract(run.params, build.layout(run, mesh)), *inputs
