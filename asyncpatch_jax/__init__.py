"""Diffusion with a noise level per cell: one time field, one loop, any schedule."""

import importlib
from typing import Any

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


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used, so that `import asyncpatch_jax` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
