"""Pretrained networks back into folders in the layout of diffusers, which diffusers and transformers read."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from asyncpatch_jax import files
from asyncpatch_jax.pretrained.folders import families, names, tensors
from asyncpatch_jax.pretrained.folders.loading import Component, Pretrained
from asyncpatch_jax.pretrained.folders.names import Slot

_TYPES = {dtype: name for name, dtype in tensors.FLOATS.items()}
_ALIGNMENT = 8  # of the first tensor in a file, as the safetensors library has it


class _Entry(NamedTuple):
    key: str
    slot: Slot
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.slot.shape, dtype=np.int64)) * self.dtype.itemsize


def save_pretrained(
    pretrained: Pretrained, folder: str | os.PathLike, dtype: Any = None, *, max_shard_size: int = 5 * 10**9
) -> None:
    """Write all that `loading.load_pretrained` reads; of the tokenizers, copies.

    Each file appears whole or not at all, and model_index.json last: a folder without it is one that was not finished.
    Of several processes (`jax.distributed`), all must call this; the first writes.

    Args:
        dtype: of the tensors; None: as the parameters are.
        max_shard_size: in bytes; larger networks are written to several files with an index.

    Raises:
        ValueError: the folder exists and is not empty, the components are not those of the index, or a parameter is no
            float.
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    _check_free(folder)
    listed = families.components(pretrained.index)
    if set(listed) != set(pretrained.components):
        raise ValueError(f"expected the components of the index, {', '.join(listed)}, got {[*pretrained.components]}")
    for name, component in pretrained.components.items():
        save_component(component, folder / name, dtype, max_shard_size=max_shard_size)
    if jax.process_index() == 0:
        for name, source in pretrained.tokenizers.items():
            shutil.copytree(source, folder / name)
    files.write_json(folder / "scheduler" / "scheduler_config.json", _finite(pretrained.scheduler_config))
    files.write_json(folder / "model_index.json", _index(pretrained))


def save_component(
    component: Component, folder: str | os.PathLike, dtype: Any = None, *, max_shard_size: int = 5 * 10**9
) -> None:
    """Write one network: what `loading.load_component` reads. Arguments and errors: `save_pretrained`."""
    folder = Path(folder)
    _check_free(folder)
    leaves = {
        tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(component.params)
    }
    entries = [
        _Entry(key, slot, np.dtype(leaves[slot.path].dtype if dtype is None else dtype))
        for key, slot in names.torch_tensors(component.params).items()
    ]
    if wrong := [entry.key for entry in entries if entry.dtype not in _TYPES]:
        raise ValueError(f"expected floats of {', '.join(_TYPES.values())}, got others in {', '.join(wrong[:5])}")
    # wide types first, so that each tensor is aligned
    shards = _shards(sorted(entries, key=lambda entry: -entry.dtype.itemsize), max_shard_size)
    stem = "diffusion_pytorch_model" if "_class_name" in component.config else "model"
    where: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors"
        where |= {entry.key: name for entry in shard}
        _write(folder / name, shard, leaves)
    if len(shards) > 1:
        total = sum(entry.nbytes for entry in entries)
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        files.write_json(folder / f"{stem}.safetensors.index.json", content)
    files.write_json(folder / "config.json", _config(component.config, entries))


def _check_free(folder: Path) -> None:
    files.refuse_existing(folder)
    if jax.process_count() > 1:  # the first process shall not begin to write before the last has looked
        multihost_utils.sync_global_devices(f"save {folder}")


def _shards(entries: list[_Entry], most: int) -> list[list[_Entry]]:
    shards: list[list[_Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


def _write(file: Path, entries: list[_Entry], leaves: Mapping[tuple[str, ...], Any]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        offsets = [end, end := end + entry.nbytes]
        header[entry.key] = {"dtype": _TYPES[entry.dtype], "shape": entry.slot.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    path: tuple[str, ...] | None = None
    with files.writing(file) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, slot, dtype in entries:
            if slot.path != path:  # the layers of a stack follow each other
                path, whole = slot.path, _on_host(leaves[slot.path])
            if jax.process_index() == 0:
                part = whole if slot.layer is None else whole[slot.layer]
                array = np.ascontiguousarray(part.transpose(slot.inverse).astype(dtype))
                stream.write(array.reshape(-1).view(np.uint8).data)


def _on_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _config(config: Mapping[str, Any], entries: list[_Entry]) -> dict[str, Any]:
    """config.json with the tensors' type where it says one: transformers reads them in that type."""
    dtype = entries[0].dtype.name
    return {key: dtype if key in ("dtype", "torch_dtype") else value for key, value in config.items()}


def _finite(config: Mapping[str, Any]) -> dict[str, Any]:
    """scheduler_config.json without infinities: diffusers writes one, its own default, and JSON has none."""
    return {key: value for key, value in config.items() if not isinstance(value, float) or math.isfinite(value)}


def _index(pretrained: Pretrained) -> dict[str, Any]:
    """model_index.json without what was not read, such as a safety checker."""
    kept = {*pretrained.components, *pretrained.tokenizers, "scheduler"}
    return {
        key: [None, None] if isinstance(value, list) and key not in kept else value
        for key, value in pretrained.index.items()
    } | ({"requires_safety_checker": False} if "requires_safety_checker" in pretrained.index else {})
