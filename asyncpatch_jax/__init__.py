"""Diffusion with a noise level per cell: one time field, one loop, any schedule."""

from asyncpatch_jax.lazy import exports

_HOMES = {
    "DiT": "models",
    "UNet": "models",
    "bind": "denoiser",
    "diffuse": "process",
    "paste_back": "sampling",
    "predict": "process",
    "sample": "sampling",
    "start": "sampling",
}

__all__ = sorted(_HOMES)

__getattr__ = exports(__name__, _HOMES)
