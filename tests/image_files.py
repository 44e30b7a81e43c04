"""Image files for tests: stored ones, those that Pillow does not write, and damaged ones."""

import io
import struct
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image


def stored(image, **options):
    """A file in memory that Pillow wrote."""
    file = io.BytesIO()
    image.save(file, **{"format": "png", **options})
    file.seek(0)
    return file


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, depth=8, clear=None, chunks=()):
    """A PNG of whole numbers [h, w] or [h, w, 3], with `depth` bits for each and one value or colour transparent."""
    bits = ["".join(f"{value:0{depth}b}" for value in row.ravel()) for row in pixels]
    rows = b"".join(b"\0" + int(row + "0" * (-len(row) % 8), 2).to_bytes(-(-len(row) // 8), "big") for row in bits)
    return claimed(pixels.shape[1], pixels.shape[0], depth, 0 if pixels.ndim == 2 else 2, rows, clear, chunks)


def claimed(width, height, depth=8, colour=0, rows=b"", clear=None, chunks=()):
    """A PNG whose header says so, whatever is in it."""
    parts = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *chunks]
    if clear is not None:
        parts.append(_chunk(b"tRNS", b"".join(struct.pack(">H", value) for value in np.ravel(clear))))
    return b"".join([b"\x89PNG\r\n\x1a\n", *parts, _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")])


def exif_chunk(exif):
    """EXIF as PNG holds it."""
    return _chunk(b"eXIf", exif)


def tiff(values, bits, *, white_is_zero=False, reduced=False):
    """A little-endian TIFF of greys [h, w]: 12 or 16 bits, or 32 for floats."""
    height, width = values.shape
    if bits == 12:
        rows = ["".join(f"{value:012b}" for value in row) for row in values]
        data = b"".join(int(row + "0" * (-len(row) % 8), 2).to_bytes(-(-len(row) // 8), "big") for row in rows)
    else:
        data = values.astype("<f4" if bits == 32 else "<u2").tobytes()
    tags = {
        254: int(reduced),
        256: width,
        257: height,
        258: bits,
        259: 1,  # not compressed
        262: int(not white_is_zero),
        273: 0,  # where the data is
        277: 1,
        278: height,
        279: len(data),
        339: 3 if bits == 32 else 1,
    }
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def exif(orientation=None, broken=()):
    """EXIF with an orientation and, of cameras that write such, 0/0 rationals, NaN, and more values than there are."""
    entries = [] if orientation is None else [struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)]
    end = 8 + 2 + 12 * (len(entries) + len(broken)) + 4
    data = b""
    for name in broken:
        if name == "zero":  # XResolution = 0/0
            entries.append(struct.pack("<HHII", 0x011A, 5, 1, end + len(data)))
            data += struct.pack("<II", 0, 0)
        elif name == "nan":  # a double
            entries.append(struct.pack("<HHII", 0x8290, 12, 1, end + len(data)))
            data += struct.pack("<d", float("nan"))
        elif name == "beyond":  # of a length that the file does not have
            entries.append(struct.pack("<HHII", 0x010F, 2, 4000, end + len(data)))
        elif name == "ifd":  # a pointer to nowhere
            entries.append(struct.pack("<HHII", 0x8769, 4, 1, 2**31))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + data


def _whole_files():
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8))
    files = [stored(small, format=name).getvalue() for name in ("png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm")]
    files += [stored(small, format="jpeg2000").getvalue(), stored(small, format="avif").getvalue()]
    files.append(stored(small, format="tiff", compression="tiff_lzw").getvalue())
    files.append(stored(small, format="jpeg", exif=b"Exif\0\0" + exif(6, ("zero", "nan", "beyond"))).getvalue())
    grey = np.random.default_rng(1).integers(0, 4096, (5, 7))
    files += [png(grey, 16, clear=7), png(grey % 4, 2, clear=1), tiff(grey, 12), tiff(grey, 16, white_is_zero=True)]
    files.append(stored(small.convert("RGBA").convert("P"), transparency=3).getvalue())
    hole = Image.fromarray(np.eye(9, 12, dtype=np.uint8) * 255)
    files += [stored(mask).getvalue() for mask in (hole, hole.convert("1"), Image.merge("LA", (hole, hole)))]
    files += [stored(hole, format="jpeg").getvalue(), stored(Image.fromarray(np.eye(9, 12, dtype=np.uint8))).getvalue()]
    files.append(stored(small, format="gif", save_all=True, append_images=[small.rotate(90)]).getvalue())
    return files


@st.composite
def damaged(draw):
    """A whole file of any format, a part of one, or one of which some bytes are others."""
    content = bytearray(draw(st.sampled_from(_WHOLE)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content) - 1) | st.integers(0, 60))
        content[at : at + 1] = draw(st.binary(min_size=1, max_size=1) | st.binary(max_size=3) | st.just(b"\xff" * 4))
    whole = draw(st.sampled_from([True, True, True, False]))
    return bytes(content if whole else content[: draw(st.integers(0, len(content)))])


_WHOLE = _whole_files()
