"""Photos with the channels of their files, and the same pictures with those that a network has."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from asyncpatch_jax.data import images
from asyncpatch_jax.data.decoding import MAX_PIXELS, ImageFile, decoded, faults_of

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_GREYS = ("1", "L", "LA", "La", "I", "F")


def read_photo(path: ImageFile, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w c"]:
    """An image file, upright and at its own size, with its own colours: those of transparent parts too.

    Grey files have 1 channel, colours 3, and transparency makes it 2 or 4.

    Raises:
        ValueError: as `read_image`.
    """
    with decoded(path, max_pixels) as image, faults_of(path, ValueError, MemoryError):
        grey, transparent = image.mode in _GREYS or image.mode.startswith("I;"), image.has_transparency_data
        pixels = np.asarray(images.converted(image, 4))
    return pixels[..., ([0] if grey else [0, 1, 2]) + [3] * transparent]


def with_channels(photo: UInt8[np.ndarray, "h w _c"], channels: int) -> UInt8[np.ndarray, "h w c"]:
    """A picture with 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels in place of its own.

    Where a network knows no transparency, white shows through; where it knows no colours, grey is the ITU-R 601 luma.
    """
    if photo.shape[2] == channels:
        return photo
    image = Image.fromarray(photo[..., 0] if photo.shape[2] == 1 else photo)
    if photo.shape[2] in (2, 4) and channels in (1, 3):
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colour).convert("RGB")
    image = image.convert(_MODES[channels])
    return np.asarray(image).reshape(*photo.shape[:2], channels)
