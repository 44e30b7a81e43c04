"""Images in: data sets and their batches, image files, inpainting masks."""

from asyncpatch_jax.data.captions import captioned
from asyncpatch_jax.data.dataset import Augment, Dataset, Latents, Source, batches
from asyncpatch_jax.data.decoding import MAX_PIXELS
from asyncpatch_jax.data.encoded import latents
from asyncpatch_jax.data.folders import Folder, scan_folder
from asyncpatch_jax.data.images import check_pixels, read_image, resize
from asyncpatch_jax.data.masks import MASKS, Convention, draw, outpaint, read_mask
from asyncpatch_jax.data.mnist import fashion_mnist, idx, mnist_digits, read_idx
from asyncpatch_jax.data.prepared import tfds
from asyncpatch_jax.data.sources import PHOTOS, digits, folder, photo, photos

__all__ = [
    "MASKS",
    "MAX_PIXELS",
    "PHOTOS",
    "Augment",
    "Convention",
    "Dataset",
    "Folder",
    "Latents",
    "Source",
    "batches",
    "captioned",
    "check_pixels",
    "digits",
    "draw",
    "fashion_mnist",
    "folder",
    "idx",
    "latents",
    "mnist_digits",
    "outpaint",
    "photo",
    "photos",
    "read_idx",
    "read_image",
    "read_mask",
    "resize",
    "scan_folder",
    "tfds",
]
