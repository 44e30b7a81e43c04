"""Writing files so that a path holds either what was there before or the whole new file, never a part of one."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import jax
from etils import epath


def refuse_existing(path: epath.PathLike, overwrite: bool = False) -> None:
    """Call it before the work whose result goes to `path`. An empty folder is nothing: a stopped run may leave one.

    Raises:
        ValueError: something is there already, and `overwrite` is not set.
    """
    path = epath.Path(path)
    if not overwrite and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"expected a path where nothing exists yet, got {path} (ask for overwriting to replace it)")


def check_writable(path: epath.PathLike) -> None:
    """Call it before the work whose result goes to `path`, too: make its folder, and try to write in it.

    Raises:
        OSError: as `writing`.
    """
    path = epath.Path(path)
    probe = path.parent / f".{path.name}.{os.getpid()}.try"
    with writing(probe) as stream:
        stream.write(b"\0")
    probe.unlink(missing_ok=True)


@contextmanager
def writing(path: epath.PathLike, *, overwrite: bool = False) -> Iterator[IO[bytes]]:
    """A binary stream that becomes `path` once the block ends well; the folder is made when it is missing.

    The bytes go to a temporary name beside `path`, and take its place in one rename: no reader sees half a file, and a
    full disk or a crash leaves what was there before. Of several processes (`jax.distributed`), which all make the
    same, only the first writes.

    Raises:
        ValueError: `path` exists and `overwrite` is not set.
        OSError: the file cannot be written, with its path and the reason (no space left, no permission, ...).
    """
    if jax.distributed.is_initialized() and jax.process_index():
        yield io.BytesIO()
        return
    refuse_existing(path, overwrite)
    path = epath.Path(path)
    part = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            yield stream
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"could not write {path}: {reason}; no partial file is left") from error
        raise


def write_json(path: epath.PathLike, content: Any, *, overwrite: bool = False) -> None:
    """`writing`, for JSON; NaN is refused, since JSON has none.

    Raises:
        ValueError: `path` exists, or a number is not finite.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with writing(path, overwrite=overwrite) as stream:
        stream.write(text.encode())
