"""What a command leaves in a folder: a set of files that is recorded there, and replaced as a whole or not at all.

`made.json` lists the files of a set, how they were made, and what they hold (SHA-256). Only these are ever replaced:
whatever else lies in the folder is someone's own and stays, and a file of the set that was changed since is own work.
Where nothing is, files appear as they are made. A set that is there stays until the new one, made aside in a hidden
folder beside it, takes its place: in one step where the file system can exchange two folders (Linux, macOS), else in
two renames, and a kill between these is mended by the next command.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from etils import epath

from asyncpatch_jax import files
from launch.shared import processes, replacing

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
        replacing.mend(folder)
        replacing.tidy(folder)
    if not folder.exists() or replacing.is_nothing(folder):
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
            replacing.discard(into, folder)  # of a killed process of this number
            into.mkdir()
        replacing.write(into, command, settings, dict.fromkeys(names))
        yield into
        missing = [name for name in names if not (into / name).is_file()]
        if missing:
            raise ValueError(f"expected the files {', '.join(missing)} to be written, got none in {into}")
        replacing.write(into, command, settings, {name: replacing.hash_of(into / name) for name in names})
    except BaseException:
        with suppress(OSError):
            if swapped:
                replacing.discard(into, folder)
            elif replacing.is_nothing(folder):
                replacing.clear(folder)
        raise
    if swapped:
        try:
            _check(folder, command, names)
            replacing.add_own(folder, into)
            replacing.exchange(folder, into)
        except (OSError, ValueError) as error:
            left = replacing.free(folder)
            into.rename(left)
            raise ValueError(f"could not replace {folder}: {error}; what is new is in {left}") from error
        replacing.discard(into, folder)


def _check(folder: epath.Path, command: str, names: Iterable[str]) -> None:
    """Refuse to replace what is not a set of this command as it was made, or own files under the new names."""
    record = replacing.read(folder)
    if record.command != command:
        raise ValueError(f"expected a folder of {command}, got one of {record.command} in {folder}; choose another one")
    found = replacing.found_in(folder)
    changed = [
        name
        for name, value in record.files.items()
        if name in found and value and replacing.hash_of(found[name]) != value
    ]
    if changed:
        raise ValueError(
            f"expected in {folder} the files as they were made, got {_some(changed)} changed since; move them away"
        )
    wanted = {*names, replacing.RECORD}
    folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    own = found.keys() - record.files.keys() - {replacing.RECORD}
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
