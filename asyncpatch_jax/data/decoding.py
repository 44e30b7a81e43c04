"""The one way from an image file to an image: formats by name, a bound on pixels and on the memory of decoding."""

import functools
import io
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, cast

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

# what images are kept in. Pillow knows 30 more: PostScript, for which it starts Ghostscript, what games use, ...
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 2**28 // 3
"""Of an image, unless told otherwise: a quarter of a GiB as RGB, from where on Pillow warns of decompression bombs."""
MOST_PIXELS = 2 * MAX_PIXELS
"""What can be asked for: from where on Pillow takes an image for an attack."""

ImageFile = str | os.PathLike[str] | io.BufferedIOBase

# of what people take for images: where the bytes are, which they are, what it is
_OTHERS = (
    (0, (b"%!PS", b"\xc5\xd0\xd3\xc6"), "PostScript"),
    (0, (b"%PDF",), "PDF"),
    (0, (b"<svg", b"<?xm"), "SVG or another XML"),
    (0, (b"8BPS",), "Photoshop"),
    (0, (b"\xff\x0a", b"\0\0\0\x0cJXL "), "JPEG XL"),
    (4, (b"ftypqt", b"ftypisom", b"ftypmp4", b"ftypM4V"), "a video"),
)
_HEIC = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# what reading takes at most, measured for each format: a photo takes 10, transparency in WebP 24
_BYTES_PER_PIXEL = 24
_MEMORY = 2**31


class _Budget:
    """Threads share so many bytes; who needs more than are free waits, and who needs more than all goes alone."""

    def __init__(self, total: int):
        self.total, self.used = total, 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self.used or self.used + amount <= self.total)
            self.used += amount
        try:
            yield
        finally:
            with self._changed:
                self.used -= amount
                self._changed.notify_all()


_BUDGET = _Budget(_MEMORY)


def check_max_pixels(max_pixels: int) -> None:
    """Raise ValueError unless `max_pixels` is a bound that can be kept."""
    if not 1 <= max_pixels <= MOST_PIXELS:
        raise ValueError(f"expected max_pixels from 1 to {MOST_PIXELS:,}, got {max_pixels}")


@contextmanager
def decoded(file: ImageFile, max_pixels: int = MAX_PIXELS, *, rough: bool = False) -> Iterator[Image.Image]:
    """The first picture of an image file in its own mode, its rotation applied; for as long as the block lasts.

    Args:
        rough: read all of the file, but of a JPEG compute an eighth of the pixels.

    Raises:
        ValueError: no such file, none of `FORMATS` (nor HEIC, where pillow-heif is installed), damaged, or more than
            `max_pixels`; names the file and the reason.
    """
    check_max_pixels(max_pixels)
    with ExitStack() as held:
        # decoders raise whatever their library raises (OSError, SyntaxError, struct.error, ...), all of it on bad bytes
        with faults_of(file, Exception):
            image = _loaded(held.enter_context(_stream(file)), max_pixels, rough, held)
        yield image


def shape_of(file: ImageFile) -> tuple[int, int]:
    """Height and width of the upright image in a file, of its header alone.

    Raises:
        ValueError: as `decoded`, of what a header shows.
    """
    with faults_of(file, Exception), _stream(file) as stream:
        image = _opened(stream)
        turned = _orientation(image) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def faults_of(file: ImageFile, *kinds: type[Exception]) -> Iterator[None]:
    """What is raised within the block is the fault of a file: a ValueError that names it."""
    try:
        yield
    except kinds as error:
        raise ValueError(f"expected a readable image file, got {shown(file)} ({reason(error)})") from error


