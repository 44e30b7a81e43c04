"""Folders of localised autoencoders: config.json and model.safetensors, read strictly, written whole or not at all."""

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from msgspec import Meta

from asyncpatch_jax import files, schema, sharding
from asyncpatch_jax.models.layers import NormKind, Remat
from asyncpatch_jax.models.localised import PRESETS, Attended, LocalisedAutoencoder, shapes
from asyncpatch_jax.models.quantiser import Lookup
from asyncpatch_jax.schema import Settings

__all__ = ["CLASS", "PRESETS", "Config", "LocalisedAutoencoder", "is_one", "load", "save", "shapes"]

CLASS = "LocalisedAutoencoder"
_FILE = "model.safetensors"

_Size = Annotated[int, Meta(ge=1, le=2**20)]
_Sizes = Annotated[tuple[Annotated[int, Meta(ge=1, le=64)], ...], Meta(min_length=1, max_length=8)]


class Config(Settings, frozen=True):
    """A config.json: the module's settings but for how it computes."""

    channels: _Size
    latent_channels: _Size
    codes: _Size
    lookup: Lookup
    base: _Size
    multipliers: _Sizes
    blocks: Annotated[int, Meta(ge=1, le=64)]
    encoder_blocks: Annotated[int, Meta(ge=1, le=64)]
    windows: _Sizes
    norm: NormKind
    attention: Attended
    head_dim: _Size
    told: bool


def save(folder: epath.PathLike, module: LocalisedAutoencoder, params: Any, *, overwrite: bool = False) -> None:
    """Write config.json and model.safetensors, which `load` reads; each whole or not at all, the settings last.

    Raises:
        ValueError: the folder has them already, and `overwrite` is not set; or the parameters are another module's.
        OSError: a file cannot be written.
    """
    from safetensors.numpy import save as packed

    folder = epath.Path(folder)
    for name in ("config.json", _FILE):
        files.refuse_existing(folder / name, overwrite)
    found = {name: np.asarray(leaf, np.float32) for name, leaf in _flat(params).items()}
    _check_same(found, module, str(folder))
    content = packed(found, metadata={"format": "np"})
    # settings of other parameters shall not lie beside these, if the second file cannot be written
    if overwrite and files.writes():
        (folder / "config.json").unlink(missing_ok=True)
    with files.writing(folder / _FILE, overwrite=overwrite) as stream:
        stream.write(content)
    settings = {name: getattr(module, name) for name in Config.__struct_fields__}
    files.write_json(folder / "config.json", {"_class_name": CLASS, **settings}, overwrite=overwrite)


def is_one(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of such an autoencoder."""
    return config.get("_class_name") == CLASS


def load(
    folder: epath.PathLike, mesh: Mesh | None = None, dtype: Any = jnp.float32, *, remat: Remat = "none"
) -> tuple[LocalisedAutoencoder, Any]:
    """The module and the parameters (float32) that `save` wrote.

    Args:
        mesh: where parameters are laid out, by `logical_axes`; None: the first device has all of them.
        dtype: of the computation.

    Raises:
        ValueError: no such folder or file, one of another network or not whole, or a tensor that is missing, unused, of
            another shape or type. Names it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as unpacked

    folder = epath.Path(folder)
    config = schema.read_json(folder / "config.json")
    if not is_one(config):
        got = schema.shown(config.get("_class_name"))
        raise ValueError(f"expected the folder of a {CLASS}, as launch.train_autoencoder writes, got {got} in {folder}")
    given = schema.convert(config, Config, str(folder / "config.json"))
    with schema.within(folder / "config.json"):
        named = {name: getattr(given, name) for name in Config.__struct_fields__}
        module = LocalisedAutoencoder(**named, dtype=dtype, remat=remat)
    try:
        found = unpacked((folder / _FILE).read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"expected {_FILE} in {folder}, got none") from error
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"expected a whole file of tensors as {folder / _FILE}, got {error}") from error
    _check_same(found, module, str(folder / _FILE))
    wanted = shapes(module)
    places = None if mesh is None else sharding.parameters(mesh, wanted, module.logical_axes(wanted))
    params = jax.tree_util.tree_map_with_path(lambda path, _: found[_name(path)], wanted)
    return module, jax.device_put(params, places)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _flat(params: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _check_same(found: Mapping[str, np.ndarray], module: LocalisedAutoencoder, where: str) -> None:
    there = {name: f"{tensor.dtype}{list(tensor.shape)}" for name, tensor in found.items()}
    wanted = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _flat(shapes(module)).items()}
    wrong = [
        f"{name} {there.get(name, 'missing')} instead of {wanted.get(name, 'none')}"
        for name in sorted(there.keys() | wanted.keys())
        if there.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"expected the tensors of its settings in {where}, got {'; '.join(wrong[:3])}{more}")
