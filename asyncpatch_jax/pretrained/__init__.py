"""Public text-to-image networks as Linen modules: diffusers' folders read, written, and told a time field."""

import importlib
from typing import Any

_HOMES = {
    "Component": "loading",
    "Made": "pipelines",
    "Pretrained": "loading",
    "Request": "requests",
    "Scheduler": "schedulers",
    "Settings": "settings",
    "bind": "binding",
    "defaults": "settings",
    "encode_prompts": "prompts",
    "inspect": "inspection",
    "load_component": "loading",
    "load_pretrained": "loading",
    "noun_phrases": "objects",
    "sample_latents": "sampling",
    "save_component": "saving",
    "save_pretrained": "saving",
    "text2image": "pipelines",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used: one network needs none of the others' code."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
