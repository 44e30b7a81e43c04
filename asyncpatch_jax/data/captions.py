"""Pictures and what people wrote about them, in the layouts that captioned images come in.

What a text is about lies beside it: a file of the same name, a row of a table, a member of an archive. Nothing is left
out without a word.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from asyncpatch_jax import schema
from asyncpatch_jax.data import archives
from asyncpatch_jax.data.archives import Cell, Member, Picture
from asyncpatch_jax.data.dataset import Dataset, hashed
from asyncpatch_jax.data.decoding import MAX_PIXELS, check_max_pixels, decoded, reason, shown
from asyncpatch_jax.data.folders import OnError, listing
from asyncpatch_jax.data.images import check_settings, read_image
from asyncpatch_jax.data.tables import COLUMNS, header_of
from asyncpatch_jax.texts import check_whole, read_text

IMAGES = ("file_name", "filename", "image", "image_path", "image_file", "path", "filepath", "file", "img")
"""What columns, and keys of JSON objects, with pictures are called, in any case."""

_PICTURES = (".avif", ".bmp", ".gif", ".heic", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_TEXTS = (".txt", ".caption", ".json")
_TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
_METADATA = ("metadata.jsonl", "metadata.csv")  # what Hugging Face's folders of images have in them


class Captioned(NamedTuple):
    """A picture and its texts, of which any one says what it shows."""

    picture: Picture
    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.picture)


class _Wrong(NamedTuple):
    """What is no captioned picture, and why."""

    name: str
    problem: str


Found = Iterator[Captioned | _Wrong]


@dataclass(frozen=True, eq=False)
class _Records:
    entries: tuple[Captioned, ...]
    size: int
    channels: int
    max_pixels: int

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry = self.entries[index]
        image = read_image(archives.opened(entry.picture), self.size, self.channels, max_pixels=self.max_pixels)
        return {"image": image, "label": 0, "texts": entry.texts}


def captioned(
    path: str | os.PathLike[str],
    size: int,
    channels: int = 3,
    *,
    images: str | os.PathLike[str] = "",
    image: str = "",
    text: str = "",
    on_error: OnError = "raise",
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """Captioned pictures, in any of these layouts; a record is {"image": uint8 [h, w, c], "label": 0, "texts": (...)}:

    - a folder of pictures at any depth, each with a file of the same name beside it: `.txt` or `.caption` (the whole of
      it is one text), or `.json`, an object with a text or a list of texts
    - a folder with a `metadata.jsonl` or `metadata.csv` in it, as Hugging Face's `imagefolder` has them
    - a table (`.jsonl`, `.csv`, `.tsv`, a JSON list): a row has the path of a picture, and a text or a list of texts
    - COCO's `captions_*.json`
    - WebDataset's `.tar` archives, one or a folder of them: members with the same name up to a dot belong together
    - Parquet tables, one or a folder of them, with pictures in them or paths, as Hugging Face's `datasets` writes them

    Files are read when they are needed; those of folders are decoded once before that.

    Args:
        images: the folder that paths in a table begin in; the table's own unless given.
        image, text: of a table, or of objects, the columns (keys) of pictures and texts; by default those that are
            called as `IMAGES` and `tables.COLUMNS` have it.
        on_error: "skip" leaves out what is wrong, with a warning.

    Raises:
        ValueError: no such path, no pictures in it, a column that is not there or may be one of several; pictures
            without a text, texts without a picture, pictures that cannot be read (all in one error).
    """
    check_settings(size, channels)
    check_max_pixels(max_pixels)
    if on_error not in ("raise", "skip"):
        raise ValueError(f"expected on_error = 'raise' or 'skip', got {on_error!r}")
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"expected captioned pictures at {shown(root)}, got no such file or folder")
    keys = _Keys(image, text)
    found = list(_found(root, Path(images).expanduser() if images else None, keys))
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda one: _decoded(one, max_pixels), found))
    entries = tuple(one for one in found if isinstance(one, Captioned))
    wrong = [f"{one.name} ({one.problem})" for one in found if isinstance(one, _Wrong)]
    if wrong and (on_error == "raise" or not entries):
        hint = " (on_error='skip' leaves them out, --config.data.on_error=skip in commands)" if entries else ""
        raise ValueError(
            f"expected only readable pictures with a text in {shown(root)}, got {len(wrong)} others of "
            f"{len(found)}{hint}:\n{listing(wrong)}"
        )
    if not entries:
        raise ValueError(f"expected captioned pictures in {shown(root)}, got none")
    if wrong:
        warnings.warn(f"left out {len(wrong)} of {len(found)}:\n{listing(wrong)}", stacklevel=2)
    base = root if root.is_dir() else root.parent
    names = hashed(json.dumps([_relative(entry.picture, base), *entry.texts]) for entry in entries)
    return Dataset(
        _Records(entries, size, channels, max_pixels), 1, (root.stem,), (size, size, channels), names, texts=True
    )


class _Keys(NamedTuple):
    """The columns that were asked for; "": those with a known name."""

    image: str
    text: str

    def columns(self, names: Sequence[str], where: object) -> tuple[str, str]:
        return _column(names, self.image, IMAGES, "pictures", "image", where), self.text_of(names, where)

    def text_of(self, names: Sequence[str], where: object) -> str:
        return _column(names, self.text, COLUMNS, "texts", "text", where)


def _column(names: Sequence[str], asked: str, known: Sequence[str], what: str, setting: str, where: object) -> str:
    found = [name for name in names if (name == asked if asked else name.lower() in known)]
    if len(found) != 1:
        wanted = f"{asked!r}" if asked else f"called one of {', '.join(known)}"
        got = f"{', '.join(found)}; say which by {setting}=NAME" if found else f"only {', '.join(names) or 'none'}"
        raise ValueError(f"expected one column of {what} {wanted} in {where}, got {got}")
    return found[0]


def _found(root: Path, images: Path | None, keys: _Keys) -> Found:
    if root.is_dir():
        table = next((root / name for name in _METADATA if (root / name).is_file()), None)
        if table is not None:
            return _of_table(table, images or root, keys)
        for suffix, read in ((".tar", _of_archive), (".parquet", _of_parquet)):
            if shards := sorted(file for file in root.iterdir() if file.suffix.lower() == suffix):
                return (one for shard in shards for one in read(shard, keys))
        return _of_folder(root, keys)
    suffix = root.suffix.lower()
    if suffix == ".tar":
        return _of_archive(root, keys)
    if suffix == ".parquet":
        return _of_parquet(root, keys)
    if suffix in _TABLES:
        return _of_table(root, images or root.parent, keys)
    raise ValueError(f"expected a folder or a file out of .tar, .parquet, {', '.join(_TABLES)}, got {shown(root)}")


def _of_folder(root: Path, keys: _Keys) -> Found:
    files = sorted(
        file for file in root.rglob("*") if file.is_file() and not any(p.startswith(".") for p in _parts(file, root))
    )
    groups: dict[Path, list[Path]] = {}
    for file in files:
        groups.setdefault(file.with_suffix(""), []).append(file)
    for stem, group in groups.items():
        yield from _together(stem.relative_to(root).as_posix(), {f.suffix.lower(): f for f in group}, group, keys)


def _of_archive(archive: Path, keys: _Keys) -> Found:
    groups: dict[str, list[Member]] = {}
    for member in archives.members(archive):
        place = PurePosixPath(member.name)
        groups.setdefault(str(place.parent / place.name.partition(".")[0]), []).append(member)
    for stem, group in groups.items():
        by_kind = {f".{PurePosixPath(m.name).name.partition('.')[2].lower()}": m for m in group}
        yield from _together(f"{archive.name}/{stem}", by_kind, group, keys)


def _together(name: str, by_kind: Mapping[str, Any], group: Sequence[Any], keys: _Keys) -> Found:
    """The one picture of files with the same name, and its texts."""
    pictures = [kind for kind in by_kind if kind in _PICTURES]
    texts = [kind for kind in _TEXTS if kind in by_kind]
    others = [str(one) for kind, one in by_kind.items() if kind not in pictures and kind not in texts]
    if len(by_kind) < len(group):
        yield _Wrong(name, "several files of one kind")
    elif len(pictures) != 1:
        yield _Wrong(name, f"{len(pictures)} pictures: {', '.join(map(str, group))[:100]}")
    elif not texts:
        yield _Wrong(name, f"a picture without a text ({', '.join(_TEXTS)}{'; ' if others else ''}{', '.join(others)})")
    else:
        # a JSON file beside a text is what a program noted of the picture
        source = by_kind[texts[0]]
        try:
            content = source.read().decode() if isinstance(source, Member) else read_text(source)
            if texts[0] == ".json":
                values = schema.decode(content, str(source))
                said = values[keys.text_of(list(values), source)]
            else:
                said = " ".join(content.split())
            yield Captioned(by_kind[pictures[0]], _texts(said))
        except ValueError as error:
            yield _Wrong(name, str(error))


def _of_table(table: Path, images: Path, keys: _Keys) -> Found:
    listed = _rows(table)
    if isinstance(listed, Mapping):
        yield from _of_coco(listed, table, images)
        return
    if not listed:
        raise ValueError(f"expected rows of pictures and texts in {shown(table)}, got none")
    image, text = keys.columns(list(listed[0]), shown(table))
    for number, row in enumerate(listed, 1):
        name = row.get(image)
        if not isinstance(name, str) or not name:
            yield _Wrong(f"row {number}", f"no path as {image}, but {schema.shown(name)}")
            continue
        try:
            yield Captioned(images / name, _texts(row.get(text)))
        except ValueError as error:
            yield _Wrong(name, str(error))


def _rows(table: Path) -> list[Mapping[str, Any]] | Mapping[str, Any]:
    """The rows of a table, or COCO's object of annotations."""
    text, where = read_text(table), shown(table)
    if table.suffix.lower() in (".csv", ".tsv"):
        names, lines = header_of(text, "\t" if table.suffix.lower() == ".tsv" else ",", where)
        return [dict(zip(names, line, strict=True)) for line in lines]
    try:
        if table.suffix.lower() == ".json":
            content = json.loads(text)
        else:
            content = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in {where}, got an error: {error}") from error
    if isinstance(content, Mapping) and {"images", "annotations"} <= set(content):
        return content
    if not isinstance(content, list) or not all(isinstance(row, Mapping) for row in content):
        raise ValueError(
            f"expected a list of objects, an object a line, or COCO's captions in {where}, got {schema.shown(content)}"
        )
    return content


