"""Published files of networks into folders that metrics are read from: safetensors, config.json, tokenizer.

PyTorch is needed for files that are not safetensors. Nothing is downloaded.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asyncpatch_jax.files import refuse_existing
from asyncpatch_jax.metrics.sources import SOURCES, State
from asyncpatch_jax.pretrained.folders import families, names, tensors
from asyncpatch_jax.pretrained.folders.loading import Component
from asyncpatch_jax.pretrained.folders.saving import save_component
from asyncpatch_jax.pretrained.text.tokenizers import read_tokenizer

_TOKENIZER = {
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
}  # fmt: skip


def convert(
    name: str,
    files: Sequence[str | os.PathLike],
    folder: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
) -> None:
    """Write the folder that a metric's network is read from.

    Args:
        name: one of `SOURCES`.
        files: the published ones, together with all of its tensors: safetensors, or a state dict of PyTorch's.
        folder: new, or empty.
        tokenizer: folder of a tokenizer, of which a copy is made.

    Raises:
        ValueError: an unknown name; files that are not exactly this network's; a folder that is not empty; no
            tokenizer, or one for a network that reads no text.
        ImportError: PyTorch, which reads such a file, or the extra `text` is not installed.
        OSError: a file cannot be read or written.
    """
    if name not in SOURCES:
        raise ValueError(f"expected a network out of {', '.join(SOURCES)}, got {name!r}")
    source, folder = SOURCES[name], Path(folder)
    if (tokenizer is None) == bool(source.tokenizer):
        wanted = f"a folder with the tokenizer of {source.tokenizer}" if source.tokenizer else "no tokenizer"
        raise ValueError(f"expected {wanted} for {name}, got {tokenizer}")
    refuse_existing(folder)
    if tokenizer is not None:  # what is wrong shall be said before minutes of reading
        read_tokenizer(tokenizer, 2)
    state: dict[str, np.ndarray] = {}
    for file in files:
        part = read_state(Path(file))
        if twice := sorted(state.keys() & part.keys()):
            raise ValueError(f"expected each tensor in one file, got {twice[0]} in {file} again")
        state |= part
    save_component(component(name, state), folder)
    if tokenizer is not None:
        for file in sorted(Path(tokenizer).iterdir()):
            if file.name in _TOKENIZER:
                shutil.copyfile(file, folder / file.name)


def component(name: str, state: State) -> Component:
    """The network of a metric from its tensors by their published names, in their types.

    Raises:
        ValueError: they are not exactly this network's.
    """
    source = SOURCES[name]
    config = {**source.config, "_reward": name}
    try:
        params = names.from_torch(families.shapes(config), source.rename(state))
    except ValueError as error:
        raise ValueError(f"expected the tensors of {name}, from {source.files}: {error}") from error
    return Component(families.module(config), params, config)


def read_state(file: Path) -> dict[str, np.ndarray]:
    """The floats of a safetensors file or of a state dict that PyTorch wrote, also one under the key "state_dict".

    Raises:
        ValueError: something else.
        ImportError: PyTorch is not installed.
    """
    if file.suffix == ".safetensors":
        found = tensors.header(file)
        return {name: tensors.read(tensor) for name, tensor in found.items() if tensor.dtype in tensors.FLOATS}
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"expected torch, which reads {file}: pip install torch ({error})") from error
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what is no such file fails in any way while it is unpickled
        reason = str(error).strip().split("\n")[0]
        if "TorchScript" in reason:
            reason = "a program of TorchScript, such as inception-2015-12-05.pt of NVIDIA and clean-fid"
        raise ValueError(f"expected a state dict that PyTorch wrote in {file}, got something else: {reason}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"expected a dict of tensors in {file}, got something else")
    floats = {name: tensor.detach() for name, tensor in content.items() if tensor.is_floating_point()}
    # numpy has no bfloat16
    return {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in floats.items()}