def _loaded(stream: io.BufferedIOBase, max_pixels: int, rough: bool, held: ExitStack) -> Image.Image:
    """An upright image, and its memory taken from the budget for as long as `held` lasts."""
    image = _opened(stream)
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"{image.width}x{image.height} pixels, more than max_pixels = {max_pixels:,}; raise it for files that you "
            "trust"
        )
    if rough and image.format in ("JPEG", "MPO"):
        image.draft(image.mode, (1, 1))
    held.enter_context(_BUDGET.take(image.width * image.height * _BYTES_PER_PIXEL))
    _mend_transparency(image)
    image.load()
    image = _mend_greys(image)
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def shown(file: ImageFile) -> str:
    """How messages name a file: all of its path, in characters that can be printed whatever it is called."""
    name = os.fspath(file) if isinstance(file, str | os.PathLike) else getattr(file, "name", "an image in memory")
    return str(name).encode(errors="backslashreplace").decode()


@contextmanager
def _stream(file: ImageFile) -> Iterator[io.BufferedIOBase]:
    if not isinstance(file, str | os.PathLike):
        yield file
        return
    with open(file, "rb") as stream:
        yield stream if stream.seekable() else io.BytesIO(stream.read())  # a pipe


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _opened(stream: io.BufferedIOBase) -> Image.Image:
    """An image of which the header was read alone."""
    stream.seek(0)
    head = stream.read(16)
    image = _recognised(stream, head)
    if image is None:
        if head[4:12] in _HEIC:
            return _heic(stream)
        kinds = (what for at, starts, what in _OTHERS if head[at:].startswith(starts))
        what = next(kinds, "something else, or with a header that is damaged or unknown")
        raise ValueError(f"{what}; read are {', '.join(FORMATS)}")
    # the lowest bit of NewSubfileType: a copy of lower resolution of another picture in the file
    if isinstance(image, TiffImageFile) and _whole(image.tag_v2.get(254)) & 1:
        raise ValueError("its first picture is a small copy of another one, as in cameras' raw files; convert it")
    return image


def _recognised(stream: io.BufferedIOBase, head: bytes) -> Image.Image | None:
    """`Image.open`, but that leaves to us what to say of many pixels: it warns of them, whatever becomes of the image.

    Python's filters of warnings are no help: they are of all threads, and of all that uses Pillow.
    """
    for name in _formats():
        factory, accept = Image.OPEN[name]
        if accept is None or accept(head) is True:
            stream.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # as Pillow takes "another format"
                return factory(cast(IO[bytes], stream), "")
    return None


def _heic(stream: io.BufferedIOBase) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ValueError("HEIC, which the package pillow-heif reads: pip install pillow-heif") from None
    stream.seek(0)
    return HeifImageFile(stream)


def _mend_transparency(image: Image.Image) -> None:
    """PNG names a transparent value at the depth of the file; Pillow scales the pixels to 8 bit, and not this value."""
    value, tile = image.info.get("transparency"), getattr(image, "tile", None)
    depth = tile[0][3] if image.format == "PNG" and tile else None
    if isinstance(value, int) and depth in ("L;2", "L;4"):
        image.info["transparency"] = value * {"L;2": 85, "L;4": 17}[depth]
    elif isinstance(value, tuple) and depth == "RGB;16B":
        image.info["transparency"] = tuple(one >> 8 for one in value)


def _mend_greys(image: Image.Image) -> Image.Image:
    """Scale and turn the greys of a TIFF that Pillow leaves as they stand: of 12 bits in 16, and where 0 is white."""
    if not isinstance(image, TiffImageFile) or image.mode not in ("I;16", "I;16B", "F"):
        return image
    stored, white = np.asarray(image), 1.0 if image.mode == "F" else 65535
    values = stored
    if image.tag_v2.get(ExifTags.Base.BitsPerSample) == (12,):
        values = ((values.astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16)
    if image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0:
        values = (white - values).astype(values.dtype)
    return image if values is stored else Image.fromarray(values)


def _orientation(image: Image.Image) -> int:
    try:
        return _whole(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # nothing in a photo depends on the rest of what its camera wrote
        return 1


def _whole(value: Any) -> int:
    """A value of a tag as the number that it should be; 0 for anything else."""
    return value if isinstance(value, int) else 0


def reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
