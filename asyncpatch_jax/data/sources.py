"""Data sets as random-access sources of {"image": uint8 [h, w, c], "label": int}."""

import functools
import importlib.resources
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath
from PIL import Image

from asyncpatch_jax.data.dataset import Dataset, hashed
from asyncpatch_jax.data.decoding import MAX_PIXELS, check_max_pixels
from asyncpatch_jax.data.folders import OnError, scan_folder
from asyncpatch_jax.data.images import check_settings, read_image, resize
from asyncpatch_jax.data.tfrecord import TFRecords

Split = Literal["train", "test"]


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is "train" or "test"."""
    if split not in ("train", "test"):
        raise ValueError(f"expected split = 'train' or 'test', got {split!r}")


@dataclass(frozen=True, eq=False)
class _Arrays:
    images: np.ndarray  # uint8 [n, h, w, c]
    labels: np.ndarray  # int [n]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}


def digits(split: Split = "train", size: int = 8) -> Dataset:
    """The 1,797 handwritten digits that scikit-learn ships: 8x8, 17 grey levels 0..16 mapped to 0..255, ten classes.

    Every fifth image of each class is held out as "test". A `size` above 8 scales up smoothly (bicubic).

    Raises:
        ValueError: unknown split, size below 8.
    """
    check_split(split)
    if size < 8:
        raise ValueError(f"expected a size of at least the digits' own 8 pixels, got {size}")
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    rank = np.zeros(len(images), int)
    for label in range(10):
        rank[data.target == label] = np.arange((data.target == label).sum())
    chosen = (rank % 5 == 4) == (split == "test")
    images = np.stack([np.asarray(resize(Image.fromarray(image), size)) for image in images[chosen]])[..., None]
    # their own pixels, as they have no names
    # they have no names: their own pixels
    pixels = (image.tobytes().hex() for image in data.images[chosen].astype(np.uint8))
    names = hashed(f"{label} {own}" for label, own in zip(data.target[chosen], pixels, strict=True))
    return Dataset(_Arrays(images, data.target[chosen]), 10, tuple("0123456789"), (size, size, 1), names)


# photographs inside the wheels of scikit-image and scikit-learn: nothing is downloaded
_PHOTOS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
PHOTOS: tuple[str, ...] = tuple(_PHOTOS)


def photo(name: str, channels: int = 3) -> np.ndarray:
    """One of `PHOTOS` as a whole, uint8 [h, w, channels].

    Raises:
        ValueError: unknown name or number of channels.
    """
    if name not in _PHOTOS:
        raise ValueError(f"expected a photograph out of {', '.join(PHOTOS)}, got {name!r}")
    package, file = _PHOTOS[name]
    with importlib.resources.as_file(importlib.resources.files(package).joinpath(file)) as path:
        return read_image(path, channels=channels)


@dataclass(frozen=True, eq=False)
class _Crops:
    regions: tuple[np.ndarray, ...]  # uint8 [h, w, c], sizes differ
    size: int

    def _positions(self, region: np.ndarray) -> tuple[int, int]:
        return region.shape[0] - self.size + 1, region.shape[1] - self.size + 1

    def _per_photo(self) -> int:
        return max(rows * columns for rows, columns in map(self._positions, self.regions))

    def __len__(self) -> int:
        return len(self.regions) * self._per_photo()

    def __getitem__(self, index: int) -> dict[str, Any]:
        place, label = divmod(index, len(self.regions))
        rows, columns = self._positions(self.regions[label])
        # a smaller photograph has fewer positions: spread them evenly over as many records as the largest one has
        y, x = divmod(place * rows * columns // self._per_photo(), columns)
        return {"image": self.regions[label][y : y + self.size, x : x + self.size], "label": label}


def photos(size: int = 64, channels: int = 3, split: Split = "train", names: Sequence[str] = PHOTOS) -> Dataset:
    """Crops at native resolution of photographs that ship with scikit-image and scikit-learn; each one is a class.

    The source holds a crop at every position, every photograph equally often: shuffling it draws crops at random.
    "train" crops come from the first three quarters along a photograph's longer side, "test" crops from the last.

    Raises:
        ValueError: unknown name, split or number of channels, no names, or a size that does not fit into the split's
            part of a photograph.
    """
    check_split(split)
    check_settings(size, channels)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected different names out of {', '.join(PHOTOS)}, got {tuple(names)}")
    regions = tuple(_part(photo(name, channels), split) for name in names)
    most = min(min(region.shape[:2]) for region in regions)
    if size > most:
        raise ValueError(f"expected a size of at most {most} pixels for {split} crops of these photographs, got {size}")
    known = hashed(f"{split} {name} {region.shape[:2]}" for name, region in zip(names, regions, strict=True))
    return Dataset(_Crops(regions, size), len(names), tuple(names), (size, size, channels), known)


def _part(image: np.ndarray, split: str) -> np.ndarray:
    axis = int(image.shape[1] > image.shape[0])
    first, last = np.split(image, [image.shape[axis] * 3 // 4], axis)
    return first if split == "train" else last


@dataclass(frozen=True, eq=False)
class _Files:
    files: tuple[os.PathLike[str], ...]
    labels: tuple[int, ...]
    size: int
    channels: int
    max_pixels: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = read_image(self.files[index], self.size, self.channels, max_pixels=self.max_pixels)
        return {"image": image, "label": self.labels[index]}


def folder(
    path: str | os.PathLike[str],
    size: int,
    channels: int = 3,
    on_error: OnError = "raise",
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """Any directory of images, class = first-level subdirectory; see `folders.scan_folder` and `images.read_image`.

    Images of any size and mode become size x size centre squares. Files are read when they are needed.

    Raises:
        ValueError: what `scan_folder` raises; unknown number of channels, size < 1, max_pixels out of range.
    """
    check_settings(size, channels)
    found = scan_folder(path, channels=channels, on_error=on_error, max_pixels=max_pixels)
    root = Path(path).expanduser()
    return Dataset(
        _Files(found.files, found.labels, size, channels, max_pixels),
        len(found.class_names),
        found.class_names,
        (size, size, channels),
        hashed(Path(file).relative_to(root).as_posix() for file in found.files),
    )


@dataclass(frozen=True, eq=False)
class _Records:
    examples: Any  # serialised examples by index
    parse: Callable[[bytes], dict[str, Any]]
    where: str
    num_classes: int
    size: int
    channels: int
    max_pixels: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.parse(self.examples[index])
        label = int(record.get("label", 0))
        if not 0 <= label < self.num_classes:
            hint = "; -1 stands for labels that are kept secret: take another split" if label == -1 else ""
            raise ValueError(
                f"expected labels from 0 to {self.num_classes - 1} in {self.where}, got {label} in record {index}{hint}"
            )
        stream = io.BytesIO(record["image"])
        stream.name = f"record {index} of {self.where}"
        return {"image": read_image(stream, self.size, self.channels, max_pixels=self.max_pixels), "label": label}


def tfds(
    name: str,
    data_dir: str | os.PathLike[str],
    split: str = "train",
    size: int = 64,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """A prepared TensorFlow Datasets set, e.g. "imagenet_resized/64x64" or "lsun/bedroom"; TensorFlow reads none of it.

    Looks in the standard layout data_dir/name[/config]/version: the newest version there, or the one of "name:1.2.3".
    The set needs an "image" feature of 8 or 16 bit; "label" is optional, and a ClassLabel. `split` follows TFDS
    ("train", "validation", "train[:90%]", ...). Images become size x size centre squares, as in `folder`. array_record
    is the format made for this; tfrecord, which TFDS writes unless told otherwise, is read from local disks after a
    pass over the lengths of its records.

    Raises:
        ValueError: not prepared there, or in a format that this cannot read (with the command that helps); a damaged
            tfrecord file; no "image", or one of floats; a "label" that says no number of classes; a first record that
            cannot be read; unknown split or number of channels.
    """
    check_settings(size, channels)
    check_max_pixels(max_pixels)
    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(_version_folder(name, data_dir))
    features = dict(builder.info.features.items())
    where = str(builder.data_dir)
    names = _class_names(name, features, where)
    # our own decoder reads the bytes, so that every source treats modes and sizes alike
    decoders = {"image": tensorflow_datasets.decode.SkipDecoding()}
    parse = functools.partial(builder.info.features.deserialize_example_np, decoders=decoders)
    records = _Records(_examples(builder, name, split), parse, where, len(names), size, channels, max_pixels)
    if len(records):
        records[0]  # what is wrong with all of them shall show now
    return Dataset(records, len(names), names, (size, size, channels), hashed([f"{builder.info.full_name} {split}"]))


def _class_names(name: str, features: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The classes of a data set; refuses features that this module would misread."""
    from tensorflow_datasets import features as kinds

    image, label = features.get("image"), features.get("label")
    if not isinstance(image, kinds.Image) or isinstance(image, kinds.LabeledImage):
        got = f"a {type(image).__name__}" if image else f"only {', '.join(features)}"
        raise ValueError(f"expected an 'image' feature of pictures in {where}, got {got}")
    if image.np_dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected images of uint8 or uint16 in {where}, got {np.dtype(image.np_dtype)}")
    if label is None:
        return (name,)
    if not isinstance(label, kinds.ClassLabel):
        raise ValueError(
            f"expected a 'label' feature that says how many classes there are in {where}, got {label!r}; prepare it "
            "again with tfds.features.ClassLabel(num_classes=...) there, or without"
        )
    return tuple(label.names)


