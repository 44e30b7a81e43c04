"""Sets of files in folders: the record of one, and how a new one takes the place of another, whenever it is killed."""

import ctypes
import errno
import filecmp
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from etils import epath

import asyncpatch_jax
from asyncpatch_jax import files
from asyncpatch_jax.texts import read_text

RECORD = "made.json"


class Record(NamedTuple):
    """What made a set, and the SHA-256 of each of its files; None: not finished."""

    command: str
    files: dict[str, str | None]


def write(folder: epath.Path, command: str, settings: Mapping[str, Any], named: Mapping[str, str | None]) -> None:
    """Write the record of a set."""
    content = {
        "command": command,
        "version": asyncpatch_jax.__version__,
        "settings": dict(settings),
        "files": dict(named),
    }
    files.write_json(folder / RECORD, content, overwrite=True)


def read(folder: epath.Path) -> Record:
    """The record of a set. Raises ValueError if there is none, or one with names outside of the folder."""
    path = folder / RECORD
    try:
        content = json.loads(read_text(path))
        command, named = content["command"], content["files"]
        good = all(_inside(name) and (value is None or isinstance(value, str)) for name, value in named.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"expected a folder in which {RECORD} lists what a command made, got {folder}") from error
    if not good or not isinstance(command, str):
        raise ValueError(f"expected names of files within the folder in {path}, got something else")
    return Record(command, named)


def _inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and ".." not in parts and not name.startswith("/") and name != RECORD


def hash_of(path: epath.Path | Path) -> str:
    """What a file holds; a link is nobody's but the user's, whatever it leads to."""
    return "a link" if os.path.islink(path) else hashlib.sha256(path.read_bytes()).hexdigest()


def found_in(folder: epath.Path) -> dict[str, Path]:
    """All that is no folder by its name relative to `folder`, links among it: nothing outside is ever touched."""
    found = {}
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in (*names, *links):
            path = Path(parent, name)
            found[path.relative_to(folder).as_posix()] = path
    return found


def is_nothing(folder: epath.Path) -> bool:
    """An empty folder, or one with the record of a set of which no file was written yet."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    if [path.name for path in folder.iterdir()] != [RECORD]:
        return False
    with suppress(ValueError):
        return not any(read(folder).files.values())
    return False


def clear(folder: epath.Path) -> None:
    """Remove a record of which no file was written, and the folder if it held no more."""
    (folder / RECORD).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def add_own(folder: epath.Path, into: epath.Path) -> None:
    """Give a new set the own files of the old one's folder: other names of the same files where there can be such."""
    ours = {*read(folder).files, RECORD}

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)

    def skipped(parent: str, names: list[str]) -> list[str]:
        inside = PurePosixPath(os.path.relpath(parent, folder))
        return [name for name in names if (inside / name).as_posix() in ours]

    shutil.copytree(folder, into, symlinks=True, ignore=skipped, copy_function=link, dirs_exist_ok=True)
    for parent, _, _ in os.walk(into, topdown=False):
        if not any(os.scandir(parent)):
            os.rmdir(parent)  # in which the old set had files, and the new one has none


def exchange(one: epath.Path, other: epath.Path) -> None:
    """What has the one name has the other one then."""
    try:
        _exchange_at_once(one, other)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise
        old = files.aside(one, "old")
        one.rename(old)
        try:
            other.rename(one)
        except OSError:
            old.rename(one)
            raise
        old.rename(other)


def _exchange_at_once(one: epath.Path, other: epath.Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):  # Linux; from the working folder, flag RENAME_EXCHANGE
        failed = libc.renameat2(-100, paths[0], -100, paths[1], 2)
    elif hasattr(libc, "renamex_np"):  # macOS; flag RENAME_SWAP
        failed = libc.renamex_np(*paths, 2)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(one))
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(one))


def mend(folder: epath.Path) -> None:
    """Clean up what killed processes left beside a folder, and put back what one had moved aside when it died."""
    if not files.writes():
        return
    for kind in ("old", "part"):
        for path in files.left_behind(folder.parent, kind):
            if path.is_dir() and path.name.startswith(f".{folder.name}."):
                if kind == "old" and not folder.exists():
                    path.rename(folder)
                else:
                    discard(path, folder)


def tidy(folder: epath.Path) -> None:
    """Clean up what killed processes left within a folder: of a set, within all of it."""
    files.tidy(folder)
    if (folder / RECORD).exists():
        for parent, _, _ in os.walk(folder):
            files.tidy(parent)


def discard(path: epath.Path, folder: epath.Path) -> None:
    """Remove a set that is not needed, in a hidden folder; own files in it go to `folder`, unless they are there."""
    if not path.exists():
        return
    tidy(path)
    ours: set[str] = set()
    with suppress(ValueError):
        ours = {*read(path).files, RECORD}
    # the record last, since a kill may come here too
    for name, file in sorted(found_in(path).items(), key=lambda item: item[0] == RECORD):
        there = Path(folder, name)
        if name in ours or _same(file, there):
            file.unlink()
        elif not os.path.lexists(there):
            there.parent.mkdir(parents=True, exist_ok=True)
            os.rename(file, there)
    for parent, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            os.rmdir(parent)
    if path.exists():
        print(f"kept {path}, which has files of your own", file=sys.stderr)


def _same(one: Path, other: Path) -> bool:
    if not os.path.lexists(other) or os.path.islink(one) != os.path.islink(other):
        return False
    if os.path.islink(one):
        return os.readlink(one) == os.readlink(other)
    return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)


def free(folder: epath.Path) -> epath.Path:
    """The first of FOLDER_1, FOLDER_2, ... that is not there."""
    i = 1
    while (path := folder.with_name(f"{folder.name}_{i}")).exists():
        i += 1
    return path
