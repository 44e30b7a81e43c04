"""Public text-to-image networks as Linen modules: diffusers' folders read, written, and told a time field."""

from asyncpatch_jax.lazy import exports

_HOMES = {
    "Component": "folders.loading",
    "Made": "pipelines",
    "Pretrained": "folders.loading",
    "Request": "requests",
    "Scheduler": "folders.schedulers",
    "Settings": "settings",
    "bind": "binding",
    "defaults": "settings",
    "encode_prompts": "text.prompts",
    "inspect": "folders.inspection",
    "load_component": "folders.loading",
    "load_pretrained": "folders.loading",
    "noun_phrases": "text.objects",
    "sample_latents": "sampling",
    "save_component": "folders.saving",
    "save_pretrained": "folders.saving",
    "text2image": "pipelines",
}

__all__ = sorted(_HOMES)

__getattr__ = exports(__name__, _HOMES)
