"""Autoencoders of any kind as what `metrics.leakage` measures."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from asyncpatch_jax.metrics.leakage import Coder
from asyncpatch_jax.models.autoencoder import CLASS, LocalisedAutoencoder
from asyncpatch_jax.pretrained.autoencoders import Autoencoder


def coder(found: Autoencoder) -> Coder:
    """An autoencoder that was read from a folder; only one of ours has codes."""
    ours = isinstance(found.module, LocalisedAutoencoder)
    index = partial(_index, found.module, found.params) if ours else None
    return Coder(found.encode, found.decode, index, found.factor)


def of_module(module: LocalisedAutoencoder, params: Any) -> Coder:
    """One that is still being trained."""
    channels = module.latent_channels
    plain = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    return coder(Autoencoder(CLASS, dataclasses.replace(module, dtype=np.float32), params, "", None, *plain))


@partial(jax.jit, static_argnums=0)
def _index(module: LocalisedAutoencoder, params: Any, latents: jax.Array) -> Any:
    return module.apply({"params": params}, latents, method="index")
