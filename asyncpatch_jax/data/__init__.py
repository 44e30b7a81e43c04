"""Images in: data sets and their batches, image files, inpainting masks."""

from asyncpatch_jax.data.dataset import Augment, Dataset, Source, batches
from asyncpatch_jax.data.images import Folder, check_pixels, read_image, resize, scan_folder
from asyncpatch_jax.data.masks import MASKS, Convention, draw, outpaint, read_mask
from asyncpatch_jax.data.sources import PHOTOS, digits, folder, photo, photos, tfds

__all__ = [
    "MASKS",
    "PHOTOS",
    "Augment",
    "Convention",
    "Dataset",
    "Folder",
    "Source",
    "batches",
    "check_pixels",
    "digits",
    "draw",
    "folder",
    "outpaint",
    "photo",
    "photos",
    "read_image",
    "read_mask",
    "resize",
    "scan_folder",
    "tfds",
]
