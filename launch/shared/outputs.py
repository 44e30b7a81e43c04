"""What a command leaves in a folder: a set of files that is recorded there, and replaced as a whole or not at all.

`made.json` lists the files of a set, how they were made, and what they hold (SHA-256). Only these are ever replaced:
whatever else lies in the folder is someone's own and stays, and a file of the set that was changed since is own work.
Where nothing is, files appear as they are made. A set that is there stays until the new one, made aside in a hidden
folder beside it, takes its place: in one step where the file system can exchange two folders (Linux, macOS), else in
two renames, and a kill between these is mended by the next command.
"""

import ctypes
import errno
import filecmp
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from etils import epath

import asyncpatch_jax
from asyncpatch_jax import files
from asyncpatch_jax.texts import read_text
from launch.shared import processes

RECORD = "made.json"
_OVERWRITE = "--overwrite replaces what an earlier command made"


class Plan(NamedTuple):
    """A set that is to be written: checked, and nothing done yet.

    command: which makes it, such as "launch.sample"; "": a single file, without a record.
    names: of its files, relative to the folder.
    swapped: a set is there, which the new one replaces.
    """

    folder: epath.Path
    command: str
    names: tuple[str, ...]
    swapped: bool = False


class _Record(NamedTuple):
    command: str
    files: dict[str, str | None]  # None: not finished


def refuse_existing(path: epath.PathLike, overwrite: bool) -> None:
    """`files.refuse_existing`, for a single file that is named by --out."""
    files.refuse_existing(path, overwrite, hint="--overwrite replaces it")


def check_page(path: epath.PathLike, title: str) -> None:
    """Call it before the work whose results go to a page that a study replaces without being asked.

    Raises:
        ValueError: there is another page.
        OSError: it cannot be written.
    """
    path = epath.Path(path)
    if path.exists() and (path.is_dir() or not path.read_bytes().startswith(f"# {title}".encode())):
        raise ValueError(
            f"expected nothing at {path}, or an earlier page that begins with '# {title}'; got another one"
        )
    files.check_writable(path)


def single(path: epath.PathLike, *, overwrite: bool) -> Plan:
    """A `plan` of one file, which is replaced by its own name.

    Raises:
        ValueError: it is there, and `overwrite` is not set.
    """
    path = epath.Path(path)
    refuse_existing(path, overwrite)
    return Plan(path.parent, "", (path.name,))


def plan(folder: epath.PathLike, command: str, names: Iterable[str], *, overwrite: bool) -> Plan:
    """Call it before the work whose results go to `folder`.

    Raises:
        ValueError: something is there, and `overwrite` is not set; or what is there is not, or not only, what the same
            command made: its files were changed, or own files have the names of new ones.
    """
    folder, names = epath.Path(folder), tuple(names)
    if "://" not in str(folder):
        folder = epath.Path(os.path.realpath(folder))  # what is replaced is the folder, not a link to it
        _mend(folder)
        _tidy(folder)
    if not folder.exists() or _is_nothing(folder):
        return Plan(folder, command, names)
    files.refuse_existing(folder, overwrite, hint=_OVERWRITE)
    if "://" in str(folder):
        raise ValueError(f"expected an empty folder, since a bucket cannot replace one as a whole, got {folder}")
    _check(folder, command, names)
    if not os.access(folder.parent, os.W_OK) or os.path.ismount(folder):
        raise ValueError(f"expected a folder beside which a new one can be made, got {folder}; choose one within it")
    return Plan(folder, command, names, swapped=True)


@contextmanager
def making(planned: Plan, settings: Mapping[str, Any]) -> Iterator[epath.Path]:
    """A folder to write the planned files in; once the block ends well they are the set of the planned folder.

    Of several processes (`jax.distributed`) the first one writes.

    Args:
        settings: how the files are made, for their record.

    Raises:
        OSError: the folder cannot be written.
        ValueError: own files came into the way meanwhile; the error says where the new set is.
    """
    folder, command, names, swapped = planned
    processes.together(f"write to {folder}")  # the first shall not begin before the last has looked at what is there
    if not files.writes():
        yield folder
        return
    if not command:
        files.check_writable(folder / names[0])
        yield folder
        return
    into = files.aside(folder, "part") if swapped else folder
    try:
        if swapped:
            _discard(into, folder)  # of a killed process of this number
            into.mkdir()
        _write(into, command, settings, dict.fromkeys(names))
        yield into
        missing = [name for name in names if not (into / name).is_file()]
        if missing:
            raise ValueError(f"expected the files {', '.join(missing)} to be written, got none in {into}")
        _write(into, command, settings, {name: _hash(into / name) for name in names})
    except BaseException:
        with suppress(OSError):
            if swapped:
                _discard(into, folder)
            elif _is_nothing(folder):
                _clear(folder)
        raise
    if swapped:
        try:
            _check(folder, command, names)
            _add_own(folder, into)
            _exchange(folder, into)
        except (OSError, ValueError) as error:
            left = _free(folder)
            into.rename(left)
            raise ValueError(f"could not replace {folder}: {error}; what is new is in {left}") from error
        _discard(into, folder)


