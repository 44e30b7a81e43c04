"""What public networks read of an image, against Pillow, PyTorch, and the rules of torchvision and HPSv2's code."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate, pad

from asyncpatch_jax.metrics.pixels import MEAN, STD, letterbox, preprocess

SIZE = 20


def some_images(size):
    """Values that Pillow's resize does not take out of 8 bits, whichever axis is first."""
    return np.random.default_rng(0).integers(64, 192, (2, *size, 3), dtype=np.uint8)


def resized(image, height, width):
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def cut(image, offset):
    """The shorter side to SIZE and the centre: as torchvision (offset round) or transformers (int)."""
    height, width = image.shape[:2]
    short = min(height, width)
    new = resized(image, int(SIZE * height / short), int(SIZE * width / short))
    top, left = (offset((length - SIZE) / 2) for length in new.shape[:2])
    return new[top : top + SIZE, left : left + SIZE]


def filled(image):
    """ResizeMaxSize of HPSv2's code: of tensors, 0 ... 1, which it then pads."""
    scale = SIZE / float(max(image.shape[:2]))
    height, width = (round(length * scale) for length in image.shape[:2])
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    new = interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    new = pad(new, (left, SIZE - width - left, top, SIZE - height - top))
    return 255 * new[0].permute(1, 2, 0).numpy()


def levels(ours, theirs):
    """How many of 256 levels they differ by."""
    return np.abs(np.asarray(ours) - (np.stack(theirs) / 255 - MEAN) / STD) * STD * 255


# the square begins 1.5 or 2.5 pixels from the edge: halves go to even numbers in torchvision
@pytest.mark.parametrize("size", [(SIZE, 23), (SIZE, 25), (23, SIZE)])
@pytest.mark.parametrize("offset", [int, round])
def test_the_centre_square(size, offset):
    images = some_images(size)
    ours = jax.jit(partial(preprocess, size=SIZE, offset=offset))(images)
    assert levels(ours, [cut(image, offset) for image in images]).max() < 0.01  # cut, not resized


@pytest.mark.parametrize("size", [(30, 41), (9, 13), (20, 20), (12, 41), (41, 12)])
def test_the_whole_image(size):
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    found = levels(jax.jit(partial(letterbox, size=SIZE))(images), [filled(image) for image in images])
    assert found.max() < 1e-3
