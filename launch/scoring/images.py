"""Images that are scored, each under a name, of a folder or of an array in a file: all looked at before any work."""

import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from asyncpatch_jax.data.arrays import read_images
from asyncpatch_jax.data.decoding import MAX_PIXELS, shape_of
from asyncpatch_jax.data.folders import scan_folder
from asyncpatch_jax.data.images import read_image
from asyncpatch_jax.data.masks import Convention, read_mask
from asyncpatch_jax.texts import composed, read_text
from launch.shared import prompt_files, replacing

T = TypeVar("T")
_SOME = 5  # names in an error


class Images(NamedTuple):
    """Images under their names, in the order of these.

    place: the folder or the file.
    names: paths within the folder without their suffix; of an array, numbers, as `launch.sample` names its files.
    files: of each, in a folder.
    shapes: (height, width) of each.
    read: one, in colours.
    """

    place: str
    names: tuple[str, ...]
    files: tuple[Path, ...]
    shapes: tuple[tuple[int, int], ...]
    read: Callable[[int], UInt8[np.ndarray, "h w 3"]]


def open_images(place: str, max_pixels: int = MAX_PIXELS, *, size: int | None = None) -> Images:
    """The images of a folder at any depth, or of an `.npz` with `arr_0`; of a command's folder, what it made.

    Args:
        size: makes them centre squares of so many pixels a side (`data.resize`).

    Raises:
        ValueError: nothing there, or anything else than readable images; two of one name; fewer than processes; of an
            array, another size.
    """
    found = _opened(place, max_pixels, size)
    if len(found.names) < jax.process_count():
        raise ValueError(f"expected an image in {place} for each process, got {len(found.names)}")
    return found


def _opened(place: str, max_pixels: int, size: int | None) -> Images:
    if Path(place).suffix.lower() == ".npz":
        array = read_images(place)
        if size is not None and array.shape[1:3] != (size, size):
            raise ValueError(f"expected images of {size} x {size} pixels in {place}, got {array.shape[1:3]}")
        numbers = tuple(f"{i:04d}" for i in range(len(array)))
        return Images(place, numbers, (), (array.shape[1:3],) * len(array), lambda i: np.asarray(array[i]))
    root = Path(place).expanduser()
    if (root / replacing.RECORD).is_file() and (root / "images").is_dir():
        root = root / "images"
    if (root / replacing.RECORD).is_file():  # it lies beside what launch.inpaint makes of a folder
        files = tuple(sorted(root / name for name in replacing.read(epath.Path(root)).files))
        if gone := [file.name for file in files if not file.is_file()]:
            raise ValueError(f"expected in {root} what its {replacing.RECORD} lists, got no {_listed(gone)}")
    else:
        files = scan_folder(root, channels=3, max_pixels=max_pixels).files
    names = [composed(file.relative_to(root).with_suffix("").as_posix()) for file in files]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"expected images of different names in {root}, got several of {_listed(twice)}")
    with ThreadPoolExecutor() as pool:
        shapes = tuple(pool.map(shape_of, files)) if size is None else ((size, size),) * len(files)
    return Images(place, tuple(names), files, shapes, lambda i: read_image(files[i], size, max_pixels=max_pixels))


def matched(images: Images, others: Images, *, sizes: bool) -> Images:
    """The other images in the order of these, by their names.

    Args:
        sizes: whether two of one name must be of one size.

    Raises:
        ValueError: names the images that are only in one of them, or of two sizes.
    """
    check_names(images, others.names, others.place)
    number = {name: i for i, name in enumerate(others.names)}
    order = [number[name] for name in images.names]
    shapes = tuple(others.shapes[i] for i in order)
    pairs = zip(images.names, images.shapes, shapes, strict=True)
    if unlike := [name for name, own, other in pairs if sizes and own != other]:
        raise ValueError(
            f"expected images of one size under one name in {images.place} and {others.place}, got others for "
            f"{_listed(unlike)}"
        )
    files = tuple(others.files[i] for i in order) if others.files else ()
    return Images(others.place, images.names, files, shapes, lambda i: others.read(order[i]))


def check_names(images: Images, names: Sequence[str], place: object) -> None:
    """Refuse names that are not those of the images, whatever their order.

    Raises:
        ValueError: names those that are missing, and those that are too many.
    """
    own, other = set(images.names), set(names)
    parts = [
        f"{len(some)} only in {where} ({_listed(some)})"
        for some, where in ((own - other, images.place), (other - own, place))
        if some
    ]
    if parts:
        raise ValueError(f"expected the same names in {images.place} and {place}, got {' and '.join(parts)}")


