"""Image files of anyone: which formats are read, how large they may be, and what is odd about good ones."""

import builtins
import io
import os
import subprocess
import threading
import time
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from asyncpatch_jax.data import decoding
from asyncpatch_jax.data.decoding import MAX_PIXELS, MOST_PIXELS, decoded
from asyncpatch_jax.data.folders import scan_folder
from asyncpatch_jax.data.images import read_image
from tests.image_files import claimed, damaged, exif, exif_chunk, png, stored, tiff

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
# what Image.transpose does for each orientation, in NumPy
TURNED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}


@pytest.fixture
def no_programs(monkeypatch):
    """Whoever starts a program fails."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"a program was started: {args}")

    for module, name in ((subprocess, "Popen"), (os, "system"), (os, "posix_spawn"), (os, "fork")):
        monkeypatch.setattr(module, name, refuse)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=damaged(), channels=st.sampled_from([1, 3, 4]), size=st.none() | st.integers(1, 9))
def test_any_file_is_an_image_or_an_error(content, channels, size, no_programs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = read_image(io.BytesIO(content), size, channels, max_pixels=10**6)
        except ValueError as problem:
            said = str(problem)
            assert said.startswith("expected a readable image file, got an image in memory (")
            return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == channels
    assert size is None or pixels.shape[:2] == (size, size)
    assert pixels.size <= channels * 10**6


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        (
            "cat.png",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
            "PostScript; read are",
        ),
        ("cat.jpg", b"\xc5\xd0\xd3\xc6" + bytes(30), "PostScript"),
        ("cat.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
        ("cat.png", b"%PDF-1.7\n", "PDF"),
        ("cat.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        ("cat.psd", b"8BPS\0\1" + bytes(40), "Photoshop"),
        ("cat.jxl", b"\xff\x0a" + bytes(40), "JPEG XL"),
        ("cat.png", b"\0\0\0\x18ftypisom" + bytes(40), "a video"),
        ("cat.png", b"cat", "something else, or with a header that is damaged or unknown; read are AVIF, BMP"),
        ("cat.png", b"", "something else"),
        ("cat.tif", tiff(np.zeros((2, 2), int), 16, reduced=True), "a small copy of another one"),
    ],
)
def test_other_formats_are_named_and_start_nothing(tmp_path, no_programs, name, content, what):
    (tmp_path / "pets").mkdir()
    file = tmp_path / "pets" / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"expected a readable image file, got {file} .*{what}"):
        read_image(file)
    with pytest.raises(ValueError, match=f"pets/{name} .*{what}"):
        scan_folder(tmp_path)


def test_heic_says_which_package_reads_it_and_is_read_with_it(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = tmp_path / "photo.heic"
    even = np.full((16, 24, 3), (200, 40, 90), np.uint8)
    pillow_heif.from_pillow(Image.fromarray(even)).save(file, quality=100)
    read = read_image(file)
    assert read.shape == even.shape
    assert np.abs(read.astype(int) - even).max() < 6
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pillow_heif":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"photo\.heic \(HEIC, which the package pillow-heif reads: pip install"):
        read_image(file)


@pytest.mark.filterwarnings("error")  # Pillow warns of many pixels, and beyond twice as many has an error of its own
@pytest.mark.parametrize("side", [13_300, 60_000])  # 177 megapixels, 3.6 gigapixels
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_bomb_is_refused_by_its_header(tmp_path, suffix, side):
    file = tmp_path / f"bomb.{suffix}"
    if suffix == "png":
        file.write_bytes(claimed(side, side, rows=bytes(1000)))
    else:
        small = bytearray(stored(Image.new("L", (8, 8)), format="jpeg").getvalue())
        at = small.index(b"\xff\xc0") + 5
        small[at : at + 4] = side.to_bytes(2, "big") * 2
        file.write_bytes(small)
    begun = time.perf_counter()
    for read in (lambda: read_image(file), lambda: scan_folder(tmp_path)):
        with pytest.raises(
            ValueError, match=rf"bomb\.{suffix} \({side}x{side} pixels, more than max_pixels = 89,478,485"
        ):
            read()
    assert time.perf_counter() - begun < 5


def test_the_bound_on_pixels_is_a_setting(tmp_path):
    Image.new("L", (5, 4)).save(tmp_path / "a.png")
    for read, path in ((read_image, tmp_path / "a.png"), (scan_folder, tmp_path)):
        read(path, max_pixels=20)
        with pytest.raises(ValueError, match=r"a\.png \(5x4 pixels, more than max_pixels = 19"):
            read(path, max_pixels=19)
    for wrong in (0, -1, MOST_PIXELS + 1):
        with pytest.raises(ValueError, match=f"expected max_pixels from 1 to 178,956,970, got {wrong}"):
            read_image(tmp_path / "a.png", max_pixels=wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of Pillow's, about bombs
        with pytest.raises(ValueError, match=r"expected a readable image file, got .*(truncated|broken)"):
            read_image(io.BytesIO(claimed(MAX_PIXELS // 8, 8, rows=b"\0")))


def test_images_are_decoded_within_a_budget_of_memory(monkeypatch):
    """No more at once than fit; one that is larger than all of it alone; and everything is read in the end."""
    cost = decoding._BYTES_PER_PIXEL
    monkeypatch.setattr(decoding, "_BUDGET", decoding._Budget(100 * cost))
    sides, held, most, lock = [(6, 6), (5, 8), (7, 7), (20, 20), (9, 5)] * 4, [], [], threading.Lock()
    files = [stored(Image.new("L", side)) for side in sides]

    def read(file):
        with decoded(file) as image:
            with lock:
                held.append(image.width * image.height)
                most.append(list(held))
            time.sleep(0.002)
            with lock:
                held.remove(image.width * image.height)

    threads = [threading.Thread(target=read, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(most) == len(files)
    assert all(sum(one) <= 100 or one == [400] for one in most)
    assert max(map(len, most)) > 1
    assert decoding._BUDGET.used == 0


def test_a_damaged_image_gives_its_memory_back(monkeypatch):
    monkeypatch.setattr(decoding, "_BUDGET", decoding._Budget(100))
    whole = stored(Image.fromarray(PIXELS)).getvalue()
    for _ in range(3):
        with pytest.raises(ValueError, match="expected a readable"):
            read_image(io.BytesIO(whole[:-40]))
    assert decoding._BUDGET.used == 0


@pytest.mark.filterwarnings("ignore:Tag data larger|Corrupt EXIF")
@pytest.mark.parametrize("orientation", [None, *TURNED, 0, 9, 4711])
def test_photos_are_turned_whatever_else_their_camera_wrote(orientation):
    turn, image = TURNED.get(orientation, TURNED[1]), Image.fromarray(PIXELS)
    plain = read_image(stored(image, format="jpeg"))
    for broken in ((), ("zero",), ("nan",), ("beyond",), ("zero", "nan", "ifd")):
        made = exif(orientation, broken)
        file = io.BytesIO(png(PIXELS.astype(int), chunks=[exif_chunk(made)]))
        np.testing.assert_array_equal(read_image(file), turn(PIXELS))
        file = stored(image, format="webp", lossless=True, exif=b"Exif\0\0" + made)
        np.testing.assert_array_equal(read_image(file), turn(PIXELS))
        file = stored(image, format="jpeg", exif=b"Exif\0\0" + made)
        np.testing.assert_array_equal(read_image(file), turn(plain))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_tiffs_are_turned_once(orientation):
    file = stored(Image.fromarray(PIXELS), format="tiff", tiffinfo={274: orientation})
    np.testing.assert_array_equal(read_image(file), TURNED[orientation](PIXELS))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("noise", [b"", b"II*\0", b"Exif", b"MM\0*\xff\xff\xff\xff", bytes(range(64))], ids=range(5))
def test_exif_that_nobody_can_read_leaves_a_photo_as_it_is(noise):
    file = stored(Image.fromarray(PIXELS), format="webp", lossless=True, exif=b"Exif\0\0" + noise)
    np.testing.assert_array_equal(read_image(file), PIXELS)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_transparent_at_every_depth(depth):
    top = 2**depth - 1
    values = np.unique([0, 1, top // 2, top])[None]
    grey = np.round(values * (255 / top)).astype(np.uint8)
    for clear in values[0]:
        file = png(values, depth, clear=clear)
        read = read_image(io.BytesIO(file), channels=4)
        np.testing.assert_array_equal(read[..., 0], grey)
        np.testing.assert_array_equal(read[..., 3], np.where(values == clear, 0, 255))
        shown = read_image(io.BytesIO(file), channels=1)[..., 0]
        np.testing.assert_array_equal(shown, np.where(values == clear, 255, grey))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_transparent_at_every_depth(depth):
    scale = 257 if depth == 16 else 1
    values = np.array([[[0, 0, 0], [255, 0, 127], [255, 0, 128]]]) * scale
    read = read_image(io.BytesIO(png(values, depth, clear=values[0, 1])), channels=4)
    np.testing.assert_array_equal(read[..., 3], [[255, 0, 255]])
    np.testing.assert_array_equal(read[..., :3], values // scale)


@pytest.mark.parametrize(
    ("bits", "top", "white_is_zero"),
    [(12, 4095, False), (16, 65535, False), (16, 65535, True), (32, 1.0, False), (32, 1.0, True)],
)
def test_greys_of_tiffs_are_scaled_by_their_own_white(bits, top, white_is_zero):
    share = np.array([[0, 0.2, 0.6, 1.0, 1.0]])  # 5 values: a row that does not end with a byte at 12 bits
    values = share * top if bits == 32 else np.round(share * top).astype(int)
    read = read_image(io.BytesIO(tiff(values, bits, white_is_zero=white_is_zero)), channels=1)[..., 0]
    np.testing.assert_array_equal(read, np.round(255 * (1 - share if white_is_zero else share)))


def test_a_pipe_is_read_too(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    content = stored(Image.fromarray(PIXELS)).getvalue()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    np.testing.assert_array_equal(read_image(tmp_path / "pipe"), PIXELS)
    writer.join(5)


def test_names_that_no_terminal_shows_are_named(tmp_path):
    file = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    with pytest.raises(ValueError, match=r"\\udcff\.png \(no such file\)") as error:
        read_image(file)
    str(error.value).encode()
