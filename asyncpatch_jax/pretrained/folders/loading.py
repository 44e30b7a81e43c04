"""Pretrained folders on disk, in the layout of diffusers, into parameters where they belong: on one device or a mesh.

Parameters are read one after another, straight into the arrays that they become, each process only what its devices
hold: next to the arrays there is little else in a host's memory.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from asyncpatch_jax import schema, sharding
from asyncpatch_jax.pretrained.folders import edges, families, names, schedulers, tensors
from asyncpatch_jax.pretrained.folders.names import Slot
from asyncpatch_jax.pretrained.folders.schedulers import Scheduler
from asyncpatch_jax.pretrained.folders.tensors import Tensor
from asyncpatch_jax.pretrained.networks.axes import logical_axes
from asyncpatch_jax.pretrained.text.prompts import ENCODERS, read_listed

# threads that read and transpose; each holds one block of a tensor
_WORKERS = min(8, os.cpu_count() or 1)
# XLA on a CPU takes a buffer of this alignment as it is, without a copy
_ALIGNMENT = 64


class Component(NamedTuple):
    """A network: its module, its parameters (a tree for `module.apply({"params": params}, ...)`), its config.json."""

    module: nn.Module
    params: Any
    config: Mapping[str, Any]


class Pretrained(NamedTuple):
    """All that a folder holds.

    family: "sd", "sdxl", "sd3", "flux" or "kontext".
    components: by folder: "unet" or "transformer", "vae", "text_encoder", ...
    tokenizers: folders by name: "tokenizer", "tokenizer_2", ...
    index, scheduler_config: the contents of model_index.json and scheduler_config.json.
    """

    family: str
    components: dict[str, Component]
    scheduler: Scheduler
    tokenizers: dict[str, Path]
    index: Mapping[str, Any]  # type: ignore[assignment]  # hides tuple.index
    scheduler_config: Mapping[str, Any]

    @property
    def denoiser(self) -> Component:
        return self.components[next(iter(families.COMPONENTS[self.family]))]


def load_pretrained(
    folder: str | os.PathLike, mesh: Mesh | None = None, dtype: Any = jnp.bfloat16, *, variant: str | None = None
) -> Pretrained:
    """Read a folder in the layout of diffusers: networks, scheduler, and where its tokenizers are.

    Args:
        folder: the one with a model_index.json; or a Hub id such as "org/name" that the Hub's client has in its cache.
            Nothing is downloaded.
        mesh: where the parameters are split, by `axes.logical_axes`; None: all on the first device.
        dtype: of the parameters and of the computation. Components that overflow in float16 are float32 instead.
        variant: of the files, say "fp16" for `model.fp16.safetensors`. Networks without such files are read from what
            they have instead, with a warning.

    Raises:
        ValueError: no such folder, or one of another layout or pipeline; a file missing, truncated or of another
            network; a tensor missing, unused or of another shape; a setting that is not implemented; parts that do not
            fit each other, see `edges`. Names it.
    """
    folder = resolve(folder)
    described = describe(folder, dtype)
    _check_tokenizers(described)
    components = {name: load_component(folder / name, mesh, dtype, variant=variant) for name in described.components}
    return described._replace(components=components)


def describe(folder: str | os.PathLike, dtype: Any = jnp.bfloat16) -> Pretrained:
    """What `load_pretrained` would load, with shapes in the place of parameters: no tensor is read.

    Settings and requests can be checked against it (`pipelines.ready`) before minutes of reading are lost.

    Raises:
        ValueError: as `load_pretrained`, but for what is wrong with the tensors.
    """
    folder = resolve(folder)
    check_layout(folder)
    index = schema.read_json(folder / "model_index.json")
    with schema.within(folder / "model_index.json"):
        family = families.family(index)
        listed = families.components(index)
    scheduler_config = schema.read_json(folder / "scheduler" / "scheduler_config.json")
    with schema.within(folder / "scheduler" / "scheduler_config.json"):
        scheduler = schedulers.from_config(scheduler_config, whole=family in ("flux", "kontext"))
    wanted = families.COMPONENTS[family]
    components = {}
    for name in listed:
        check_class(folder / name, wanted[name])
        components[name] = describe_component(folder / name, dtype)
    tokenizers = tokenizer_folders(index, folder)
    edges.check_parts(family, components, scheduler)
    return Pretrained(family, components, scheduler, tokenizers, index, scheduler_config)


def tokenizer_folders(index: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Where the tokenizers are that a model_index.json lists, by their names."""
    listed = {name for name, entry in index.items() if isinstance(entry, list) and all(entry)}
    return {name: folder / name for name in ENCODERS if name in listed}


def _check_tokenizers(described: Pretrained) -> None:
    """Refuse tokenizers of other encoders, those that are there and can be read: loading itself needs none."""
    there = {name: path for name, path in described.tokenizers.items() if path.is_dir()}
    try:
        tokenizers = read_listed(described.family, there)
    except ImportError:  # without the extra `text` nobody can encode anything either
        return
    edges.check_tokenizers(described.family, described.components, tokenizers)


def load_component(
    folder: str | os.PathLike, mesh: Mesh | None = None, dtype: Any = jnp.bfloat16, *, variant: str | None = None
) -> Component:
    """Read one network: a folder with a config.json and safetensors files. Arguments and errors: `load_pretrained`."""
    folder = resolve(folder)
    described = describe_component(folder, dtype)
    found = tensors.find(folder, variant)
    if other := tensors.other_variant(found, variant):
        warnings.warn(other, stacklevel=2)
    return described._replace(params=read(described.params, found, folder, mesh))


