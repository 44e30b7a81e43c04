"""Photos with the channels of their files, and with those of a network."""

import numpy as np
import pytest
from PIL import Image

from asyncpatch_jax.data.channels import read_photo, with_channels


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("I;16", 1), ("LA", 2), ("RGB", 3), ("P", 3), ("CMYK", 3), ("RGBA", 4)]
)
def test_a_photo_has_the_channels_of_its_file(tmp_path, mode, channels):
    rng = np.random.default_rng(0)
    if mode == "I;16":
        values = rng.integers(0, 256, (5, 7)).astype(np.uint16) * 257
        image, wanted = Image.fromarray(values), (values // 257)[..., None]
    else:
        image = Image.fromarray(rng.integers(0, 256, (5, 7, 4), np.uint8), "RGBA")
        image = image.convert("RGB").convert(mode) if mode in ("P", "CMYK") else image.convert(mode)
        wanted = np.asarray(image.convert({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels])).reshape(5, 7, channels)
    image.save(tmp_path / "photo.tif")
    photo = read_photo(tmp_path / "photo.tif")
    np.testing.assert_array_equal(photo, wanted)


def test_colours_that_are_transparent_are_kept_and_seen_as_white():
    photo = np.zeros((1, 3, 4), np.uint8)
    photo[0] = [(200, 10, 10, 0), (200, 10, 10, 255), (200, 10, 10, 128)]
    assert with_channels(photo, 4) is photo
    rgb = with_channels(photo, 3)
    assert rgb[0, :2].tolist() == [[255, 255, 255], [200, 10, 10]]
    assert 10 < rgb[0, 2, 1] < 255
    np.testing.assert_array_equal(with_channels(photo, 1), with_channels(rgb, 1))
    np.testing.assert_array_equal(with_channels(rgb, 4)[..., 3], 255)
    grey = with_channels(rgb, 1)
    assert with_channels(grey, 2)[..., 1].min() == 255
    np.testing.assert_array_equal(with_channels(grey, 3), np.repeat(grey, 3, -1))
