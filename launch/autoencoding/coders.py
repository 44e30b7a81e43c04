"""Autoencoders of any kind as what `metrics.leakage` measures."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from asyncpatch_jax import schema
from asyncpatch_jax.metrics.leakage import Coder
from asyncpatch_jax.models import autoencoder
from asyncpatch_jax.models.autoencoder import LocalisedAutoencoder
from asyncpatch_jax.pretrained.folders.loading import load_component
from asyncpatch_jax.pretrained.networks.autoencoder import AutoencoderKL


def of_module(module: Any, params: Any) -> Coder:
    """The coder of a network of one's own, or of an `AutoencoderKL`: its means, holes grey, of no masks told."""
    if isinstance(module, LocalisedAutoencoder):
        return Coder(*(partial(_ours, module, way, params) for way in ("encode", "decode", "index")), module.factor)
    return Coder(partial(_kl_encode, module, params), partial(_kl_decode, module, params), None, module.factor)


@partial(jax.jit, static_argnums=(0, 1))
def _ours(module: LocalisedAutoencoder, way: str, params: Any, x: jax.Array, mask: jax.Array | None = None) -> Any:
    args = (x,) if way == "index" else (x, mask)
    return module.apply({"params": params}, *args, method=way)


@partial(jax.jit, static_argnums=0)
def _kl_encode(module: AutoencoderKL, params: Any, images: jax.Array, mask: jax.Array | None) -> jax.Array:
    images = images if mask is None else jnp.where(mask > 0.5, 0.0, images)
    moments: Any = module.apply({"params": params}, images, method="encode")
    return moments[0]


@partial(jax.jit, static_argnums=0)
def _kl_decode(module: AutoencoderKL, params: Any, latents: jax.Array, mask: jax.Array | None) -> Any:
    return module.apply({"params": params}, latents, method="decode")


def read(folder: epath.PathLike) -> tuple[Any, Any]:
    """The module and parameters of a folder: ours, or diffusers' `vae/` (or a pipeline's folder that has one).

    Raises:
        ValueError: neither, or one that is damaged.
    """
    folder = epath.Path(folder)
    if (folder / "model_index.json").exists():
        folder = folder / "vae"
    if autoencoder.is_one(schema.read_json(folder / "config.json")):
        return autoencoder.load(folder)
    component = load_component(folder, dtype=jnp.float32)
    if not isinstance(component.module, AutoencoderKL):
        got = type(component.module).__name__
        raise ValueError(f"expected a {autoencoder.CLASS} or an AutoencoderKL in {folder}, got a {got}")
    return component.module, component.params
