"""Image files and folders as uint8 arrays; what cannot be read is named before any work is done with it."""

import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
OnError = Literal["raise", "skip"]


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit greys scaled (not clipped, as Pillow would) to 8 bit; other modes as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    check_pixels(values, 0.0, top)
    return Image.fromarray(np.round(values * (255.0 / top)).astype(np.uint8))


def _convert(image: Image.Image, channels: int) -> Image.Image:
    image = _eight_bit(image)
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode in ("1", "L"):
        return image.convert(_MODES[channels])
    return image.convert("RGB").convert(_MODES[channels])


def resize(image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """Centre square of an image at size x size: its shorter side becomes `size`, the rest of the longer one is cut off.

    Antialiased bicubic (Pillow's, whose kernel widens when it shrinks): the rule under which Fréchet distances are
    comparable, Parmar et al. 2022 ("On Aliased Resizing", arXiv 2104.11222). An image of that size passes unchanged.
    """
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), resample)


def check_settings(size: int | None, channels: int) -> None:
    """Refuse an image size below one pixel and numbers of channels other than 1, 3, 4 (ValueError)."""
    if size is not None and size < 1:
        raise ValueError(f"expected a size of at least 1 pixel, got {size}")
    if channels not in _MODES:
        raise ValueError(f"expected channels out of 1 (grey), 3 (RGB), 4 (RGBA), got {channels}")


def read_image(
    path: str | os.PathLike[str] | io.BufferedIOBase, size: int | None = None, channels: int = 3
) -> UInt8[np.ndarray, "h w c"]:
    """One image file as uint8 [h, w, channels], upright, at its own size or as a size x size centre square (`resize`).

    Any mode that Pillow reads: grey, RGB, palette, CMYK, 1 bit; 16-bit greys are scaled to 8 bit (v / 257), float greys
    are taken as 0..1. The EXIF rotation is applied, colour profiles are not. With 1 or 3 channels transparent parts
    show white; channels=4 keeps the alpha. Grey is the ITU-R 601 luma. Of an animation the first frame counts.

    Raises:
        ValueError: missing, truncated or corrupt file, no image file, unknown number of channels, size < 1.
    """
    check_settings(size, channels)
    try:
        with Image.open(path) as image:
            image = _convert(ImageOps.exif_transpose(image), channels)
            pixels = np.asarray(image if size is None else resize(image, size))
    # decoders raise whatever their library raises (OSError, SyntaxError, struct.error, ...), all of it on bad bytes
    except Exception as error:
        name = getattr(path, "name", None) or path
        raise ValueError(f"expected a readable image file, got {name} ({_reason(error)})") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "no known image format"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error) or type(error).__name__


def check_pixels(pixels: Float[np.ndarray, "..."], low: float = -1.0, high: float = 1.0) -> None:
    """Refuse float pixels that are NaN, infinite or outside [low, high] (up to rounding).

    Raises:
        ValueError: with the number of bad values, the first one and where it is.
    """
    slack = 1e-5 * (high - low)
    # NaN fails both comparisons
    bad = ~((pixels >= low - slack) & (pixels <= high + slack))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"expected finite pixels in [{low:g}, {high:g}], got {int(bad.sum())} others of {bad.size}, "
            f"the first {pixels[where]:g} at {where}"
        )


class Folder(NamedTuple):
    """The readable images of a folder, sorted by path."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]  # index into class_names, one per file
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]  # "path (reason)" of each file that could not be read


def scan_folder(path: str | os.PathLike[str], *, channels: int = 3, on_error: OnError = "raise") -> Folder:
    """List the images under a folder and decode each once, so that a bad one shows up now and not in hour ten.

    The class of an image is its first-level subdirectory (deeper ones do not matter); a folder without subdirectories
    is one class, named after itself. Names that start with a dot are no part of the data.

    Raises:
        ValueError: no such folder; no images in it; images both beside and inside subdirectories; any unreadable file
            (all of them in one error), unless on_error="skip", which warns with their number and goes on.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"expected on_error = 'raise' or 'skip', got {on_error!r}")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"expected a folder of images, got {root} ({'a file' if root.exists() else 'does not exist'})")
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    loose = [entry for entry in entries if entry.is_file()]
    classes = {entry.name: _files(entry) for entry in entries if entry.is_dir()}
    if loose and any(classes.values()):
        raise ValueError(
            f"expected images either in class subdirectories of {root} or directly in it, got both "
            f"({loose[0].name} beside {next(name for name, files in classes.items() if files)}{os.sep})"
        )
    if loose:
        classes = {root.resolve().name: loose}
    files = [file for members in classes.values() for file in members]
    with ThreadPoolExecutor() as pool:
        problems = dict(zip(files, pool.map(lambda file: _problem(file, channels), files), strict=True))
    skipped = tuple(f"{file.relative_to(root)} ({problem})" for file, problem in problems.items() if problem)
    if skipped and on_error == "raise":
        raise ValueError(
            f"expected only readable images in {root}, got {len(skipped)} other files of {len(files)} "
            f"(on_error='skip' leaves them out):\n{_listing(skipped)}"
        )
    classes = {name: [file for file in members if problems[file] is None] for name, members in classes.items()}
    classes = {name: members for name, members in classes.items() if members}
    if not classes:
        raise ValueError(f"expected images in {root}, got none ({len(skipped)} unreadable files)")
    if skipped:
        warnings.warn(f"skipped {len(skipped)} unreadable files of {len(files)}:\n{_listing(skipped)}", stacklevel=2)
    return Folder(
        files=tuple(file for members in classes.values() for file in members),
        labels=tuple(label for label, members in enumerate(classes.values()) for _ in members),
        class_names=tuple(classes),
        skipped=skipped,
    )


def _files(folder: Path) -> list[Path]:
    """Files below a folder at any depth, sorted, without hidden ones."""
    found = (file for file in folder.rglob("*") if file.is_file())
    return sorted(f for f in found if not any(part.startswith(".") for part in f.relative_to(folder).parts))


def _problem(file: Path, channels: int) -> str | None:
    """Why a file cannot be read, or None."""
    try:
        with Image.open(file) as image:
            # JPEG only: reads the whole file, but computes an eighth of its pixels
            image.draft(image.mode, (1, 1))
            _convert(ImageOps.exif_transpose(image), channels)
    except Exception as error:  # see read_image
        return _reason(error)
    return None


def _listing(lines: Sequence[str], most: int = 10) -> str:
    rest = [f"  ... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*(f"  {line}" for line in lines[:most]), *rest])
