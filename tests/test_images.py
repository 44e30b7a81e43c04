import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from asyncpatch_jax.data.images import check_pixels, read_image
from tests.image_files import stored

few = settings(max_examples=25, deadline=None)
sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
channels = st.sampled_from([1, 3, 4])


def noise(shape, seed=0, top=256):
    return np.random.default_rng(seed).integers(0, top, shape)


@few
@given(
    size=sizes,
    seed=st.integers(0, 99),
    channels=channels,
    fmt=st.sampled_from(["png", "bmp", "tiff"]),
)
def test_lossless_files_read_back_exactly(size, seed, channels, fmt):
    pixels = noise((*size, channels), seed).astype(np.uint8)
    fmt = "png" if channels == 4 else fmt
    file = stored(Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels), format=fmt)
    np.testing.assert_array_equal(read_image(file, channels=channels), pixels)


@few
@given(
    size=sizes,
    mode=st.sampled_from(["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F", "HSV"]),
    channels=channels,
    to=st.none() | st.integers(1, 20),
)
def test_every_mode_and_size_becomes_what_was_asked_for(size, mode, channels, to):
    base = Image.fromarray(noise((*size, 3)).astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray(noise(size, top=65536).astype(np.uint16))
    elif mode == "F":
        image = Image.fromarray(noise(size).astype(np.float32) / 255)
    else:
        image = base.convert("P").convert("PA") if mode == "PA" else base.convert(mode)
    fmt = "tiff" if mode in ("CMYK", "YCbCr", "F", "PA") else "png"
    if mode in ("HSV", "PA"):  # no common format stores these
        image, fmt = image.convert("RGBA" if mode == "PA" else "RGB"), "png"
    pixels = read_image(stored(image, format=fmt), to, channels)
    assert pixels.dtype == np.uint8
    assert pixels.shape == ((*size, channels) if to is None else (to, to, channels))


def test_16_bit_greys_are_scaled_and_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    for fmt in ("png", "tiff"):
        read = read_image(stored(Image.fromarray(values), format=fmt), channels=1)
        np.testing.assert_array_equal(read[0, :, 0], [0, 1, 128, 255])
    as_float = Image.fromarray(values.astype(np.float32) / 65535)
    np.testing.assert_array_equal(read_image(stored(as_float, format="tiff"), channels=1)[0, :, 0], [0, 1, 128, 255])


def test_16_bit_values_out_of_range_are_an_error():
    file = stored(Image.fromarray(np.array([[0, 70000]], np.int32)), format="tiff")
    with pytest.raises(ValueError, match=r"\[0, 65535\]"):
        read_image(file)


def test_colour_models():
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    for mode, fmt in (("RGB", "png"), ("CMYK", "tiff"), ("P", "png")):
        np.testing.assert_array_equal(read_image(stored(red.convert(mode), format=fmt))[0, 0], [255, 0, 0])
    # ITU-R 601
    assert read_image(stored(red), channels=1)[0, 0, 0] == round(0.299 * 255)
    bits = Image.fromarray(np.array([[True, False]]))
    np.testing.assert_array_equal(read_image(stored(bits), channels=1)[0, :, 0], [255, 0])


def test_transparency_shows_white():
    layer = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    file = stored(Image.fromarray(layer))
    np.testing.assert_array_equal(read_image(file)[0], [[10, 20, 30], [255, 255, 255], [204, 204, 204]])
    np.testing.assert_array_equal(read_image(file, channels=4), layer)
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(read_image(stored(palette, transparency=1))[0], [[9, 8, 7], [255, 255, 255]])


def test_exif_rotation_is_applied():
    pixels = noise((2, 3, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture has to be turned by 90 degrees clockwise
    file = stored(Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(read_image(file), np.rot90(pixels, -1))


def test_resize_takes_the_centre_square_and_keeps_brightness():
    wide = np.zeros((8, 24, 1), np.uint8)
    wide[:, 8:16] = 200  # the centre square
    np.testing.assert_array_equal(read_image(stored(Image.fromarray(wide[..., 0])), 8, 1), wide[:, 8:16])
    # antialiased: a chessboard of single pixels shrinks to even grey, and not to black or white
    board = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    small = read_image(stored(Image.fromarray(board)), 8, 1)
    assert np.abs(small.astype(int) - 127).max() < 16


@pytest.mark.parametrize(("size", "channels", "message"), [(0, 3, "at least 1 pixel"), (8, 2, "channels out of 1")])
def test_wrong_settings(size, channels, message):
    with pytest.raises(ValueError, match=message):
        read_image(stored(Image.new("L", (4, 4))), size, channels)


@few
@given(
    data=st.binary(max_size=200), cut=st.floats(0, 0.95), fmt=st.sampled_from(["png", "jpeg", "gif", "webp", "tiff"])
)
def test_bad_bytes_are_a_value_error(data, cut, fmt):
    whole = stored(Image.fromarray(noise((24, 24, 3)).astype(np.uint8)), format=fmt).getvalue()
    for content in (data, whole[: int(cut * len(whole))]):
        with pytest.raises(ValueError, match="expected a readable image file"):
            read_image(io.BytesIO(content))


def test_check_pixels():
    good = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 2, 2, 3)
    check_pixels(good)
    check_pixels(good + 1e-6)
    for bad in (np.nan, np.inf, -np.inf, 1.1, -1.1):
        pixels = good.copy()
        pixels[0, 1, 0, 2] = bad
        with pytest.raises(ValueError, match=r"got 1 others of 12, the first .* at \(0, 1, 0, 2\)"):
            check_pixels(pixels)
    check_pixels(np.array([255.0]), 0.0, 255.0)
