"""Pictures inside of larger files, read one by one in any order: members of tar archives, cells of Parquet tables."""

import functools
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from asyncpatch_jax.data.decoding import ImageFile, reason, shown

# row groups of a table that are kept, as the next record may be in one of them: those of pictures have a hundred rows
_GROUPS = 16


class Member(NamedTuple):
    """A file in an archive that is not compressed."""

    archive: Path
    name: str
    start: int  # of its bytes in the archive
    size: int

    def read(self) -> bytes:
        """Its content. Raises ValueError if the archive is shorter than when it was listed, or cannot be read."""
        try:
            with open(self.archive, "rb") as stream:
                stream.seek(self.start)
                content = stream.read(self.size)
        except OSError as error:
            raise ValueError(f"expected the archive {shown(self.archive)}, got {reason(error)}") from error
        if len(content) < self.size:
            raise ValueError(
                f"expected {self.size:,} bytes of {self.name} in {shown(self.archive)}, got {len(content):,}: cut off"
            )
        return content

    def __str__(self) -> str:
        return f"{self.archive.name}/{self.name}"


class Cell(NamedTuple):
    """A picture in a table: its bytes, or the path of its file, from the table's folder."""

    table: Path
    column: str
    group: int  # of rows
    row: int  # in its group

    def read(self) -> bytes:
        """Its content. Raises ValueError if it is empty, or names a file that cannot be read."""
        value = _group(self.table, self.column, self.group)[self.row]
        value = value.as_py()
        content = value.get("bytes") if isinstance(value, Mapping) else value
        path = value.get("path") if isinstance(value, Mapping) else value
        if isinstance(content, bytes) and content:
            return content
        if not isinstance(path, str) or not path:
            raise ValueError(f"expected a picture as {self}, got an empty one")
        try:
            return (self.table.parent / path).read_bytes()
        except OSError as error:
            raise ValueError(f"expected a file {path} beside the table, as {self}, got {reason(error)}") from error

    def __str__(self) -> str:
        return f"{self.table.name}, {self.column} in row {self.row} of group {self.group}"


Picture = Path | Member | Cell


def opened(picture: Picture) -> ImageFile:
    """A picture as `images.read_image` takes it, which names it in its errors.

    Raises:
        ValueError: it cannot be read.
    """
    if isinstance(picture, Path):
        return picture
    stream = io.BytesIO(picture.read())
    stream.name = str(picture)
    return stream


def members(archive: str | os.PathLike[str]) -> list[Member]:
    """The files in an archive, in its order; nothing is unpacked.

    Raises:
        ValueError: no archive, a damaged or a compressed one (its members cannot be read in any order), or one with
            links or devices in it.
    """
    archive, found = Path(archive), []
    try:
        with tarfile.open(archive, "r:") as tar:
            for info in tar:
                if info.isdir():
                    continue
                if not info.isfile() or info.issparse():
                    raise ValueError(f"expected files in {shown(archive)}, got a link or a device: {info.name}")
                found.append(Member(archive, info.name, info.offset_data, info.size))
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"expected a tar archive that is not compressed, got {shown(archive)} ({reason(error)})"
        ) from error
    return found


class Rows(NamedTuple):
    """A table of pictures and texts, without its pictures."""

    names: tuple[str, ...]  # of its columns
    groups: tuple[int, ...]  # how many rows each has
    columns: Mapping[str, list[Any]]  # those that were asked for, row by row


def rows(table: str | os.PathLike[str], columns: tuple[str, ...] = ()) -> Rows:
    """A Parquet table's size, its columns' names, and some of its columns.

    Raises:
        ValueError: no such table, or a damaged one.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(table) as file:
            groups = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            names = tuple(file.schema_arrow.names)
            there = [name for name in columns if name in names]
            values = file.read(columns=there).to_pydict() if there else {}
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"expected a Parquet table, got {shown(table)} ({reason(error)})") from error
    return Rows(names, groups, values)


@functools.lru_cache(_GROUPS)
def _group(table: Path, column: str, group: int) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(table) as file:
            return file.read_row_group(group, columns=[column]).column(0)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"expected a Parquet table, got {shown(table)} ({reason(error)})") from error
