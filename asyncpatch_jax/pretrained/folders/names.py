"""PyTorch's names and layouts of a module's parameters, from the paths of the parameters alone.

Modules have the names of PyTorch's, so a path joined by dots is the name of a tensor but for its last part: `kernel`,
`scale` and `embedding` are PyTorch's `weight`. The kernels of linear layers and convolutions are transposed. A module
named "blocks.0:13", made by `nn.scan`, holds the layers 0 ... 12 on a leading axis of each parameter.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

_STACK = re.compile(r"(?<![^.])(\d+):(\d+)(?![^.])")
_WEIGHTS = {"kernel", "scale", "embedding"}
# from PyTorch's axes to ours, by the number of axes of one layer's kernel: linear (o, i), convolutions (o, i, space)
_ORDER = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}
_SHOWN = 5


class Slot(NamedTuple):
    """Where one PyTorch tensor goes."""

    path: tuple[str, ...]  # of the parameter
    layer: int | None  # index on the leading axis of a stacked parameter
    order: tuple[int, ...]  # np.transpose(tensor, order) is the parameter, or its layer
    shape: tuple[int, ...]  # of the tensor in PyTorch

    @property
    def inverse(self) -> tuple[int, ...]:
        """np.transpose(parameter, inverse) is the tensor."""
        return tuple(int(axis) for axis in np.argsort(self.order))


class Match(NamedTuple):
    """Which tensors of a checkpoint are which of a module's, and what does not fit."""

    sources: dict[str, str]  # name in the module -> name in the checkpoint
    missing: list[str]
    unused: list[str]
    mismatched: list[str]  # sentences: name, shape expected, shape got
    duplicated: list[str]

    def problems(self) -> list[str]:
        """One sentence for each kind of problem; none if the checkpoint is this module's."""
        kinds = {
            "missing tensors": self.missing,
            "unused tensors": self.unused,
            "tensors of another shape": self.mismatched,
            "tensors under two names": self.duplicated,
        }
        return [f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds.items() if names]


def torch_tensors(shapes: Any) -> dict[str, Slot]:
    """The PyTorch tensors that a tree of parameters (or of their shapes, from `jax.eval_shape`) stands for, by name.

    Raises:
        ValueError: two parameters of one name, or a stacked module whose leading axis is not its number of layers.
    """
    slots: dict[str, Slot] = {}
    for path, leaf in _leaves(shapes):
        name, shape = _name(path), tuple(leaf.shape)
        stack = _STACK.findall(name)
        if not stack:
            layers: list[tuple[str, int | None]] = [(name, None)]
        else:
            start, stop = map(int, stack[0])
            if len(stack) > 1 or not shape or shape[0] != stop - start:
                raise ValueError(f"expected {name} to stack {stop - start} layers on its first axis, got shape {shape}")
            layers = [(_STACK.sub(str(start + i), name), i) for i in range(stop - start)]
            shape = shape[1:]
        order = _ORDER.get(len(shape)) if path[-1] == "kernel" else tuple(range(len(shape)))
        if order is None:
            raise ValueError(f"expected the kernel {name} of a linear layer or a convolution, got shape {shape}")
        torch_shape = tuple(shape[axis] for axis in np.argsort(order))
        for key, layer in layers:
            if key in slots:
                raise ValueError(f"expected one parameter for {key}, got two: {'/'.join(path)} is the second")
            slots[key] = Slot(path, layer, order, torch_shape)
    return slots


def match(slots: Mapping[str, Slot], available: Mapping[str, tuple[int, ...]]) -> Match:
    """Find a module's tensors among those of a checkpoint, by today's or by legacy names.

    Args:
        slots: `torch_tensors` of the module.
        available: shapes of the checkpoint's tensors.
    """
    found: dict[str, str] = {}
    unused, duplicated = [], []
    # today's names first: what a legacy name means is only asked where today's name is not there
    for source in sorted(available, key=lambda source: (source not in slots, source)):
        key = source if source in slots else _today(source, slots)
        if key is None:
            if not _is_derived(source):
                unused.append(source)
        elif key not in found:
            found[key] = source
        elif not _is_tied(source):
            duplicated.append(f"{source} and {found[key]}")
    mismatched = [
        f"{source}: {list(slots[key].shape)} expected, {list(available[source])} found"
        for key, source in found.items()
        if not _fits(key, slots[key].shape, tuple(available[source]))
    ]
    return Match(found, [key for key in slots if key not in found], unused, mismatched, duplicated)