def _of_coco(content: Mapping[str, Any], table: Path, images: Path) -> Found:
    said: dict[Any, list[str]] = {}
    try:
        for value in sorted(content["annotations"], key=lambda value: value["id"]):
            said.setdefault(value["image_id"], []).append(value["caption"])
        files = {value["id"]: value["file_name"] for value in content["images"]}
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"expected images with id and file_name, and annotations with id, image_id and caption in {shown(table)}, "
            f"got one without {error}"
        ) from error
    for number, name in sorted(files.items()):
        try:
            yield Captioned(images / name, _texts(said.get(number, ())))
        except ValueError as error:
            yield _Wrong(name, str(error))


def _of_parquet(table: Path, keys: _Keys) -> Found:
    names = archives.rows(table).names
    image, text = keys.columns(names, shown(table))
    found = archives.rows(table, (text,))
    places = ((group, row) for group, count in enumerate(found.groups) for row in range(count))
    for (group, row), said in zip(places, found.columns[text], strict=True):
        cell = Cell(table, image, group, row)
        try:
            yield Captioned(cell, _texts(said))
        except ValueError as error:
            yield _Wrong(str(cell), str(error))


def _texts(said: Any) -> tuple[str, ...]:
    """A text, or several, without white space around them."""
    texts = [said] if isinstance(said, str) else said
    if not isinstance(texts, Sequence) or not all(isinstance(one, str) for one in texts):
        raise ValueError(f"expected a text or a list of texts, got {schema.shown(said)}")
    stripped = tuple(one.strip() for one in texts if one.strip())
    if not stripped:
        raise ValueError("expected a text, got none")
    for one in stripped:
        check_whole(one)
    return stripped


def _decoded(one: Captioned | _Wrong, max_pixels: int) -> Captioned | _Wrong:
    """The same; or why a file of its own is no picture. Those in archives and tables are decoded when they are read."""
    if isinstance(one, _Wrong) or not isinstance(one.picture, Path):
        return one
    try:
        with decoded(one.picture, max_pixels, rough=True):
            return one
    except ValueError as error:
        return _Wrong(one.name, reason(error.__cause__ or error))


def _parts(file: Path, root: Path) -> tuple[str, ...]:
    return file.relative_to(root).parts


def _relative(picture: Picture, base: Path) -> str:
    if not isinstance(picture, Path):
        return str(picture)
    return os.path.relpath(picture, base).replace(os.sep, "/")
