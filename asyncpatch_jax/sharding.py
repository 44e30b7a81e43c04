"""Where arrays live: device meshes, and rules from logical names of axes to axes of the mesh.

Networks name what the axes of their parameters and activations are (`model.logical_axes`, `constrain`); only this file
knows the axes of the mesh:

- `data`: copies of the network, each on its part of the batch
- `fsdp`: the batch is split over it too, and so are parameters, gradients, optimiser state and averages (ZeRO,
  Rajbhandari et al. 2020; the choice of the axis is big_vision's). A program gathers the parameters once, in the type
  that it computes in (`gather`)
- `tensor`: heads and hidden channels within a layer (Megatron, Shoeybi et al. 2019)

A mesh of one device is a mesh like any other, and so is one of many processes, or of devices that only a compiler sees
(`jax.experimental.topologies`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

AXES = ("data", "fsdp", "tensor")
_BATCH = ("data", "fsdp")
_RULES = {"batch": _BATCH, "heads": "tensor", "hidden": "tensor"}
# axes that FSDP leaves alone: those of a stack of layers, of which a loop takes one after another, of a window, and of
# a table in which each device looks up what its images need
_WHOLE = ("layers", "window", "table")
# a smaller parameter is kept on every device: to gather it would take longer than it saves
MIN_SIZE = 2**14

Names = Sequence[str | None]
_active: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices` (default: all, of all processes); one of the sizes may be -1: what the others leave.

    Neighbours on a TPU's torus are neighbours in the mesh. Slices of a TPU, which a slow network connects, lie along
    `data`.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or `data` is no multiple of the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = (data, fsdp, tensor)
    known, count = math.prod(size for size in sizes if size != -1), len(devices)
    sensible = sizes.count(-1) <= 1 and all(size == -1 or size > 0 for size in sizes)
    if not sensible or (count % known if -1 in sizes else count != known):
        raise ValueError(
            f"expected data x fsdp x tensor = {count}, the number of devices (one of them may be -1: what the others "
            f"leave), got {data} x {fsdp} x {tensor}"
        )
    shape = tuple(count // known if size == -1 else size for size in sizes)
    if devices[0].platform != "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices)
    else:
        slices = len({getattr(device, "slice_index", 0) for device in devices})
        if shape[0] % slices:
            raise ValueError(f"expected data to be a multiple of {slices} slices, got {shape[0]}")
        inner = (shape[0] // slices, *shape[1:])
        if slices == 1:
            grid = mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
        else:
            grid = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch(mesh: Mesh) -> NamedSharding:
    """Of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(_BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_parts(mesh: Mesh) -> int:
    """In how many parts the batch is split."""
    return math.prod(mesh.shape[axis] for axis in _BATCH)


def parameter(mesh: Mesh | AbstractMesh, shape: Sequence[int], names: Names) -> NamedSharding:
    """Of one parameter: named axes by the rules, then `fsdp` on the largest axis that is left and that it divides.

    A parameter of fewer than MIN_SIZE elements is not split over `fsdp`.

    Args:
        names: of each axis; None for one without a rule.

    Raises:
        ValueError: another number of names than axes.
    """
    if len(names) != len(shape):
        raise ValueError(f"expected a name for each axis of {tuple(shape)}, got {tuple(names)}")
    axes = _axes(mesh, shape, names)
    if mesh.shape["fsdp"] > 1 and math.prod(shape) >= MIN_SIZE:
        free = [i for i, axis in enumerate(axes) if axis is None and names[i] not in _WHOLE]
        free = [i for i in free if shape[i] % mesh.shape["fsdp"] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*axes))


def parameters(mesh: Mesh | AbstractMesh, params: Any, names: Any) -> Any:
    """The tree of `parameter` shardings of a tree of parameters (or shapes), with `model.logical_axes(params)`."""
    return jax.tree.map(lambda leaf, axes: parameter(mesh, leaf.shape, axes), params, names)