def describe_component(folder: str | os.PathLike, dtype: Any = jnp.bfloat16) -> Component:
    """What `load_component` would load, with shapes in the place of parameters: no tensor is read.

    Raises:
        ValueError: as `load_component`, but for what is wrong with the tensors.
    """
    folder = resolve(folder)
    config = schema.read_json(folder / "config.json")
    if config.get("force_upcast") and np.dtype(dtype) == np.float16:
        dtype = jnp.float32
    with schema.within(folder / "config.json"):
        module = families.module(config, dtype)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), families.shapes(config))
    return Component(module, shapes, config)


def check_class(folder: Path, wanted: str) -> None:
    """Refuse a component of another class than its family has.

    Raises:
        ValueError: names folder and classes.
    """
    config = schema.read_json(folder / "config.json")
    with schema.within(folder / "config.json"):
        got = families.class_name(config)
    if got != wanted:
        raise ValueError(f"expected a {wanted} in {folder}, got a {got}")


_SINGLE_FILE = (
    "diffusers makes such a folder of a checkpoint in one file: from_single_file(FILE).save_pretrained(FOLDER) of its "
    "pipeline, say StableDiffusionPipeline"
)
_CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def check_layout(folder: Path) -> None:
    """Refuse a folder without a model_index.json.

    Raises:
        ValueError: says what is there instead, and what to do.
    """
    if (folder / "model_index.json").is_file():
        return
    single = sorted(file.name for file in folder.iterdir() if file.suffix in _CHECKPOINTS)
    hint = ""
    if (folder / "config.json").is_file():
        hint = ": one network's, of which the pipeline's folder is one level up"
    elif single:
        hint = f", with {single[0]} in it: {_SINGLE_FILE}"
    raise ValueError(
        f"expected a folder with a model_index.json, or with one network's config.json, got {folder} without it{hint}"
    )


def resolve(folder: str | os.PathLike) -> Path:
    """The folder itself, or that of a Hub id in the local cache of the Hub's client.

    Raises:
        ValueError: neither.
    """
    path = Path(folder)
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(f"expected a folder in diffusers' layout, got the file {path}: {_SINGLE_FILE}")
    message = f"expected a folder, or the id of a repository that the Hub's client has downloaded, got {str(folder)!r}"
    if path.is_absolute() or len(path.parts) != 2:
        raise ValueError(message)
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(f"{message}; for ids, pip install huggingface_hub") from error
    try:
        return Path(huggingface_hub.snapshot_download(str(folder), local_files_only=True))
    except (OSError, ValueError) as error:
        raise ValueError(f"{message}; hf download {folder} would fetch it") from error


def read(shapes: Any, found: Mapping[str, Tensor], where: Path, mesh: Mesh | None) -> Any:
    """Parameters of these shapes from the tensors of files, matched strictly.

    Args:
        shapes: tree of a module's parameters, or their shapes, of the type that they shall have.
        found: `tensors.find`.
        where: for errors.

    Raises:
        ValueError: a tensor missing, unused, doubled, of another shape, or no float.
    """
    slots = names.torch_tensors(shapes)
    match = names.match(slots, {name: tensor.shape for name, tensor in found.items()})
    names.check(match, str(where))
    sources: dict[tuple[str, ...], list[tuple[Slot, Tensor]]] = {}
    for key, slot in slots.items():
        tensor = found[match.sources[key]]._replace(shape=slot.shape)
        sources.setdefault(slot.path, []).append((slot, tensor))
    places = _places(shapes, mesh)
    with ThreadPoolExecutor(_WORKERS) as pool:
        leaves = {}
        for path, leaf, place in places:
            fill = _filler(leaf.shape, sources[path], np.dtype(leaf.dtype), pool.map)
            # one at a time: what waits for its way to a device takes memory here
            leaves[path] = jax.block_until_ready(jax.make_array_from_callback(leaf.shape, place, fill))
    return names.nested(leaves)


def _places(shapes: Any, mesh: Mesh | None) -> list[tuple[tuple[str, ...], Any, Sharding]]:
    flat = jax.tree_util.tree_flatten_with_path(shapes)[0]
    paths = [tuple(key.key for key in path) for path, _ in flat]
    if mesh is None:
        single = SingleDeviceSharding(jax.local_devices()[0])
        return [(path, leaf, single) for path, (_, leaf) in zip(paths, flat, strict=True)]
    placed = jax.tree.leaves(sharding.parameters(mesh, shapes, logical_axes(shapes)))
    return [(path, leaf, place) for path, (_, leaf), place in zip(paths, flat, placed, strict=True)]


def _filler(
    shape: Sequence[int], sources: Sequence[tuple[Slot, Tensor]], dtype: np.dtype, run: Callable[..., Any]
) -> Callable[[Any], np.ndarray]:
    """The function that reads a part of a parameter, for `jax.make_array_from_callback`."""
    known: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(axis.indices(size)[:2] for axis, size in zip(index, shape, strict=True))
        if bounds not in known:  # devices that hold the same part share it
            out = _aligned(tuple(stop - start for start, stop in bounds), dtype)
            list(run(lambda copy: copy(), _copies(out, bounds, sources)))
            known[bounds] = out
        return known[bounds]

    return part


def _copies(out: np.ndarray, bounds: Sequence[tuple[int, int]], sources: Sequence[tuple[Slot, Tensor]]) -> Any:
    stacked = sources[0][0].layer is not None
    layers = sources[slice(*bounds[0])] if stacked else sources
    for i, (slot, tensor) in enumerate(layers):
        base = bounds[1:] if stacked else bounds
        index = tuple(slice(*base[axis]) for axis in slot.inverse)
        yield from tensors.blocks((out[i] if stacked else out).transpose(slot.inverse), tensor, index)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def latent_channels(pretrained: Pretrained) -> int:
    """Channels of the latents of an image."""
    return families.example(pretrained.denoiser.module)[0].shape[-1]
