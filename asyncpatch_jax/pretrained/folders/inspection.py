"""What a pretrained folder holds and whether it will load, from its headers alone: no tensor is read."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh

from asyncpatch_jax import schema, sharding
from asyncpatch_jax.pretrained.folders import complete, edges, families, loading, names, schedulers, tensors
from asyncpatch_jax.pretrained.folders.loading import Component, Pretrained
from asyncpatch_jax.pretrained.folders.schedulers import Scheduler
from asyncpatch_jax.pretrained.networks.axes import logical_axes
from asyncpatch_jax.pretrained.text.prompts import read_listed


class Inspected(NamedTuple):
    """One component.

    class_name: of diffusers or transformers; None where config.json does not say a known one.
    network: with shapes in the place of parameters; None where config.json makes none.
    dtypes: how the file has them, as "BF16" or "F16, F32".
    disk: bytes of its tensors.
    renamed: how many tensors have names of other versions.
    problems: why it will not load, a sentence each; none if it will.
    notes: what is done otherwise than asked for, or than the folder says.
    """

    name: str
    class_name: str | None
    network: Component | None
    dtypes: str
    disk: int
    renamed: int
    problems: list[str]
    notes: list[str]

    @property
    def shapes(self) -> Any:
        """Of its parameters; None where there is no network."""
        return None if self.network is None else self.network.params

    @property
    def parameters(self) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes))


class Folder(NamedTuple):
    """A folder of one component or of many, with what else a pipeline needs.

    family: None of a single component, or where model_index.json is of no known pipeline.
    problems: with the folder, its scheduler or its tokenizers; or parts that do not fit each other.
    notes: what of the folder is not looked at, or not followed.
    """

    path: Path
    family: str | None
    components: list[Inspected]
    scheduler: Scheduler | None
    problems: list[str]
    notes: list[str]

    @property
    def loads(self) -> bool:
        return not self.problems and not any(component.problems for component in self.components)


def inspect(folder: str | os.PathLike, *, variant: str | None = None) -> Folder:
    """Look at a folder with a model_index.json, or at one component's with a config.json.

    Args:
        variant: as of `loading.load_pretrained`.

    Raises:
        ValueError: no folder, or neither file is in it. All else is told in the result.
    """
    path = loading.resolve(folder)
    if not (path / "model_index.json").is_file() and (path / "config.json").is_file():
        return Folder(path, None, [_component(path.name, path, None, variant)], None, [], [])
    loading.check_layout(path)
    problems: list[str] = []
    notes = ["config.json beside model_index.json is not read"] if (path / "config.json").exists() else []
    index = _tried(problems, schema.read_json, path / "model_index.json")
    family = None if index is None else _tried(problems, families.family, index)
    if index is None or family is None:
        return Folder(path, None, [], None, problems, notes)
    wanted = families.COMPONENTS[family]
    listed = _tried(problems, families.components, index) or [name for name in wanted if (path / name).is_dir()]
    components = [_component(name, path / name, wanted[name], variant) for name in listed]
    config = _tried(problems, schema.read_json, path / "scheduler" / "scheduler_config.json")
    scheduler = None if config is None else _tried(problems, schedulers.from_config, config)
    notes += [] if scheduler is None else schedulers.notes(config)
    folders = loading.tokenizer_folders(index, path)
    tokenizers = {name: _tried(problems, read_listed, family, {name: place}) for name, place in folders.items()}
    networks = {part.name: part.network for part in components if part.network is not None}
    if scheduler is not None and len(networks) == len(components):
        described = Pretrained(family, networks, scheduler, folders, index, config)
        _tried(problems, complete.check_complete, described)
        read = {name: tokenizer for part in tokenizers.values() if part for name, tokenizer in part.items()}
        _tried(problems, edges.check_tokenizers, family, networks, read)
    return Folder(path, family, components, scheduler, problems, notes)


def bytes_per_chip(shapes: Any, dtype: Any, fsdp: int, tensor: int = 1) -> int:
    """Bytes of parameters that each chip of a mesh holds.

    Args:
        shapes: tree of parameters or their shapes.
        dtype: that they have there.
        fsdp, tensor: sizes of the mesh's axes, see `sharding`.
    """
    mesh = AbstractMesh((1, fsdp, tensor), sharding.AXES)
    places = sharding.parameters(mesh, shapes, logical_axes(shapes))
    parts = jax.tree.map(lambda leaf, place: math.prod(place.shard_shape(tuple(leaf.shape))), shapes, places)
    return sum(jax.tree.leaves(parts)) * np.dtype(dtype).itemsize


def _tried(problems: list[str], call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except (ValueError, OSError, ImportError) as error:
        problems.append(str(error))
        return None


def _component(name: str, folder: Path, wanted: str | None, variant: str | None) -> Inspected:
    problems: list[str] = []
    notes: list[str] = []
    config = _tried(problems, schema.read_json, folder / "config.json")
    class_name = None if config is None else _tried(problems, families.class_name, config)
    if wanted is not None and class_name is not None:
        _tried(problems, loading.check_class, folder, wanted)
    # one of another class would only be said to have other tensors, too
    network = None if class_name is None or problems else _tried(problems, loading.describe_component, folder)
    found = _tried(problems, tensors.find, folder, variant) if folder.is_dir() else None
    found = found or {}
    if found and (other := tensors.other_variant(found, variant)):
        notes.append(other)
    dtypes = ", ".join(sorted({tensor.dtype for tensor in found.values()}))
    renamed = 0
    if network is not None and found:
        slots = names.torch_tensors(network.params)
        match = names.match(slots, {key: tensor.shape for key, tensor in found.items()})
        renamed = sum(key != source for key, source in match.sources.items())
        problems += match.problems()
        for key in match.sources.values():
            if found[key].dtype not in tensors.FLOATS:
                problems.append(f"expected weights as {', '.join(tensors.FLOATS)}, got {found[key].dtype} in {key}")
    disk = sum(tensor.nbytes for tensor in found.values())
    return Inspected(name, class_name, network, dtypes, disk, renamed, problems, notes)