def alike(mesh: Mesh, tree: Any, params: Any, shardings: Any) -> Any:
    """Shardings of any tree that holds copies of the parameters: a training state, the state of any optax chain.

    A leaf whose path ends like a parameter's, and whose shape is that parameter's, lies where the parameter lies; all
    else (counters, scalars) is replicated.
    """
    paths = [(_path(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    known = dict(zip(paths, jax.tree.leaves(shardings), strict=True))
    everywhere = replicated(mesh)

    def place(path: Any, leaf: Any) -> NamedSharding:
        names = _path(path)
        found = (known.get((names[i:], leaf.shape)) for i in range(len(names)))
        return next((sharding for sharding in found if sharding is not None), everywhere)

    return jax.tree_util.tree_map_with_path(place, tree)


def _path(path: Any) -> tuple[str, ...]:
    return tuple(keystr((key,), simple=True) for key in path)


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and types of a tree together with a tree of shardings (or one for all): what `lower` and Orbax take."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _, one=shardings: one, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


@contextmanager
def using(mesh: Mesh | None) -> Iterator[None]:
    """Within the block (around the body of a function that is traced), `constrain` and `per_shard` act on `mesh`."""
    token = _active.set(mesh if mesh is not None and mesh.size > 1 else None)
    try:
        yield
    finally:
        _active.reset(token)


def images_per_device(batch: int) -> int:
    """How many images of a batch each device has; all of them without a mesh."""
    mesh = _active.get()
    parts = 1 if mesh is None else batch_parts(mesh)
    return batch // parts if batch % parts == 0 else batch


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Lay an activation out by the names of its axes; nothing happens without a mesh.

    An axis that the mesh does not divide is not split.

    Raises:
        ValueError: another number of names than axes.
    """
    mesh = _active.get()
    if len(names) != x.ndim:
        raise ValueError(f"expected a name for each axis of {x.shape}, got {names}")
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*_axes(mesh, x.shape, names))))


def gather(params: Any, names: Any, dtype: Any) -> Any:
    """Parameters as a network uses them: kernels (two axes or more) in its compute type, and whole over `fsdp`.

    Their gradient is summed straight to where each part lies, in the compute type, as XLA sums the gradients of
    parameters that are cast where they are used. To gather once costs least: what each layer gathers for itself, the
    backward pass has to gather again, and in the compute type all parameters take a quarter of what the split saves.

    Args:
        names: `model.logical_axes(params)`.
        dtype: of the computation.
    """
    mesh = _active.get()

    def use(leaf: jax.Array, axes: Names) -> jax.Array:
        leaf = leaf.astype(dtype) if sum(axis != "layers" for axis in axes) > 1 else leaf
        if mesh is None or "fsdp" not in (split := parameter(mesh, leaf.shape, axes)).spec:
            return leaf
        return _whole(split, NamedSharding(mesh, PartitionSpec(*_axes(mesh, leaf.shape, axes))), leaf)

    return jax.tree.map(use, params, names)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _whole(split: NamedSharding, whole: NamedSharding, x: jax.Array) -> jax.Array:
    # in this order: what is sent is in the compute type
    return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(x, split), whole)


def _whole_forward(split: NamedSharding, whole: NamedSharding, x: jax.Array) -> tuple[jax.Array, None]:
    return _whole(split, whole, x), None


def _whole_backward(split: NamedSharding, whole: NamedSharding, _: None, g: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(g, split),)


_whole.defvjp(_whole_forward, _whole_backward)


def per_shard(
    function: Callable[..., Any], in_names: Sequence[Names], out_names: Names | list[Names]
) -> Callable[..., Any]:
    """A function that each device applies to its own part of the arguments, for kernels that XLA cannot divide.

    Without a mesh, it is `function` itself.

    Args:
        in_names: names of the axes of each argument, all of them arrays. An axis that the mesh does not divide (such as
            a batch of 1 that stands for all images) is whole on every device.
        out_names: of its result, or a list with those of each result; they are split if the arguments' axes of the same
            name are.
    """
    mesh = _active.get()
    if mesh is None:
        return function

    def divided(*args: Any) -> Any:
        specs = [PartitionSpec(*_axes(mesh, arg.shape, names)) for arg, names in zip(args, in_names, strict=True)]
        split = {name for spec, names in zip(specs, in_names, strict=True) for name, axis in zip(names, spec) if axis}  # noqa: B905, a spec drops Nones
        several = out_names if isinstance(out_names, list) else [out_names]
        out = [
            PartitionSpec(*(_RULES[name] if name is not None and name in split else None for name in names))
            for names in several
        ]
        out_specs = tuple(out) if isinstance(out_names, list) else out[0]
        return jax.shard_map(function, mesh=mesh, in_specs=tuple(specs), out_specs=out_specs, check_vma=False)(*args)

    return divided


def _axes(mesh: Mesh | AbstractMesh, shape: Sequence[int], names: Names) -> list[Any]:
    """The mesh axis of each axis by the rules; None where there is none or it does not divide."""
    axes: list[Any] = []
    for size, name in zip(shape, names, strict=True):
        axis = None if name is None else _RULES.get(name)
        parts = math.prod(mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis or ()))
        axes.append(axis if axis not in axes and parts > 1 and size % parts == 0 else None)
    return axes


def process_shard(mesh: Mesh) -> tuple[int, int]:
    """Which part of the batch this process reads: (index, count), as `dataset.batches` takes it.

    Processes that a tensor axis connects read the same part.

    Raises:
        ValueError: processes would read parts that overlap, as no mesh of whole hosts makes them.
    """
    owners = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
    return part(owners.reshape(batch_parts(mesh), -1), jax.process_index())


def part(owners: np.ndarray, process: int) -> tuple[int, int]:
    """`process_shard` of a process, from the processes [parts, devices] that hold each part of the batch."""
    rows = {index: frozenset(np.flatnonzero((owners == index).any(1)).tolist()) for index in np.unique(owners).tolist()}
    distinct = sorted(set(rows.values()), key=min)
    if sum(map(len, distinct)) != len(owners) or len(set(map(len, distinct))) != 1:
        counts = ", ".join(f"{len(parts)} of process {index}" for index, parts in list(rows.items())[:8])
        raise ValueError(
            f"expected a mesh that shares the {len(owners)} parts of a batch out evenly to hosts, got {counts}"
        )
    return distinct.index(rows[process]), len(distinct)


def place_batch(mesh: Mesh, local: Any) -> Any:
    """A global batch from the part that each process has read: arrays [b / count, ...] become global [b, ...].

    Processes' parts follow each other in the order of their rows of the mesh. Where a process's rows are not next to
    each other, as on some tori, an image has another index in the batch than one process alone would give it, and so
    other random keys.
    """
    _, count = process_shard(mesh)

    def place(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(batch(mesh), x, (x.shape[0] * count, *x.shape[1:]))

    return jax.tree.map(place, local)


def any_process(flag: bool) -> jax.Array:
    """Whether the flag is up in any process. All must ask alike; none waits until it reads the answer."""
    mesh = _all_devices()
    flags = jax.make_array_from_process_local_data(batch(mesh), np.full(len(mesh.local_devices), flag), (mesh.size,))
    return _any(flags, replicated(mesh))


@cache
def _all_devices() -> Mesh:
    return make_mesh()


@partial(jax.jit, static_argnums=1)
def _any(flags: jax.Array, everywhere: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.any(flags), everywhere)
