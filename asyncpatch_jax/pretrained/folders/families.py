"""Which module a config.json is of, and what the folders of each family of text-to-image networks hold."""

import functools
import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from msgspec import Struct, field

from asyncpatch_jax import schema
from asyncpatch_jax.pretrained.networks import configuration

# classes of diffusers and transformers, and of metrics -> the file that implements them
_CLASSES = {
    "UNet2DConditionModel": "unet2d",
    "SD3Transformer2DModel": "sd3",
    "FluxTransformer2DModel": "flux",
    "AutoencoderKL": "autoencoder",
    "CLIPTextModel": "clip",
    "CLIPTextModelWithProjection": "clip",
    "CLIPVisionModelWithProjection": "clip",
    "CLIPModel": "clip",
    "T5EncoderModel": "t5",
    "ImageReward": "blip",
    "AestheticPredictor": "aesthetic",
    "LPIPS": "lpips",
    "FIDInceptionV3": "inception",
}
_UNET = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
_FLUX = {
    "transformer": "FluxTransformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "T5EncoderModel",
}
_SD3 = {
    "transformer": "SD3Transformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder_3": "T5EncoderModel",
}
# the components of a family's folder, the denoiser first, and the class of each
COMPONENTS: dict[str, dict[str, str]] = {
    "sd": _UNET,
    "sdxl": {**_UNET, "text_encoder_2": "CLIPTextModelWithProjection"},
    "sd3": _SD3,
    "flux": _FLUX,
    "kontext": _FLUX,
}
_PIPELINES = {
    "StableDiffusion": "sd",
    "StableDiffusionXL": "sdxl",
    "StableDiffusion3": "sd3",
    "Flux": "flux",
    "FluxKontext": "kontext",
}
_TASKS = ("", "Img2Img", "Inpaint")
# of a pipeline's index, what takes no part in making an image
_IGNORED = {
    "scheduler",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "safety_checker",
    "feature_extractor",
    "image_encoder",
}


class _Index(Struct, frozen=True):
    """What of a model_index.json is no component."""

    pipeline: str = field(name="_class_name")
    force_zeros_for_empty_prompt: bool = True


def family(index: Mapping[str, Any]) -> str:
    """The family that a model_index.json is of: "sd", "sdxl", "sd3", "flux" or "kontext".

    Raises:
        ValueError: another pipeline; names those that there are. Or a setting of another type.
    """
    name = schema.convert(index, _Index, "model_index.json").pipeline
    pipelines = {f"{name}{task}Pipeline": family for name, family in _PIPELINES.items() for task in _TASKS}
    if name not in pipelines:
        raise ValueError(f"expected a pipeline out of {', '.join(pipelines)}, got {name!r}")
    return pipelines[name]


def components(index: Mapping[str, Any]) -> list[str]:
    """Names of the components to load that a model_index.json lists, the denoiser first.

    Raises:
        ValueError: no denoiser, or a component that its family does not have.
    """
    known = COMPONENTS[family(index)]
    denoiser = next(iter(known))
    listed = {name for name, entry in index.items() if isinstance(entry, list) and all(entry)}
    if unknown := sorted(listed - known.keys() - _IGNORED):
        raise ValueError(f"expected components out of {', '.join(known)}, got {', '.join(unknown)}")
    if denoiser not in listed:
        raise ValueError(f"expected a {denoiser} among the components, got {', '.join(sorted(listed)) or 'none'}")
    return [name for name in known if name in listed]


def class_name(config: Mapping[str, Any]) -> str:
    """The class of diffusers or transformers that a config.json is of.

    Raises:
        ValueError: none that is implemented; names those that are.
    """
    name = configuration.class_name(config)
    if name not in _CLASSES:
        raise ValueError(f"expected a config.json of {', '.join(_CLASSES)}, got {name!r}")
    return name


def module(config: Mapping[str, Any], dtype: Any = jnp.float32) -> nn.Module:
    """The module of a config.json; it computes in `dtype`.

    Raises:
        ValueError: a class or a setting that is not implemented, or a setting that is missing, by name.
    """
    return _file(config).from_config(config, dtype)


def shapes(config: Mapping[str, Any]) -> Any:
    """The parameters of the module of a config.json as `jax.ShapeDtypeStruct`s; nothing is computed.

    Raises:
        ValueError: as `module`.
    """
    return _shapes(module(config))


@functools.lru_cache(maxsize=32)
def _shapes(built: nn.Module) -> Any:
    return jax.eval_shape(built.init, jax.random.key(0), *example(built))["params"]


def example(built: nn.Module) -> tuple[Any, ...]:
    """Inputs of the smallest legal size for a module that `module` has built."""
    return sys.modules[type(built).__module__].example(built)


def _file(config: Mapping[str, Any]) -> ModuleType:
    # a family's module is read when it is asked for: most need none of the others
    return importlib.import_module(f"asyncpatch_jax.pretrained.networks.{_CLASSES[class_name(config)]}")