def _examples(builder: Any, name: str, split: str) -> Any:
    from tensorflow_datasets.core.decode import DeserializeMethod

    try:
        return builder.as_data_source(split=split, deserialize_method=DeserializeMethod.RAW_BYTES)
    except NotImplementedError as error:
        files = builder.info.splits[split].file_instructions
        file_format = builder.info.file_format.value
        if file_format != "tfrecord" or not all(os.path.isfile(file.filename) for file in files):
            raise ValueError(
                f"expected {name} as array_record, or as tfrecord on a local disk, got {file_format} in "
                f"{builder.data_dir}; prepare it again, in another data_dir: {_command(name, '...')}"
            ) from error
        return TFRecords([(file.filename, file.examples_in_shard, file.skip, file.take) for file in files])


def _version_folder(name: str, data_dir: str | os.PathLike[str]) -> epath.Path:
    name, _, version = name.partition(":")
    root = epath.Path(data_dir).expanduser() / name
    found = [p.name for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    versions = [v for v in found if re.fullmatch(r"\d+\.\d+\.\d+", v) and version in ("", v)]
    if not versions:
        there = f"it holds {', '.join(sorted(found))}" if found else "no such folder"
        raise ValueError(
            f"expected {name} prepared in {root}/<version>, got none ({there}); prepare it with: "
            f"{_command(name, data_dir)}"
        )
    return root / max(versions, key=lambda v: tuple(map(int, v.split("."))))


def _command(name: str, data_dir: object) -> str:
    builder = f"tfds.builder('{name}', data_dir='{data_dir}', file_format='array_record')"
    return f'python -c "import tensorflow_datasets as tfds; {builder}.download_and_prepare()"'
