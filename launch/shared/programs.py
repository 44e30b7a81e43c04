"""The programs that a run compiles, and what they are called with: shapes, types and layouts on a mesh.

`program.fn` is what `launch.train` and the mains that sample call; `program.fn.lower(*program.args).compile()` compiles
the same for any mesh, also one of TPU devices that are not there (`jax.experimental.topologies`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from asyncpatch_jax import sharding
from asyncpatch_jax.training.step import create, jit_step, train_step
from launch.shared import build, datasets, pictures
from launch.shared.generate import generate
from launch.shared.plans import plan


class Program(NamedTuple):
    """A jitted function, and abstract arguments for it: `jax.ShapeDtypeStruct` with shardings."""

    fn: Any
    args: tuple[Any, ...]


def training(config: ConfigDict, run: build.Run, mesh: Mesh) -> Program:
    """The training step `(state, batch, key) -> (state, metrics)` at `config.train.batch` images.

    Args:
        run: of `build.untrained`; only the shapes of its parameters are used.

    Raises:
        ValueError: settings out of range, or a batch that the mesh does not divide.
    """
    size, parts = config.train.batch, sharding.batch_parts(mesh)
    if size < 1 or size % parts:
        raise ValueError(f"expected config.train.batch to be a multiple of {parts} (data x fsdp), got {size}")
    if config.optim.accumulate < 1:
        raise ValueError(f"expected config.optim.accumulate of at least 1, got {config.optim.accumulate}")
    if size % config.optim.accumulate == 0 and size // config.optim.accumulate % parts:
        raise ValueError(
            f"expected config.train.batch to be a multiple of {parts} (data x fsdp) x config.optim.accumulate = "
            f"{config.optim.accumulate}, got {size}"
        )
    optimizer = build.optimizer(config)
    step = partial(
        train_step,
        loss_fn=build.loss(config, run.model),
        optimizer=optimizer,
        ema=config.optim.ema,
        accumulate=config.optim.accumulate,
    )
    state = jax.eval_shape(partial(create, optimizer=optimizer), run.params)
    layout = sharding.alike(mesh, state, run.params, build.layout(run, mesh))
    images = {
        "image": jax.ShapeDtypeStruct((size, *run.shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    if datasets.holes(config):
        images["mask"] = jax.ShapeDtypeStruct((size, *run.shape[:2], 1), jnp.float32)
    if width := build.text_width(config):
        length = config.text.length
        images["tokens"] = jax.ShapeDtypeStruct((size, length, width), jnp.float32)
        images["counted"] = jax.ShapeDtypeStruct((size, length), jnp.bool_)
    key = jax.eval_shape(lambda: jax.random.key(0))
    args = (
        sharding.abstract(state, layout),
        sharding.abstract(images, sharding.batch(mesh)),
        sharding.abstract(key, sharding.replicated(mesh)),
    )
    return Program(jit_step(step, mesh, layout), args)


def sampling(config: ConfigDict, run: build.Run, mesh: Mesh, batch: int) -> Program:
    """The sampler `(params, schedule, inputs) -> Result` of `batch` images under `config.sample`, synchronously.

    Raises:
        ValueError: sampling settings that do not make sense.
    """
    run = run._replace(config=config, mesh=mesh)
    schedule, num_steps, ahead = plan("sync", run)
    known, label = jax.ShapeDtypeStruct((batch, *run.shape), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    inputs = jax.eval_shape(partial(pictures.inputs, run), jax.eval_shape(lambda: jax.random.key(0)), known, label)
    whole = sharding.replicated(mesh)
    args = (
        sharding.abstract(run.params, build.layout(run, mesh)),
        sharding.abstract(schedule, whole),
        sharding.abstract(inputs, sharding.batch(mesh) if batch % sharding.batch_parts(mesh) == 0 else whole),
    )
    return Program(jax.jit(partial(generate, pictures.net(run), num_steps=num_steps, ahead=ahead)), args)
