"""Image files as uint8 arrays."""

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageOps

from asyncpatch_jax.data.decoding import MAX_PIXELS, ImageFile, decoded, faults_of

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# v / 257, rounded: 65535 becomes 255
_EIGHT_BIT = ((np.arange(65536) + 128) // 257).astype(np.uint8)


def eight_bit(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bit scaled (not clipped, as Pillow would) to 8; other modes as they are.

    Raises:
        ValueError: whole numbers outside 0 ... 65535, floats outside 0 ... 1.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values, top = numbers(image)
    check_pixels(values, 0.0, top)
    grey = Image.fromarray(
        np.round(values * np.float32(255)).astype(np.uint8) if image.mode == "F" else _EIGHT_BIT[values]
    )
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


def numbers(image: Image.Image) -> tuple[np.ndarray, float]:
    """The numbers [h, w] that an image of greys (mode 1, L, I, F) holds, and which number is white."""
    values = np.asarray(image.convert("L") if image.mode == "1" else image)
    return values, {"F": 1.0, "I": 65535.0}.get(image.mode[0], 255.0)


def converted(image: Image.Image, channels: int) -> Image.Image:
    """An image of any mode with 1 (grey), 3 (RGB) or 4 (RGBA) channels; without the fourth, on white."""
    image, mode = eight_bit(image), _MODES[channels]
    if channels != 4 and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if channels != 4 and image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


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
    path: ImageFile, size: int | None = None, channels: int = 3, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w c"]:
    """One image file as uint8 [h, w, channels], upright, at its own size or as a size x size centre square (`resize`).

    Any mode of the formats in `decoding.FORMATS`: grey, RGB, palette, CMYK, 1 bit; 16-bit greys are scaled to 8 bit
    (v / 257), float greys are taken as 0..1. The EXIF rotation is applied, colour profiles are not. With 1 or 3
    channels transparent parts show white; channels=4 keeps the alpha. Grey is the ITU-R 601 luma. Of an animation the
    first frame counts.

    Args:
        max_pixels: refuse larger images. Threads that read at once share memory for decoding, and wait for it.

    Raises:
        ValueError: missing, truncated or corrupt file, none of these formats, too many pixels; unknown number of
            channels, size < 1.
    """
    check_settings(size, channels)
    with decoded(path, max_pixels) as image, faults_of(path, ValueError, MemoryError):
        image = converted(image, channels)
        pixels = np.asarray(image if size is None else resize(image, size))
    return pixels.reshape(*pixels.shape[:2], channels)


def check_pixels(pixels: Num[np.ndarray, "..."], low: float = -1.0, high: float = 1.0) -> None:
    """Refuse pixels that are NaN, infinite or outside [low, high] (up to rounding).

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
