"""Latents that an autoencoder made of a data set, kept in files: written in shards, read as any other source.

A folder holds shards of ArrayRecord (`latents-00003-of-00128.array_record`), beside each a JSON file with its moments,
and latents.json, which is written when all are there. A record is the image's label and its latents, raw, in half
precision; those of the mirrored image come after them if they are kept. Shards appear whole, and only those count that
have their JSON file: who was stopped goes on with the next one.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Shaped
from msgspec import Meta, Struct, structs, to_builtins

from asyncpatch_jax import files, schema
from asyncpatch_jax.data.dataset import Dataset, Latents, hashed

Encode = Callable[[Float[np.ndarray, "b h w c"]], Float[np.ndarray | Array, "b h2 w2 z"]]
DTYPES: dict[str, Any] = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
NAME = "latents.json"
_THREADS = 8
_Size = Annotated[int, Meta(ge=1, le=2**20)]
_Shape = tuple[_Size, _Size, _Size]
_Numbers = tuple[Annotated[float, Meta(ge=-1e30, le=1e30)], ...]


class About(Struct, frozen=True):
    """What latents are of: the same for all shards of a folder.

    autoencoder: hash of the one that made them.
    pixels, shape: h, w, c of the images, and of their latents.
    data: the settings of the images' source.
    names: hash of the images' names.
    """

    autoencoder: str
    pixels: _Shape
    shape: _Shape
    dtype: Literal["float16", "bfloat16"]
    flips: bool
    images: Annotated[int, Meta(ge=1)]
    shard: Annotated[int, Meta(ge=1)]
    data: dict[str, Any]
    names: str
    class_names: tuple[str, ...]

    @property
    def shards(self) -> int:
        """How many files there are."""
        return -(-self.images // self.shard)


class _Moments(Struct, frozen=True):
    """Of one shard, by channel, over all cells: how many, their mean, and the sum of squares around it."""

    count: int
    mean: _Numbers
    squares: _Numbers
    sha256: str


class _Whole(Struct, frozen=True):
    about: About
    shift: _Numbers
    scale: _Numbers


class Measured(NamedTuple):
    """What makes latents of mean 0 and variance 1 in each channel: (latents - shift) * scale."""

    shift: Float[np.ndarray, "z"]
    scale: Float[np.ndarray, "z"]


def places(images: int, count: int) -> Shaped[np.ndarray, "n"]:
    """The numbers of `count` images at even distances out of `images`; all of them for 0.

    Raises:
        ValueError: more than there are.
    """
    if not 0 <= count <= images:
        raise ValueError(f"expected at most {images} images, or 0 for all, got {count}")
    return np.linspace(0, images - 1, count or images).round().astype(int)


def _moments(latents: Shaped[np.ndarray, "n h w z"]) -> _Moments:
    flat = latents.astype(np.float64).reshape(-1, latents.shape[-1])
    mean = flat.mean(0)
    return _Moments(len(flat), tuple(mean.tolist()), tuple(((flat - mean) ** 2).sum(0).tolist()), "")


def _joined(parts: list[_Moments], sha256: str = "") -> _Moments:
    """The moments of all, put together in the order of the parts (Chan et al. 1979)."""
    count, mean, squares = 0, np.zeros(len(parts[0].mean)), np.zeros(len(parts[0].mean))
    for part in parts:
        total, apart = count + part.count, np.array(part.mean) - mean
        squares = squares + np.array(part.squares) + apart**2 * count * part.count / total
        mean, count = mean + apart * part.count / total, total
    return _Moments(count, tuple(mean.tolist()), tuple(squares.tolist()), sha256)


def _measured(parts: list[_Moments]) -> Measured:
    count, mean, squares, _ = structs.astuple(_joined(parts))
    deviation = np.sqrt(np.array(squares) / count)
    if not deviation.all() or not np.isfinite(deviation).all():
        raise ValueError(f"expected latents that differ from image to image, got deviations of {deviation}")
    return Measured(np.array(mean, np.float32), (1 / deviation).astype(np.float32))


def measure(dataset: Dataset, encode: Encode, *, count: int, batch: int, flips: bool = False) -> Measured:
    """Shift and scale by latents of `count` images at even distances (fewer, if there are fewer).

    Args:
        flips: count those of mirrored images too.

    Raises:
        ValueError: a channel that is constant.
    """
    chosen = places(len(dataset.source), min(count, len(dataset.source)))
    batch = min(batch, len(chosen))
    found = [_encoded(dataset, encode, part, batch, flips)[:2] for part in _batches(chosen, batch)]
    return _measured([_moments(copy) for copies in found for copy in copies if copy is not None])


def _batches(chosen: Shaped[np.ndarray, "n"], batch: int) -> list[Shaped[np.ndarray, "_n"]]:
    return [chosen[first : first + batch] for first in range(0, len(chosen), batch)]


def _encoded(
    dataset: Dataset, encode: Encode, chosen: Shaped[np.ndarray, "n"], batch: int, flips: bool = False
) -> tuple[Float[np.ndarray, "n h w z"], Float[np.ndarray, "n h w z"] | None, list[int]]:
    """Latents of some images, of them mirrored, and labels; a batch that is not full is filled up."""
    filled = np.concatenate([chosen, np.full(batch - len(chosen), chosen[-1])])
    with ThreadPoolExecutor(_THREADS) as pool:
        records = list(pool.map(lambda i: dataset.source[int(i)], filled))
    images = np.stack([record["image"] for record in records]).astype(np.float32) / np.float32(127.5) - np.float32(1)
    found = [np.asarray(encode(some))[: len(chosen)] for some in [images, *([images[:, :, ::-1]] if flips else [])]]
    return found[0], found[1] if flips else None, [int(record["label"]) for record in records[: len(chosen)]]


def shard_path(folder: epath.PathLike, about: About, number: int) -> epath.Path:
    """The file of one shard."""
    return epath.Path(folder) / f"latents-{number:05d}-of-{about.shards:05d}.array_record"


def _sidecar(path: epath.Path) -> epath.Path:
    return path.with_suffix(".json")


def begin(folder: epath.PathLike, about: About) -> None:
    """Refuse a folder that holds, whole or in part, latents of anything else.

    Raises:
        ValueError: it does; says what differs.
    """
    folder = epath.Path(folder)
    begun = folder / "begun.json"
    if begun.exists():
        there = schema.read(begun, About)
        lines = [
            f"{name}: {getattr(there, name)!r} -> {getattr(about, name)!r}"
            for name in About.__struct_fields__
            if getattr(there, name) != getattr(about, name)
        ]
        if lines:
            raise ValueError(
                f"{folder} holds latents of other settings (there -> here): {'; '.join(lines)[:1000]}\n"
                "choose another folder, or these settings to go on"
            )
        return
    files.refuse_existing(folder)
    files.write_json(begun, to_builtins(about))


def write(
    folder: epath.PathLike,
    about: About,
    dataset: Dataset,
    encode: Encode,
    *,
    batch: int,
    shard: tuple[int, int] = (0, 1),
    on_images: Callable[[int], object] = lambda count: None,
) -> None:
    """Write those shards of a folder that belong to one of several processes and are not there yet.

    Which process writes a shard changes no byte of it, nor does what was there before.

    Args:
        encode: raw latents of a batch of images in [-1, 1]; it is always given `batch` of them.
        shard: (index, count) of the processes: this one writes every count-th.
        on_images: is told how many more are done, or were.

    Raises:
        ValueError: latents of another shape, or some that are not finite in the type that they are kept in.
        OSError: a file cannot be written.
    """
    chosen = places(len(dataset.source), about.images)
    for number in range(shard[0], about.shards, shard[1]):
        own = chosen[number * about.shard : (number + 1) * about.shard]
        path = shard_path(folder, about, number)
        if not (_sidecar(path).exists() and path.exists()):
            _write_shard(path, about, dataset, encode, own, batch)
        on_images(len(own))


def _write_shard(
    path: epath.Path, about: About, dataset: Dataset, encode: Encode, own: Shaped[np.ndarray, "n"], batch: int
) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    dtype, seen = DTYPES[about.dtype], []
    with _local(path) as part:
        # a group of one record is read alone, which a shuffle asks for
        writer = ArrayRecordWriter(str(part), "group_size:1")
        try:
            for some in _batches(own, batch):
                latents, flipped, labels = _encoded(dataset, encode, some, batch, about.flips)
                if latents.shape[1:] != about.shape:
                    raise ValueError(f"expected latents of {about.shape} of {about.pixels}, got {latents.shape[1:]}")
                with np.errstate(over="ignore"):  # what that does is told below
                    copies = np.stack([latents, *([] if flipped is None else [flipped])], 1).astype(dtype)
                if not np.isfinite(copies.astype(np.float32)).all():
                    raise ValueError(f"expected latents that are finite in {about.dtype}, got some that are not")
                for label, record in zip(labels, copies, strict=True):
                    writer.write(int(label).to_bytes(4, "little") + record.tobytes())
                # those of mirrored images are as likely to be seen
                seen.append(_moments(copies.reshape(-1, *about.shape)))
        finally:
            writer.close()
        moments = _joined(seen, files.sha256(part))
    with _local(_sidecar(path)) as part:
        part.write_text(json.dumps(to_builtins(moments)))


@contextmanager
def _local(path: epath.Path) -> Iterator[Path]:
    """A file on a disk that becomes `path` once the block ends well, as this process alone writes it."""
    if "://" in str(path):  # in a bucket, a file that is not finished is not there
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            path.write_bytes((Path(folder) / path.name).read_bytes())
        return
    files.tidy(path.parent)
    part = Path(files.aside(path, "part"))
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def finish(folder: epath.PathLike, about: About) -> Measured:
    """Measure shift and scale over all shards, and say by latents.json that all is there.

    Raises:
        ValueError: shards that are missing, or a channel that is constant.
    """
    sides = [_sidecar(shard_path(folder, about, number)) for number in range(about.shards)]
    if missing := [side.name for side in sides if not side.exists()]:
        raise ValueError(f"expected {len(sides)} shards in {folder}, got none for {', '.join(missing[:5])}")
    found = _measured([schema.read(side, _Moments) for side in sides])
    whole = {"about": to_builtins(about), "shift": found.shift.tolist(), "scale": found.scale.tolist()}
    files.write_json(epath.Path(folder) / NAME, whole, overwrite=True)
    return found


@dataclass(frozen=True, eq=False)
class _Records:
    records: Any  # bytes by index
    about: About
    shift: Float[np.ndarray, "z"]
    scale: Float[np.ndarray, "z"]

    def __len__(self) -> int:
        return self.about.images

    def __getitem__(self, index: int) -> dict[str, Any]:
        raw = self.records[index]
        copies = np.frombuffer(raw, DTYPES[self.about.dtype], offset=4).reshape(-1, *self.about.shape)
        copies = (copies.astype(np.float32) - self.shift) * self.scale
        mirrored = {"mirrored": copies[1]} if self.about.flips else {}
        return {"image": copies[0], "label": int.from_bytes(raw[:4], "little"), **mirrored}


def read_about(folder: epath.PathLike) -> About:
    """What the latents of a folder are of.

    Raises:
        ValueError: no latents there, or not all of them yet.
    """
    return _whole(folder).about


def _whole(folder: epath.PathLike) -> _Whole:
    folder = epath.Path(folder).expanduser()
    if not (folder / NAME).is_file():
        hint = "not all of them are there yet: the same launch.encode goes on" if folder.is_dir() else "no such folder"
        raise ValueError(f"expected latents of launch.encode in {folder}, got no {NAME} ({hint})")
    return schema.read(folder / NAME, _Whole)


def latents(folder: epath.PathLike) -> Dataset:
    """The latents of a folder, shifted and scaled, float32 [h, w, z]; a record's "mirrored" are of the mirrored image.

    Raises:
        ValueError: no latents there, not all of them yet, or files that are missing or damaged.
    """
    whole = _whole(folder)
    about = whole.about
    paths = [shard_path(epath.Path(folder).expanduser(), about, number) for number in range(about.shards)]
    if missing := [path.name for path in paths if not path.exists()]:
        raise ValueError(f"expected {len(paths)} shards in {folder}, got no {', '.join(missing[:5])}")
    import grain

    records = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
    size = 4 + int(np.prod(about.shape)) * (1 + about.flips) * DTYPES[about.dtype].itemsize
    if len(records) != about.images or len(records[0]) != size:
        raise ValueError(
            f"expected {about.images} records of {size} bytes in {folder}, got {len(records)} of {len(records[0])}"
        )
    shift, scale = np.array(whole.shift, np.float32), np.array(whole.scale, np.float32)
    factor = about.pixels[0] // about.shape[0]
    known = hashed([about.names, about.autoencoder, about.dtype, f"flips {about.flips}", f"images {about.images}"])
    return Dataset(
        _Records(records, about, shift, scale),
        len(about.class_names),
        about.class_names,
        about.shape,
        known,
        Latents(about.autoencoder, factor, shift, scale, about.flips),
    )
