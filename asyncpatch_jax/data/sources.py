"""Data sets as random-access sources of {"image": uint8 [h, w, c], "label": int}."""

import importlib.resources
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from asyncpatch_jax.data.dataset import Dataset, hashed
from asyncpatch_jax.data.decoding import MAX_PIXELS
from asyncpatch_jax.data.folders import OnError, scan_folder
from asyncpatch_jax.data.images import check_settings, read_image, resize

Split = Literal["train", "test"]


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is "train" or "test"."""
    if split not in ("train", "test"):
        raise ValueError(f"expected split = 'train' or 'test', got {split!r}")


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images that are all in memory."""

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
    chosen = part_of(data.target, split)
    images = np.stack([np.asarray(resize(Image.fromarray(image), size)) for image in images[chosen]])[..., None]
    # their own pixels, as they have no names
    pixels = (image.tobytes().hex() for image in data.images[chosen].astype(np.uint8))
    names = hashed(f"{label} {own}" for label, own in zip(data.target[chosen], pixels, strict=True))
    return Dataset(Arrays(images, data.target[chosen]), 10, tuple("0123456789"), (size, size, 1), names)


def part_of(labels: Int[np.ndarray, "n"], split: Split) -> Bool[np.ndarray, "n"]:
    """Which images of a set that has no split of its own belong to one: every fifth of each class is held out."""
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return (rank % 5 == 4) == (split == "test")


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
