"""From a configuration of `launch.train_autoencoder` to the library's objects, and to the program that it compiles."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from asyncpatch_jax import sharding
from asyncpatch_jax.data import MASKS
from asyncpatch_jax.metrics.lpips import read_lpips
from asyncpatch_jax.metrics.paired import Paired
from asyncpatch_jax.models.autoencoder import PRESETS, LocalisedAutoencoder, shapes
from asyncpatch_jax.models.discriminator import PatchDiscriminator
from asyncpatch_jax.training import autoencoding
from asyncpatch_jax.training.autoencoding import Objective, Step
from asyncpatch_jax.training.step import adam, learning_rate
from launch.shared.build import DTYPES
from launch.shared.programs import Program


class Parts(NamedTuple):
    """What a training is made of.

    lpips: the perceptual distance; None without one.
    params, judge: shapes of the parameters of the autoencoder and of the discriminator (None without one).
    """

    model: LocalisedAutoencoder
    step: Step
    lpips: Paired | None
    params: Any
    judge: Any


def model(config: ConfigDict) -> LocalisedAutoencoder:
    """The autoencoder of `config.model`: its preset, with what is set beside it, for the data's channels.

    Raises:
        ValueError: an unknown preset or type, or a setting that cannot be.
    """
    settings = {name: value for name, value in config.model.to_dict().items() if value is not None}
    for name, options in (("preset", PRESETS), ("dtype", DTYPES)):
        if settings[name] not in options:
            raise ValueError(f"expected config.model.{name} out of {', '.join(options)}, got {settings[name]!r}")
    preset, dtype = PRESETS[settings.pop("preset")], DTYPES[settings.pop("dtype")]
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    made = LocalisedAutoencoder(**{**preset, **settings, "channels": config.data.channels, "dtype": dtype})
    if config.data.size % made.factor:
        raise ValueError(f"expected config.data.size to be a multiple of {made.factor}, got {config.data.size}")
    return made


def masks(config: ConfigDict) -> dict[str, float]:
    """Shares of the kinds of holes; those of 0 are left out.

    Raises:
        ValueError: an unknown kind, or shares of more than 1 in all.
    """
    shares = config.masks.to_dict()
    if unknown := sorted(shares.keys() - set(MASKS)):
        raise ValueError(f"expected config.masks out of {', '.join(MASKS)}, got {', '.join(unknown)}")
    if min(shares.values()) < 0 or sum(shares.values()) > 1 + 1e-6:
        raise ValueError(f"expected shares of config.masks of 0 or more, and 1 at most in all, got {shares}")
    return {name: share for name, share in shares.items() if share}


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam, of both networks. Raises ValueError on settings out of range."""
    return adam(rate(config), b1=config.optim.b1, b2=config.optim.b2, clip=config.optim.clip)


def rate(config: ConfigDict) -> optax.Schedule:
    """The learning rate by step. Raises ValueError on settings out of range."""
    optim = config.optim
    return learning_rate(optim.learning_rate, warmup=optim.warmup, decay=optim.schedule, steps=config.train.steps)


def parts(config: ConfigDict) -> Parts:
    """All that a training needs but data.

    Raises:
        ValueError: settings that cannot be, images too small for the discriminator, or a folder of no LPIPS.
    """
    if not 0 <= config.optim.ema < 1:
        raise ValueError(f"expected 0 <= config.optim.ema < 1, got {config.optim.ema}")
    network, loss = model(config), config.loss.to_dict()
    lpips = read_lpips(folder) if (folder := loss.pop("lpips")) else None
    objective = Objective(**loss)
    images = jax.ShapeDtypeStruct((1, config.data.size, config.data.size, config.data.channels), jnp.float32)
    judge, judged = None, None
    if objective.adversarial:
        judge = PatchDiscriminator(**config.discriminator, dtype=network.dtype)
        judged = jax.eval_shape(judge.init, jax.random.key(0), images)["params"]
    if lpips is not None and objective.perceptual:
        triple = jax.ShapeDtypeStruct((*images.shape[:3], 3), jnp.float32)
        jax.eval_shape(compared(lpips), lpips.params, triple, triple)
    perceptual = compared(lpips) if lpips is not None and objective.perceptual else None
    step = Step(network, judge, objective, optimizer(config), config.optim.ema, perceptual)
    assert {field.name for field in dataclasses.fields(objective)} == set(loss)
    return Parts(network, step, lpips, shapes(network), judged)


def compared(lpips: Paired) -> autoencoding.Perceptual:
    """The distance of whole images, of parameters that are given."""
    return lambda params, images, originals: lpips.compare(params, images, originals, None)


def layout(params: Any, mesh: Mesh, network: LocalisedAutoencoder) -> Any:
    """Where each of the autoencoder's parameters lies on a mesh: a tree of shardings."""
    return sharding.parameters(mesh, params, network.logical_axes(params))


def training(config: ConfigDict, made: Parts, mesh: Mesh) -> Program:
    """The training step `(state, frozen, batch, key) -> (state, metrics)` at `config.train.batch` images.

    Raises:
        ValueError: a batch that the mesh does not divide.
    """
    size, pieces = config.train.batch, sharding.batch_parts(mesh)
    if size < 1 or size % pieces:
        raise ValueError(f"expected config.train.batch to be a multiple of {pieces} (data x fsdp), got {size}")
    state = jax.eval_shape(lambda a, b: autoencoding.create(a, b, made.step.optimizer), made.params, made.judge)
    places = sharding.alike(mesh, state, made.params, layout(made.params, mesh, made.model))
    side, whole = config.data.size, sharding.replicated(mesh)
    images = {
        "image": jax.ShapeDtypeStruct((size, side, side, config.data.channels), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((size, side, side, 1), jnp.float32),
    }
    frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), frozen_params(made))
    args = (
        sharding.abstract(state, places),
        sharding.abstract(frozen, whole),
        sharding.abstract(images, sharding.batch(mesh)),
        sharding.abstract(jax.eval_shape(lambda: jax.random.key(0)), whole),
    )
    return Program(autoencoding.jit_step(made.step, mesh, places), args)


def frozen_params(made: Parts) -> Any:
    """The perceptual distance's parameters; an empty tree without one."""
    return made.lpips.params if made.lpips is not None and made.step.perceptual is not None else {}
