"""Public text-to-image networks as Linen modules: diffusers' folders read, written, and told a time field."""

from asyncpatch_jax.lazy import exports

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

__getattr__ = exports(__name__, _HOMES)