def _write(folder: epath.Path, command: str, settings: Mapping[str, Any], named: Mapping[str, str | None]) -> None:
    content = {
        "command": command,
        "version": asyncpatch_jax.__version__,
        "settings": dict(settings),
        "files": dict(named),
    }
    files.write_json(folder / RECORD, content, overwrite=True)


def _read(folder: epath.Path) -> _Record:
    path = folder / RECORD
    try:
        content = json.loads(read_text(path))
        command, named = content["command"], content["files"]
        good = all(_inside(name) and (value is None or isinstance(value, str)) for name, value in named.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"expected a folder in which {RECORD} lists what a command made, got {folder}") from error
    if not good or not isinstance(command, str):
        raise ValueError(f"expected names of files within the folder in {path}, got something else")
    return _Record(command, named)


def _inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and ".." not in parts and not name.startswith("/") and name != RECORD


def _hash(path: epath.Path | Path) -> str:
    # a link is nobody's but the user's, whatever it leads to
    return "a link" if os.path.islink(path) else hashlib.sha256(path.read_bytes()).hexdigest()


def _found(folder: epath.Path) -> dict[str, Path]:
    """All that is no folder by its name relative to `folder`, links among it: nothing outside is ever touched."""
    found = {}
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in (*names, *links):
            path = Path(parent, name)
            found[path.relative_to(folder).as_posix()] = path
    return found


def _is_nothing(folder: epath.Path) -> bool:
    """An empty folder, or one with the record of a set of which no file was written yet."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    if [path.name for path in folder.iterdir()] != [RECORD]:
        return False
    with suppress(ValueError):
        return not any(_read(folder).files.values())
    return False


def _clear(folder: epath.Path) -> None:
    (folder / RECORD).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _check(folder: epath.Path, command: str, names: Iterable[str]) -> None:
    """Refuse to replace what is not a set of this command as it was made, or own files under the new names."""
    record = _read(folder)
    if record.command != command:
        raise ValueError(f"expected a folder of {command}, got one of {record.command} in {folder}; choose another one")
    found = _found(folder)
    changed = [name for name, value in record.files.items() if name in found and value and _hash(found[name]) != value]
    if changed:
        raise ValueError(
            f"expected in {folder} the files as they were made, got {_some(changed)} changed since; move them away"
        )
    wanted = {*names, RECORD}
    folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    own = found.keys() - record.files.keys() - {RECORD}
    clashing = [
        name
        for name in own
        if name in wanted | folders or any(parent.as_posix() in wanted for parent in PurePosixPath(name).parents)
    ]
    if clashing:
        raise ValueError(
            f"expected in {folder} no files of your own under the names of new ones, got {_some(clashing)}; "
            "move them away"
        )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _add_own(folder: epath.Path, into: epath.Path) -> None:
    """Give a new set the own files of the old one's folder: other names of the same files where there can be such."""
    ours = {*_read(folder).files, RECORD}

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


def _exchange(one: epath.Path, other: epath.Path) -> None:
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


def _mend(folder: epath.Path) -> None:
    """Clean up what killed processes left beside a folder, and put back what one had moved aside when it died."""
    if not files.writes():
        return
    for kind in ("old", "part"):
        for path in files.left_behind(folder.parent, kind):
            if path.is_dir() and path.name.startswith(f".{folder.name}."):
                if kind == "old" and not folder.exists():
                    path.rename(folder)
                else:
                    _discard(path, folder)


def _tidy(folder: epath.Path) -> None:
    files.tidy(folder)
    if (folder / RECORD).exists():
        for parent, _, _ in os.walk(folder):
            files.tidy(parent)


def _discard(path: epath.Path, folder: epath.Path) -> None:
    """Remove a set that is not needed, in a hidden folder; own files in it go to `folder`, unless they are there."""
    if not path.exists():
        return
    _tidy(path)
    ours: set[str] = set()
    with suppress(ValueError):
        ours = {*_read(path).files, RECORD}
    # the record last, since a kill may come here too
    for name, file in sorted(_found(path).items(), key=lambda item: item[0] == RECORD):
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


def _free(folder: epath.Path) -> epath.Path:
    """The first of FOLDER_1, FOLDER_2, ... that is not there."""
    i = 1
    while (path := folder.with_name(f"{folder.name}_{i}")).exists():
        i += 1
    return path
