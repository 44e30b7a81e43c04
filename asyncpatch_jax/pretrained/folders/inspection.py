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
from asyncpatch_jax.pretrained.folders import complete, families, loading, names, schedulers, tensors
from asyncpatch_jax.pretrained.folders.schedulers import Scheduler
from asyncpatch_jax.pretrained.networks.axes import logical_axes
from asyncpatch_jax.pretrained.text import tokenizers


class Inspected(NamedTuple):
    """One component.

    class_name: of diffusers or transformers; None where config.json does not say a known one.
    shapes: its module's parameters; None where there is no module.
    dtypes: how the file has them, as "BF16" or "F16, F32".
    disk: bytes of its tensors.
    renamed: how many tensors have names of other versions.
    problems: why it will not load, a sentence each; none if it will.
    """

    name: str
    class_name: str | None
    shapes: Any
    dtypes: str
    disk: int
    renamed: int
    problems: list[str]

    @property
    def parameters(self) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes))


class Folder(NamedTuple):
    """A folder of one component or of many, with what else a pipeline needs.

    family: None of a single component, or where model_index.json is of no known pipeline.
    problems: with the folder, its scheduler or its tokenizers.
    """

    path: Path
    family: str | None
    components: list[Inspected]
    scheduler: Scheduler | None
    problems: list[str]

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
    if (path / "config.json").is_file():
        return Folder(path, None, [_component(path.name, path, None, variant)], None, [])
    if not (path / "model_index.json").is_file():
        raise ValueError(f"expected a folder with a model_index.json, or with one network's config.json, got {path}")
    problems: list[str] = []
    index = _tried(problems, schema.read_json, path / "model_index.json")
    family = None if index is None else _tried(problems, families.family, index)
    if index is None or family is None:
        return Folder(path, None, [], None, problems)
    wanted = families.COMPONENTS[family]
    listed = _tried(problems, families.components, index) or [name for name in wanted if (path / name).is_dir()]
    components = [_component(name, path / name, wanted[name], variant) for name in listed]
    config = _tried(problems, schema.read_json, path / "scheduler" / "scheduler_config.json")
    scheduler = None if config is None else _tried(problems, schedulers.from_config, config)
    for name, entry in index.items():
        if name.startswith("tokenizer") and isinstance(entry, list) and all(entry):
            # T5's length is the pipeline's to choose, and may not be in its folder
            _tried(problems, tokenizers.read_tokenizer, path / name, 77)
    if not problems and not any(component.problems for component in components):
        _tried(problems, lambda: complete.check_complete(loading.describe(path)))
    return Folder(path, family, components, scheduler, problems)


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
    config = _tried(problems, schema.read_json, folder / "config.json")
    class_name = None if config is None else _tried(problems, families.class_name, config)
    if wanted is not None and class_name is not None:
        _tried(problems, loading.check_class, folder, wanted)
    shapes = None if class_name is None else _tried(problems, families.shapes, config)
    found = _tried(problems, tensors.find, folder, variant) if folder.is_dir() else None
    found = found or {}
    dtypes = ", ".join(sorted({tensor.dtype for tensor in found.values()}))
    renamed = 0
    if shapes is not None and found:
        slots = names.torch_tensors(shapes)
        match = names.match(slots, {key: tensor.shape for key, tensor in found.items()})
        renamed = sum(key != source for key, source in match.sources.items())
        problems += match.problems()
        for key in match.sources.values():
            if found[key].dtype not in tensors.FLOATS:
                problems.append(f"expected weights as {', '.join(tensors.FLOATS)}, got {found[key].dtype} in {key}")
    return Inspected(name, class_name, shapes, dtypes, sum(t.nbytes for t in found.values()), renamed, problems)