def check(found: Match, where: str) -> None:
    """Refuse a checkpoint that is not exactly a module's.

    Args:
        where: the file or folder, for the error.

    Raises:
        ValueError: missing, unused, doubled tensors or ones of another shape; names the first of each and their number.
    """
    if problems := found.problems():
        raise ValueError(f"expected exactly the module's tensors in {where}, got " + "; ".join(problems))


def from_torch(shapes: Any, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters from a PyTorch state dict, in the state dict's types. Names are matched strictly, both ways.

    Args:
        shapes: the module's parameters, or their shapes from `jax.eval_shape`.
        state: tensors as numpy arrays; legacy names are understood.

    Raises:
        ValueError: missing, unused, doubled tensors or ones of another shape.
    """
    slots = torch_tensors(shapes)
    found = match(slots, {name: tuple(tensor.shape) for name, tensor in state.items()})
    check(found, "the state dict")
    layers: dict[tuple[str, ...], list[np.ndarray]] = {}
    for key, slot in slots.items():  # layers of one stack follow each other
        tensor = np.asarray(state[found.sources[key]]).reshape(slot.shape)
        layers.setdefault(slot.path, []).append(tensor.transpose(slot.order))
    stacked = {slot.path for slot in slots.values() if slot.layer is not None}
    return nested({path: np.stack(parts) if path in stacked else parts[0] for path, parts in layers.items()})


def to_torch(params: Any) -> dict[str, np.ndarray]:
    """The PyTorch state dict of parameters, as contiguous numpy arrays: the inverse of `from_torch`."""
    leaves = dict(_leaves(params))
    state = {}
    for key, slot in torch_tensors(params).items():
        leaf = leaves[slot.path] if slot.layer is None else leaves[slot.path][slot.layer]
        state[key] = np.ascontiguousarray(np.asarray(leaf).transpose(slot.inverse))
    return state


def nested(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The tree of nested dicts that has these leaves."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        inner = tree
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = leaf
    return tree


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(tuple(str(key.key) for key in path), leaf) for path, leaf in flat]


def _name(path: tuple[str, ...]) -> str:
    return ".".join((*path[:-1], "weight" if path[-1] in _WEIGHTS else path[-1]))


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _today(source: str, slots: Mapping[str, Slot]) -> str | None:
    for rename in (_clip, _vae, _t5):
        for key in rename(source):
            if key in slots:
                return key
    return None


def _clip(source: str) -> list[str]:
    """Files before transformers 5 have all of CLIP's text encoder but the projection under "text_model."."""
    prefix = "text_model."
    return [source.removeprefix(prefix) if source.startswith(prefix) else prefix + source]


_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE_NAME = re.compile(r"(.*\.mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)")


def _vae(source: str) -> list[str]:
    """The attention of a VAE in files before diffusers 0.12."""
    parts = _VAE_NAME.fullmatch(source)
    return [f"{parts[1]}.{_VAE[parts[2]]}.{parts[3]}"] if parts else []


_T5 = ("shared.weight", "encoder.embed_tokens.weight")


def _t5(source: str) -> list[str]:
    """One table of tokens under two names, of which a file has one or both."""
    return [key for key in _T5 if key != source] if source in _T5 else []


def _is_tied(source: str) -> bool:
    return source in _T5


def _is_derived(source: str) -> bool:
    """0, 1, 2, ...: a buffer that old CLIP files keep."""
    return source.endswith("embeddings.position_ids")


def _fits(key: str, want: tuple[int, ...], have: tuple[int, ...]) -> bool:
    # a linear layer of a VAE's attention was once a convolution of one pixel
    return have == want or (".mid_block.attentions.0." in key and len(want) == 2 and have == (*want, 1, 1))
