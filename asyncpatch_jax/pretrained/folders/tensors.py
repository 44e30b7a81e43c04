"""Tensors of a component's safetensors files: found by their headers alone, and read block by block where they go.

The format (github.com/huggingface/safetensors): 8 bytes with the length of a JSON header, the header with type, shape
and place of each tensor, then the tensors' bytes in row order.
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, NamedTuple

import ml_dtypes
import numpy as np
from msgspec import Meta, Struct

from asyncpatch_jax import schema

FLOATS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8}
_SIZES |= {"I64": 8, **{name: dtype.itemsize for name, dtype in FLOATS.items()}}
_STEMS = ("diffusion_pytorch_model", "model")
# what follows the stem: ".fp16.safetensors", ".safetensors.index.fp16.json", ".fp16.safetensors.index.json"
_FILE = re.compile(r"(?!.*-of-\d+\.)(?:\.(?P<before>[^.]+))?\.safetensors(?:\.index(?:\.(?P<behind>[^.]+))?\.json)?")
# a block of a tensor: as many rows as a processor's nearest cache has lines for, since a transposed copy takes one
# element of each in turn; and few bytes, which stay in its second cache
_ROWS, _BYTES = 256, 2**20
_MOST = 2**27  # bytes of a header; what is more is no header


_Bytes = Annotated[int, Meta(ge=0, lt=2**60)]


class _Entry(Struct, frozen=True):
    """Of one tensor in a header."""

    dtype: str
    shape: Annotated[tuple[_Bytes, ...], Meta(max_length=8)]
    data_offsets: tuple[_Bytes, _Bytes]


class _Index(Struct, frozen=True):
    """Which of several files has which tensor."""

    weight_map: dict[str, str]


class Tensor(NamedTuple):
    """Where a tensor lies."""

    file: Path
    dtype: str  # as the format names it: "F32", "BF16", ...
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _SIZES[self.dtype]


def header(file: Path) -> dict[str, Tensor]:
    """All tensors of one file, without reading them.

    Raises:
        ValueError: no safetensors file, or a truncated one; names it.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(len(schema.LFS))
        if start == schema.LFS.encode():
            raise ValueError(f"expected a safetensors file, got {file}, a pointer of Git LFS: {schema.LFS_HELP}")
        stream.seek(8)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(_MOST, size - 8):
            raise ValueError(f"expected a safetensors file, got {file}: its header is cut off, or it is something else")
        with schema.within(f"expected a safetensors file, got {file}"):
            entries = schema.decode(stream.read(length).decode(), "its header")
            entries.pop("__metadata__", None)
            found = {name: _tensor(file, 8 + length, name, entry) for name, entry in entries.items()}
    end = 8 + length
    for name, tensor in sorted(found.items(), key=lambda item: item[1].offset):
        if tensor.offset != end:
            raise ValueError(f"expected tensors side by side in {file}, got {name} at {tensor.offset}, not at {end}")
        end += tensor.nbytes
    if size != end:
        what = "it is truncated" if size < end else "more follows its last tensor"
        raise ValueError(f"expected {end} bytes in {file}, as its header says, got {size}: {what}")
    return found


def _tensor(file: Path, data: int, name: str, content: Any) -> Tensor:
    entry = schema.convert(content, _Entry, f"its header's {name}")
    (start, stop), shape = entry.data_offsets, entry.shape
    if entry.dtype not in _SIZES:
        raise ValueError(f"expected a type out of {', '.join(_SIZES)} of {name}, got the unknown type {entry.dtype}")
    if stop - start != math.prod(shape) * _SIZES[entry.dtype]:
        raise ValueError(f"expected as many bytes as {name} has, got {stop - start} bytes for {entry.dtype}{[*shape]}")
    return Tensor(file, entry.dtype, shape, data + start)


def find(folder: Path, variant: str | None = None) -> dict[str, Tensor]:
    """All tensors of a component's folder, of one file or of several with an index.

    Args:
        variant: of the files, say "fp16" for `model.fp16.safetensors`; None: those without one. Where there are no
            files of a variant, those without one; where there are none either, those of the only other variant.

    Raises:
        ValueError: no such files, a missing or truncated one, or files that contradict their index; names them.
    """
    there = _variants(folder)
    others = [name for name in there if name is not None]
    asked = [variant, None, *(others if len(others) == 1 else [])] if variant else [None]
    for name in asked:
        if name in there:
            file = there[name]
            return _sharded(file) if file.suffix == ".json" else header(file)
    wanted = " or ".join(f"{stem}{f'.{variant}' if variant else ''}.safetensors" for stem in _STEMS)
    raise ValueError(f"expected {wanted} (or its .index.json) in {folder}, got none{_instead(folder, others)}")


def other_variant(found: Mapping[str, Tensor], variant: str | None) -> str | None:
    """A sentence where `find` took other files than those of the variant; None where it did not."""
    file = next(iter(found.values())).file if found else None
    if variant is None or file is None or f".{variant}" in file.name:
        return None
    return f"no files of the variant {variant} are in {file.parent}: {file.name} is read instead"


