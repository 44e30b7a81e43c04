"""Folders of images: their files and classes. Nothing in one is left out without a word."""

import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from asyncpatch_jax.data.decoding import MAX_PIXELS, check_max_pixels, decoded, faults_of, reason, shown
from asyncpatch_jax.data.images import converted
from asyncpatch_jax.texts import composed

OnError = Literal["raise", "skip"]
Identity = tuple[int, int]


class Folder(NamedTuple):
    """The readable images of a folder, sorted by path."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]  # index into class_names, one per file
    class_names: tuple[str, ...]  # composed (NFC), so that a copy from a Mac has the same
    skipped: tuple[str, ...]  # "path (reason)" of everything that is no readable image


class _Entry(NamedTuple):
    """Something in a folder: a file, or what is none for a reason."""

    path: Path
    problem: str | None = None


def scan_folder(
    path: str | os.PathLike[str], *, channels: int = 3, on_error: OnError = "raise", max_pixels: int = MAX_PIXELS
) -> Folder:
    """List the images under a folder and decode each once, so that a bad one shows up now and not in hour ten.

    The class of an image is its first-level subdirectory (deeper ones do not matter); a folder without images in
    subdirectories is one class, named after itself. Links are followed. Names that start with a dot are no part of the
    data.

    Raises:
        ValueError: no such folder; no images in it; images both beside and inside subdirectories; two classes whose
            names look equal; anything else than readable images (all in one error: files, links to nothing, folders
            that are empty or cannot be listed), unless on_error="skip", which warns with their number and goes on.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"expected on_error = 'raise' or 'skip', got {on_error!r}")
    check_max_pixels(max_pixels)
    root = Path(path).expanduser()
    if not root.is_dir():
        there = "a file" if root.exists() else "does not exist"
        raise ValueError(f"expected a folder of images, got {shown(root)} ({there})")
    beside, groups = _grouped(root)
    entries = [*beside, *(entry for group in groups.values() for entry in group)]
    with ThreadPoolExecutor() as pool:
        problems = dict(
            zip(entries, pool.map(lambda entry: _problem(entry, channels, max_pixels), entries), strict=True)
        )
    loose = [entry.path for entry in beside if problems[entry] is None]
    good = {name: [entry.path for entry in group if problems[entry] is None] for name, group in groups.items()}
    classes = {name: files for name, files in good.items() if files}
    if loose and classes:
        raise ValueError(
            f"expected images either in class subdirectories of {shown(root)} or directly in it, got both "
            f"({shown(loose[0].name)} beside {shown(next(iter(classes)))}{os.sep})"
        )
    if loose:
        classes = {composed(root.resolve().name): loose}
    else:  # no class may vanish because its folder is empty
        empty = [_Entry(root / name, "a folder without files") for name, group in groups.items() if not group]
        problems |= {entry: entry.problem for entry in empty}
    skipped = tuple(
        f"{shown(entry.path.relative_to(root))} ({problem})" for entry, problem in problems.items() if problem
    )
    if skipped and (on_error == "raise" or not classes):
        hint = " (on_error='skip' leaves them out, --config.data.on_error=skip in commands)" if classes else ""
        wanted = "only readable images" if classes else "images"
        raise ValueError(
            f"expected {wanted} in {shown(root)}, got {len(skipped)} others of {len(problems)}{hint}:\n"
            + listing(skipped)
        )
    if not classes:
        raise ValueError(f"expected images in {shown(root)}, got none")
    if skipped:
        gone = [shown(name) for name, files in good.items() if not files]
        lost = f"; nothing is left of {', '.join(gone)}" if gone and not loose else ""
        warnings.warn(f"left out {len(skipped)} of {len(problems)}{lost}:\n{listing(skipped)}", stacklevel=2)
    return Folder(
        files=tuple(file for members in classes.values() for file in members),
        labels=tuple(label for label, members in enumerate(classes.values()) for _ in members),
        class_names=tuple(classes),
        skipped=skipped,
    )


def _grouped(root: Path) -> tuple[list[_Entry], dict[str, list[_Entry]]]:
    """What lies in a folder itself, and what in its subdirectories, by class; each sorted by path."""
    first = _listed(root)
    folders: dict[str, Path] = {}
    for entry in first:
        if entry.problem is None and entry.path.is_dir():
            name = composed(entry.path.name)
            if name in folders:
                raise ValueError(f"expected classes of different names in {shown(root)}, got {name!r} in two spellings")
            folders[name] = entry.path
    loose = [entry for entry in first if entry.path not in folders.values()]
    return loose, {name: sorted(_below(folders[name], root)) for name in sorted(folders)}


def _below(folder: Path, root: Path) -> Iterator[_Entry]:
    """Everything in a folder at any depth but folders. One that links lead to twice is read once."""
    seen, todo = {_identity(root), _identity(folder)}, [folder]
    while todo:
        for entry in _listed(todo.pop()):
            if entry.problem is not None or not entry.path.is_dir():
                yield entry
            elif _identity(entry.path) in seen:
                yield _Entry(entry.path, "a link to a folder that is read already")
            else:
                seen.add(_identity(entry.path))
                todo.append(entry.path)


def _identity(path: Path) -> Identity:
    status = path.stat()
    return status.st_dev, status.st_ino


def _listed(folder: Path) -> list[_Entry]:
    """What a folder holds, without hidden names; itself, where it cannot be listed."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return [_Entry(folder, f"a folder that cannot be listed: {reason(error)}")]
    return [_Entry(folder / name, _kind(folder / name)) for name in names if not name.startswith(".")]


def _kind(path: Path) -> str | None:
    """Why something is neither a file nor a folder, or None."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"a link to nothing: {os.readlink(path)}" if path.is_symlink() else reason(error)
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "no file, but a pipe, a socket or a device"


def _problem(entry: _Entry, channels: int, max_pixels: int) -> str | None:
    """Why something is no readable image, or None."""
    if entry.problem is not None:
        return entry.problem
    try:
        with decoded(entry.path, max_pixels, rough=True) as image, faults_of(entry.path, ValueError, MemoryError):
            converted(image, channels)
    except ValueError as error:
        return reason(error.__cause__ or error)
    return None


def listing(lines: Sequence[str], most: int = 10) -> str:
    """Lines of a message, the first few of them, and how many more there are."""
    rest = [f"  ... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*(f"  {line}" for line in lines[:most]), *rest])
