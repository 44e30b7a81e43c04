"""Pictures hold what they show, and files are whole or absent."""

import errno
import os
import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageSequence

from asyncpatch_jax import files, viz


def _images(n=3, size=(8, 6), channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, *size, channels)).astype(np.float32)


def test_every_grey_level_survives_the_way_to_float_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(viz.to_uint8(levels.astype(np.float32) / 127.5 - 1), levels)


@given(st.floats(-3, 3, width=32))
def test_rounding_is_to_the_nearest_grey_level(value):
    got = viz.to_uint8(np.full((1, 1, 1, 1), value, np.float32)).item()
    assert abs(got - np.clip((float(value) + 1) * 127.5, 0, 255)) <= 0.5 + 1e-9


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused(bad):
    images = _images()
    images[1, 2, 3, 0] = bad
    with pytest.raises(ValueError, match="got 1 of 144 that are NaN or infinite"):
        viz.to_uint8(images)


def test_heat_is_viridis_and_refuses_what_is_no_time():
    matplotlib = pytest.importorskip("matplotlib")
    times = np.linspace(0, 1, 101, dtype=np.float32).reshape(1, -1, 1)
    want = matplotlib.colormaps["viridis"](times[..., 0])[..., :3] * 255
    assert np.abs(viz.heat(times) - want).max() <= 7
    for bad in (1.1, -0.1, np.nan):
        with pytest.raises(ValueError, match="expected times in"):
            viz.heat(np.full((1, 1, 1), bad, np.float32))


def test_a_grid_shows_every_pixel_of_every_image_enlarged():
    images = _images(5)
    picture = viz.grid(images, columns=3)
    height, width = viz.visible((8, 6))
    assert (height, width) == (88, 66)
    for i, image in enumerate(viz.colour(images)):
        y, x = 4 + i // 3 * (height + 4), 4 + i % 3 * (width + 4)
        tile = picture[y : y + height, x : x + width]
        assert np.array_equal(tile[::11, ::11], image)
        assert np.array_equal(tile, viz.enlarge(image, (height, width)))
    assert (picture[4 + height + 4 :, 4 + 2 * (width + 4) :] == 255).all()  # the sixth place is empty


def test_bad_pictures_are_refused_with_what_was_expected():
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        viz.grid(_images(channels=2), 2)
    with pytest.raises(ValueError, match="columns >= 1"):
        viz.grid(_images(), 0)
    with pytest.raises(ValueError, match="divides"):
        viz.enlarge(viz.colour(_images()), (8, 8))
    with pytest.raises(ValueError, match="expected 2 row names, got 1"):
        viz.page(np.zeros((2, 1, 4, 4, 3), np.uint8), row_names=["one"])


def test_a_film_strip_puts_each_field_below_its_image():
    images = _images(6, (8, 8)).reshape(3, 2, 8, 8, 1)
    fields = np.random.default_rng(1).uniform(size=(3, 2, 4, 2, 1)).astype(np.float32)
    picture = viz.film(images, fields, ["a", "b", "c"])
    top = picture.shape[0] - 4 * (64 + 4)
    for step in range(3):
        for n in range(2):
            y, x = top + 2 * n * 68, 4 + step * 68
            assert np.array_equal(picture[y : y + 64 : 8, x : x + 64 : 8], viz.colour(images)[step, n])
            assert np.array_equal(picture[y + 68 : y + 132 : 16, x : x + 64 : 32], viz.heat(fields)[step, n])


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_an_animation_holds_all_frames_and_loops(tmp_path, suffix):
    images = _images(4, (8, 8)).reshape(4, 1, 8, 8, 1)
    fields = np.linspace(1, 0, 4, dtype=np.float32).reshape(4, 1, 1, 1, 1)
    frames = viz.frames(images, fields)
    path = tmp_path / f"run.{suffix}"
    viz.save_animation(path, frames)
    with Pillow.open(path) as read:
        assert read.info["loop"] == 0
        got = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(read)]
    assert len(got) == 4
    worst = max(np.abs(a.astype(int) - b).max() for a, b in zip(got, frames, strict=True))
    assert worst <= (8 if suffix == "gif" else 0)


def test_what_stays_the_same_in_an_animation_keeps_its_colour(tmp_path):
    rng = np.random.default_rng(0)
    changing = rng.integers(0, 256, (4, 16, 64, 3), dtype=np.uint8)
    changing[0] //= 8  # dark at first: a palette of that frame's own would have hardly any bright colours
    bar = viz.heat(np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 64, 1))[0].repeat(8, 0)
    frames = np.concatenate([changing, np.broadcast_to(bar, (4, *bar.shape))], axis=1)
    viz.save_animation(tmp_path / "a.gif", frames)
    with Pillow.open(tmp_path / "a.gif") as read:
        bars = [np.asarray(frame.convert("RGB"))[16:] for frame in ImageSequence.Iterator(read)]
    assert len(bars) == 4
    assert all((other == bars[0]).all() for other in bars)


def test_a_png_holds_the_picture_bit_for_bit(tmp_path):
    for channels in (1, 3):
        image = viz.to_uint8(_images(channels=channels))[0]
        viz.save_png(tmp_path / f"{channels}.png", image)
        with Pillow.open(tmp_path / f"{channels}.png") as read:
            assert np.array_equal(np.asarray(read).reshape(image.shape), image)
    with pytest.raises(ValueError, match="expected a uint8 picture"):
        viz.save_png(tmp_path / "float.png", _images()[0])
    with pytest.raises(ValueError, match="expected frames, and a path in"):
        viz.save_animation(tmp_path / "a.mp4", np.zeros((1, 4, 4, 3), np.uint8))


def test_what_exists_is_kept_unless_overwriting_was_asked_for(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match=r"nothing exists yet, got .*a\.json"):
        files.write_json(path, {"a": 2})
    assert "1" in path.read_text()
    files.write_json(path, {"a": 2}, overwrite=True)
    assert "2" in path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"a": float("nan")}, overwrite=True)
    assert os.listdir(path.parent) == ["a.json"]


def test_a_place_that_cannot_be_written_to_is_found_out_before_the_work(tmp_path):
    files.check_writable(tmp_path / "new" / "a.png")
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="could not write"):
        files.check_writable(tmp_path / "file" / "a.png")


def test_a_write_that_fails_leaves_the_old_file_and_no_part_of_the_new(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def interrupted():
        with files.writing(path, overwrite=True) as stream:
            stream.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_is_a_clear_error(tmp_path):
    # a limit on the size of files makes the operating system itself refuse the bytes, as a full disk does
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
    try:
        with pytest.raises(OSError, match=r"could not write .*noise.png.* no partial file is left") as caught:
            viz.save_png(tmp_path / "noise.png", viz.to_uint8(_images(1, (200, 200))[0]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == []
