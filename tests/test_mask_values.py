"""What the numbers in masks mean: read where it shows, asked for where it does not."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from asyncpatch_jax.data.masks import read_mask
from tests.image_files import damaged, stored, tiff

few = settings(max_examples=80, deadline=None)
CONVENTIONS = ("white_generate", "black_generate", "alpha_generate", "alpha_keep")
grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


def file_of(numbers, convention="white_generate"):
    """A file that holds these numbers, as greys or as alpha."""
    image = Image.fromarray(numbers)
    if convention.startswith("alpha"):
        image = Image.merge("LA", (Image.new("L", image.size, 77), image))
    return stored(image, format="png" if image.mode != "F" else "tiff")


def marked(share, convention):
    """A truth: how much is generated where a file says so much of white, or of opaque."""
    return 1 - share if convention in ("black_generate", "alpha_generate") else share


def asks(numbers, convention="white_generate", **how):
    for graded in (False, True) if "graded" not in how else (how.pop("graded"),):
        with pytest.raises(ValueError, match=r"greys from 0 to a white of .*mask_values=\(0, .*in an image in memory"):
            read_mask(file_of(numbers, convention), numbers.shape, convention, graded=graded, **how)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("top", [1, 2, 20, 100, 128, 200])
def test_label_maps_are_asked_about_and_read_as_told(convention, top):
    numbers = np.zeros((3, 4), np.uint8)
    numbers[1, 1:] = top
    asks(numbers, convention)
    share = (numbers > 0).astype(np.float32)
    for graded in (False, True):
        told = read_mask(file_of(numbers, convention), (3, 4), convention, graded=graded, mask_values=(0.0, float(top)))
        np.testing.assert_array_equal(told[..., 0], marked(share, convention))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_masks_of_zeros_and_ones_are_asked_about(dtype):
    numbers = np.eye(3, dtype=dtype) * dtype(1 if dtype == np.uint16 else 1 / 255)
    asks(numbers)
    top = float(numbers.max())
    np.testing.assert_array_equal(read_mask(file_of(numbers), (3, 3), mask_values=(0.0, top))[..., 0], np.eye(3))
    of_255 = np.eye(3, dtype=np.float32) * 255
    asks(of_255)
    np.testing.assert_array_equal(read_mask(file_of(of_255), (3, 3), mask_values=(0.0, 255.0))[..., 0], np.eye(3))
    whole = (np.eye(3) * (65535 if dtype == np.uint16 else 1)).astype(dtype)
    np.testing.assert_array_equal(read_mask(file_of(whole), (3, 3))[..., 0], np.eye(3))


def test_labels_beside_unknown_are_asked_about():
    """Of segmentation sets: labels from 1 on, and 255 around objects."""
    numbers = np.array([[0, 0, 1], [255, 1, 1]], np.uint8)
    asks(numbers, graded=False)
    with pytest.raises(
        ValueError, match=r"numbers from 0 to 1 \(mask_values\) in a mask, got 1 others in 0 \.\.\. 255"
    ):
        read_mask(file_of(numbers), (2, 3), mask_values=(0.0, 1.0))
    told = read_mask(file_of(numbers), (2, 3), mask_values=(0.0, 255.0))
    np.testing.assert_array_equal(told[..., 0], numbers == 255)


def test_masks_that_show_their_white_need_nothing():
    rng = np.random.default_rng(0)
    hole = np.zeros((40, 40), np.uint8)
    hole[7:22, 11:33] = 255
    jpeg = read_mask(stored(Image.fromarray(hole).convert("RGB"), format="jpeg", quality=60), (40, 40))[..., 0]
    np.testing.assert_array_equal(jpeg, hole > 0)
    smooth = np.array([[0, 60, 120, 180, 255]], np.uint8)
    np.testing.assert_array_equal(read_mask(file_of(smooth), (1, 5))[..., 0], [[0, 0, 0, 1, 1]])
    for mode in ("1", "P", "RGB", "LA"):
        image = Image.fromarray(hole).convert(mode)
        np.testing.assert_array_equal(read_mask(stored(image), (40, 40))[..., 0], hole > 0)
    black = np.zeros((4, 4), np.uint8)
    assert read_mask(file_of(black), (4, 4), "black_generate").all()
    assert read_mask(file_of(255 - black), (4, 4)).all()
    strengths = rng.integers(0, 256, (5, 5)).astype(np.uint8)
    strengths[0, 0] = 255
    np.testing.assert_allclose(read_mask(file_of(strengths), (5, 5), graded=True)[..., 0], strengths / 255, rtol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colours_mean_nothing(tmp_path, mode):
    path = tmp_path / "painted.png"
    image = Image.new("RGB", (4, 3), "black")
    image.putpixel((2, 1), (200, 0, 0))
    image.quantize(2).save(path) if mode == "P" else image.save(path)
    what = "the palette of a map of labels" if mode == "P" else "painted in colour"
    with pytest.raises(ValueError, match=rf"got the colour \(200, 0, 0\) at x=2, y=1: .*{what}.*, in {path}"):
        read_mask(path, (3, 4))


@pytest.mark.parametrize("values", [(1.0, 0.0), (0.0, 0.0), (0.0, np.nan), (-np.inf, 1.0)])
def test_mask_values_are_two_numbers(values):
    with pytest.raises(ValueError, match=r"mask_values = \(black, white\) with black < white, got"):
        read_mask(file_of(np.eye(2, dtype=np.uint8)), (2, 2), mask_values=values)


def test_numbers_that_are_none():
    with pytest.raises(ValueError, match="expected finite numbers in a mask"):
        read_mask(io.BytesIO(tiff(np.array([[0.0, np.nan]]), 32)), (1, 2), mask_values=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"numbers from 0 to 1 .* got 1 others"):
        read_mask(io.BytesIO(tiff(np.array([[-0.5, 1.0]]), 32)), (1, 2), mask_values=(0.0, 1.0))


@few
@given(data=st.data(), size=grids, convention=st.sampled_from(CONVENTIONS), graded=st.booleans())
def test_a_mask_is_what_it_says_or_is_asked_about(data, size, convention, graded):
    """Of few and of many different numbers: the truth, or a question; never a small part of the range as all of it."""
    several = data.draw(st.sets(st.integers(0, 255), min_size=1, max_size=4))
    values = st.sampled_from(sorted(several | {0})) | st.integers(0, 255)
    drawn = data.draw(st.lists(values, min_size=size[0] * size[1], max_size=size[0] * size[1]))
    numbers = np.array(drawn, np.uint8).reshape(size)
    expected = marked(numbers / np.float32(255), convention)
    expected = expected if graded else (expected >= 0.5).astype(np.float32)
    for told in (None, (0.0, 255.0)):
        try:
            read = read_mask(file_of(numbers, convention), size, convention, graded=graded, mask_values=told)
        except ValueError as problem:
            said = str(problem)
        else:
            np.testing.assert_allclose(read[..., 0], expected, atol=1e-6)
            assert told or numbers.max() >= 250 or not numbers.any()
            continue
        assert said.startswith("expected a mask")
        if "something to generate" in said:
            assert not expected.any()
        elif "transparency" in said:
            assert convention.startswith("alpha")
            assert (numbers == 255).all()
        else:
            assert told is None
            assert numbers.any()


@few
@given(content=damaged(), convention=st.sampled_from(CONVENTIONS), values=st.sampled_from([None, (0.0, 1.0)]))
@pytest.mark.filterwarnings("ignore")
def test_any_file_is_a_mask_or_an_error(content, convention, values):
    try:
        read = read_mask(io.BytesIO(content), (9, 12), convention, mask_values=values)
    except ValueError as problem:
        said = str(problem)
    else:
        assert read.shape == (9, 12, 1)
        assert set(np.unique(read)) <= {0, 1}
        return
    assert said.startswith("expected ")
    assert ", got " in said