def _listed(names: Any) -> str:
    found = sorted(names)
    return ", ".join(found[:_SOME]) + (f" and {len(found) - _SOME} more" if len(found) > _SOME else "")


def texts_of(images: Images, file: str, sample: int | None, seed: int) -> list[str]:
    """The text of each image: of a file, by names or in its order, or of the images' own files.

    Args:
        file: a JSON object of names and texts; or prompts in the order of the images, where each may have equally many
            images beside each other, as `launch.text2image` writes them. "": what it wrote into the PNG files.
        sample, seed: as of `prompt_files.read`.

    Raises:
        ValueError: another number of prompts or other names; no file, and images that say nothing themselves.
    """
    if not file:
        return _own_texts(images)
    if (named := _named(file, images)) is not None:
        return named
    texts = prompt_files.texts(file, sample, seed)
    each, rest = divmod(len(images.names), len(texts))
    if rest or not each:
        raise ValueError(
            f"expected as many images in {images.place} as prompts in {file}, or so many for each, got "
            f"{len(images.names)} and {len(texts)}"
        )
    return [text for text in texts for _ in range(each)]


def _named(file: str, images: Images) -> list[str] | None:
    """The texts of a JSON object of names and texts; None of any other file."""
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError):
        return None  # which the reader of prompts names, if there is no such file
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        return None
    texts = {_plain(composed(name), images): text for name, text in content.items()}
    if not set(texts) & set(images.names):
        return None
    check_names(images, list(texts), file)
    return [texts[name] for name in images.names]


def _plain(name: str, images: Images) -> str:
    """A name without its suffix, unless all of it is an image's: what follows a dot need not be a suffix."""
    return name if name in images.names else Path(os.path.splitext(name)[0]).as_posix()


def _own_texts(images: Images) -> list[str]:
    texts = []
    for file in images.files:
        with Image.open(file) as image:
            texts.append(getattr(image, "text", {}).get("prompt"))
    if None in texts or not texts:
        lone = f", such as {images.files[texts.index(None)].name}" if texts else ""
        raise ValueError(
            f"expected --prompts=FILE, for {images.place} has images that do not say their prompt themselves{lone}"
        )
    return [text for text in texts if text is not None]


def masks_of(images: Images, place: str, convention: Convention) -> dict[str, Path]:
    """The file of each image's mask: of a folder with the same names, or one for all.

    Raises:
        ValueError: missing masks or too many, or one that cannot be read as the mask of its image.
    """
    root = Path(place).expanduser()
    if root.is_file():
        found = dict.fromkeys(images.names, root)
    else:
        files = scan_folder(root, channels=1).files
        found = {composed(file.relative_to(root).with_suffix("").as_posix()): file for file in files}
        check_names(images, list(found), place)
    # each mask with each size of its images, once
    wanted = {(found[name], shape) for name, shape in zip(images.names, images.shapes, strict=True)}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda pair: read_mask(pair[0], pair[1], convention).any(), wanted))
    return found


def batches(
    read: Callable[[int], tuple[np.ndarray, ...]], shapes: Sequence[object], places: Sequence[int], size: int
) -> Iterator[tuple[list[int], tuple[np.ndarray, ...]]]:
    """Places and what was read there, stacked; each batch of one shape, the next one read ahead by threads.

    The last batch of a shape is filled up with its last image if there was a full one, so that it compiles nothing new:
    what is computed of the filler is not wanted.
    """
    groups: dict[object, list[int]] = {}
    for place in places:
        groups.setdefault(shapes[place], []).append(place)
    parts = [(group[i : i + size], len(group) > size) for group in groups.values() for i in range(0, len(group), size)]
    with ThreadPoolExecutor() as pool:
        ahead = [pool.submit(read, place) for place in parts[0][0]] if parts else []
        for number, (part, fill) in enumerate(parts):
            now, following = ahead, parts[number + 1][0] if number + 1 < len(parts) else []
            ahead = [pool.submit(read, place) for place in following]
            found = [one.result() for one in now]
            found += [found[-1]] * ((size - len(found)) if fill else 0)
            yield part, tuple(np.stack(arrays) for arrays in zip(*found, strict=True))


def holds_images(place: str) -> bool:
    """Whether an `.npz` has an array of images, `arr_0`."""
    with zipfile.ZipFile(place) as archive:
        return "arr_0.npy" in archive.namelist()