def _variants(folder: Path) -> dict[str | None, Path]:
    """The file or the index of each variant that there is."""
    found: dict[str | None, Path] = {}
    for stem in reversed(_STEMS):
        # an index counts before a whole file
        for file in sorted(folder.glob(f"{stem}.*"), key=lambda file: (file.suffix == ".json", file.name)):
            if (name := _FILE.fullmatch(file.name.removeprefix(stem))) and file.is_file():
                found[name["before"] or name["behind"]] = file
    return found


def _instead(folder: Path, variants: list[str]) -> str:
    """What is there in the place of weights, and what to do."""
    if variants:
        names = ", ".join(variants)
        return f"; variants are asked for by name (--variant={variants[0]}), and those of {names} are there"
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".ckpt", ".pt", ".pth"))
    if pickled:
        return (
            f" but {pickled[0]}, which would have to be unpickled: download the safetensors files, or let diffusers or "
            "transformers write them, from_pretrained(FOLDER).save_pretrained(NEW)"
        )
    others = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".msgpack", ".h5"))
    return f", but {', '.join(others[:4])}" if others else ", and no other weights"


def _sharded(index: Path) -> dict[str, Tensor]:
    where = schema.read(index, _Index).weight_map
    names = sorted(set(where.values()))
    if outside := [name for name in names if PurePosixPath(name).name != name or PureWindowsPath(name).name != name]:
        raise ValueError(f"expected names of files beside {index} in its weight_map, got {outside[0]!r}")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(f"expected all {len(names)} files of {index}, got none named {', '.join(missing[:5])}")
    found: dict[str, Tensor] = {}
    for name in names:
        for key, tensor in header(index.parent / name).items():
            if key in found:
                raise ValueError(f"expected each tensor once, got {key} in {found[key].file.name} and in {tensor.file}")
            if where.get(key) != name:
                raise ValueError(f"expected {key} in {where.get(key, 'no file')}, as {index} says, got it in {name}")
            found[key] = tensor
    if missing := [key for key in where if key not in found]:
        raise ValueError(
            f"expected the tensors of {index} in its files, got no {', '.join(missing[:5])} ({len(missing)} in all)"
        )
    return found


def read(tensor: Tensor) -> np.ndarray:
    """The whole tensor.

    Raises:
        ValueError: as `blocks`.
    """
    out = np.empty(tensor.shape, _float(tensor))
    for copy in blocks(out, tensor, tuple(slice(0, size) for size in tensor.shape)):
        copy()
    return out


def blocks(out: np.ndarray, tensor: Tensor, index: tuple[slice, ...]) -> Iterator[Any]:
    """Functions without arguments that each copy one block of `tensor[index]` into its place in `out`, in its type.

    Of a file no more is in memory than a block for each function that runs.

    Args:
        out: of the shape of `tensor[index]`; may be a transposed view.
        index: slices with start and stop, without steps.

    Raises:
        ValueError: the tensor is no float; or (by a function) the file has become shorter.
    """
    dtype, shape, offset = _float(tensor), tensor.shape, tensor.offset
    while shape and (shape[0] == 1 or index[0].stop - index[0].start == 1):
        # blocks are rows of the first axis that has any
        offset += index[0].start * math.prod(shape[1:]) * dtype.itemsize
        out, shape, index = out[0, ...], shape[1:], index[1:]
    if not shape:
        shape, index, out = (1,), (slice(0, 1),), out.reshape(1)
    row = math.prod(shape[1:]) * dtype.itemsize
    rows = max(1, min(_ROWS, _BYTES // max(row, 1)))
    for start in range(index[0].start, index[0].stop, rows):
        stop = min(start + rows, index[0].stop)
        part = out[start - index[0].start : stop - index[0].start]
        block = tensor._replace(shape=(stop - start, *shape[1:]), offset=offset + start * row)
        yield partial(_copy, part, block, index[1:])


def _copy(out: np.ndarray, block: Tensor, index: tuple[slice, ...]) -> None:
    dtype, count = _float(block), math.prod(block.shape)
    values = np.fromfile(block.file, dtype, count, offset=block.offset)
    if values.size != count:
        raise ValueError(f"expected {count} numbers at byte {block.offset} of {block.file}, got {values.size}")
    values = values.reshape(block.shape)[(slice(None), *index)]
    values = values.astype(out.dtype, copy=False)
    if out.dtype == FLOATS["BF16"]:
        # as plain integers, which numpy moves faster than a type of others
        out, values = out.view(np.uint16), values.view(np.uint16)
    np.copyto(out, values)


def _float(tensor: Tensor) -> np.dtype:
    if tensor.dtype not in FLOATS:
        raise ValueError(f"expected weights as {', '.join(FLOATS)}, got {tensor.dtype} in {tensor.file}")
    return FLOATS[tensor.dtype]
