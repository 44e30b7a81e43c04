"""Writing files so that a path holds either what was there before or the whole new file, never a part of one."""

import functools
import hashlib
import io
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import jax
from etils import epath

_MARK = ".asyncpatch."
# of another machine that shares the disk nobody can say whether a process lives; after so long it does not
_ABANDONED = 24 * 3600.0  # seconds


def refuse_existing(path: epath.PathLike, overwrite: bool = False, *, hint: str = "") -> None:
    """Call it before the work whose result goes to `path`. An empty folder is nothing: a stopped run may leave one.

    Args:
        hint: how a user asks for overwriting, where that is possible.

    Raises:
        ValueError: something is there already, and `overwrite` is not set.
    """
    path = epath.Path(path)
    if not overwrite and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"expected a path where nothing exists yet, got {path}{hint and f' ({hint})'}")


def check_writable(path: epath.PathLike) -> None:
    """Call it before the work whose result goes to `path`, too: make its folder, and try to write in it.

    Raises:
        OSError: as `writing`.
    """
    with suppress(_TriedError), writing(path, overwrite=True) as stream:
        stream.write(b"\0")
        raise _TriedError


class _TriedError(Exception):
    """Ends a write that was only to be tried."""


def aside(path: epath.PathLike, kind: str) -> epath.Path:
    """A hidden name beside `path` that says which process uses it, so that `left_behind` knows when nobody does."""
    path = epath.Path(path)
    return path.parent / f".{path.name}{_MARK}{platform.node()}-{os.getpid()}.{kind}"


def left_behind(folder: epath.PathLike, kind: str) -> list[epath.Path]:
    """Names of `aside` in a folder whose processes were killed; on another machine, that nobody touched for a day."""
    folder = epath.Path(folder)
    if "://" in str(folder) or not folder.is_dir():
        return []  # in a bucket, a file that is not finished is not there
    return sorted(path for path in folder.glob(f".*{_MARK}*-*.{kind}") if not _in_use(path))


def _in_use(path: epath.Path) -> bool:
    machine, _, number = path.stem.rpartition(_MARK)[2].rpartition("-")
    if not (number.isascii() and number.isdecimal()):
        return True  # not ours
    if machine != platform.node():
        return time.time() - os.lstat(path).st_mtime < _ABANDONED
    if int(number) == os.getpid():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def tidy(folder: epath.PathLike) -> None:
    """Remove the parts of files that killed processes left in a folder."""
    for path in left_behind(folder, "part"):
        if not path.is_dir():
            path.unlink(missing_ok=True)


# once in a process, since it reads all names
_tidy_once = functools.lru_cache(256)(tidy)


def sha256(path: epath.PathLike) -> str:
    """Of a file's bytes, read a part at a time.

    Raises:
        OSError: it cannot be read.
    """
    with epath.Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def writes() -> bool:
    """Whether this is the one of several processes (`jax.distributed`) that writes files: the first."""
    return not (jax.distributed.is_initialized() and jax.process_index())


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
    if not writes():
        yield io.BytesIO()
        return
    refuse_existing(path, overwrite)
    path = epath.Path(path)
    part = aside(path, "part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _tidy_once(path.parent)
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
