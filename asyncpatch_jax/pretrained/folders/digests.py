"""What a network's folder holds, as one short hash."""

import hashlib
import json
import os
from pathlib import Path

from asyncpatch_jax import schema
from asyncpatch_jax.pretrained.folders import tensors

_BLOCK = 2**26  # bytes


def digest(folder: str | os.PathLike) -> str:
    """A hash of a network's settings and weights: the same for the same network in files cut otherwise.

    Args:
        folder: with a config.json and safetensors files.

    Raises:
        ValueError: a file that is not there or not whole; names it.
    """
    folder = Path(folder)
    config = schema.read_json(folder / "config.json")
    # what else begins so are notes of the program that wrote it
    config = {name: value for name, value in config.items() if not name.startswith("_") or name == "_class_name"}
    found = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tensors.find(folder).items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.offset)
            for start in range(0, tensor.nbytes, _BLOCK):
                found.update(stream.read(min(_BLOCK, tensor.nbytes - start)))
    return found.hexdigest()[:16]
