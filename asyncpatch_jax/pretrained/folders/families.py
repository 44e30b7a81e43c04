"""Which module a config.json is of, and what the folders of each family of text-to-image networks hold."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from asyncpatch_jax.texts import read_text

# classes of diffusers and transformers, and of rewards -> the file that implements them
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


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: no JSON object in it; or there is no such file. Names it.
    """
    text = read_text(file)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"expected JSON in {file}, got {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {file}, got {type(content).__name__}")
    return content


def family(index: Mapping[str, Any]) -> str:
    """The family that a model_index.json is of: "sd", "sdxl", "sd3", "flux" or "kontext".

    Raises:
        ValueError: another pipeline; names those that there are.
    """
    pipelines = {f"{name}{task}Pipeline": family for name, family in _PIPELINES.items() for task in _TASKS}
    if (name := index.get("_class_name")) not in pipelines:
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
    name = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if name not in _CLASSES:
        raise ValueError(f"expected a config.json of {', '.join(_CLASSES)}, got {name!r}")
    return name


def module(config: Mapping[str, Any], dtype: Any = jnp.float32) -> nn.Module:
    """The module of a config.json; it computes in `dtype`.

    Raises:
        ValueError: a class or a setting that is not implemented, or a setting that is missing, by name.
    """
    try:
        return _file(config).from_config(config, dtype)
    except KeyError as error:
        name = class_name(config)
        raise ValueError(f"expected the setting {error} in the config.json of {name}, got none") from error


def shapes(config: Mapping[str, Any]) -> Any:
    """The parameters of the module of a config.json as `jax.ShapeDtypeStruct`s; nothing is computed.

    Raises:
        ValueError: as `module`.
    """
    built = module(config)
    return jax.eval_shape(built.init, jax.random.key(0), *example(config, built))["params"]


def example(config: Mapping[str, Any], built: nn.Module) -> tuple[Any, ...]:
    """Inputs of the smallest legal size for the module that `module(config)` has built."""
    return _file(config).example(built)


def _file(config: Mapping[str, Any]) -> ModuleType:
    # a family's module is read when it is asked for: most need none of the others
    return importlib.import_module(f"asyncpatch_jax.pretrained.networks.{_CLASSES[class_name(config)]}")
