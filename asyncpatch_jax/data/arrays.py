"""Images in one array of an `.npz`, as ADM's evaluator reads them: `arr_0`, uint8 [n, h, w, 3]."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

NAME = "arr_0"
_HEADER = 30  # bytes of a zip member's own header, before its name


def read_images(path: str | Path) -> UInt8[np.ndarray, "n h w 3"]:
    """The images of a file; grey ones in grey colours.

    An array that is not compressed, such as ADM's reference batches of gigabytes, stays on the disk and is read where
    it is looked at; a compressed one is read into memory. Nothing is unpickled.

    Raises:
        ValueError: no such file, or one without images of 8 bits in its `arr_0`: names it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"expected an .npz with {NAME} in {path}, got no file")
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{NAME}.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                images = _mapped(path, member)
            else:
                with archive.open(member) as stream:
                    images = np.lib.format.read_array(stream, allow_pickle=False)
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"expected an .npz with images as {NAME} in {path}, got something else: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(f"expected uint8 [n, h, w, 3] as {NAME} in {path}, got {images.dtype} {list(images.shape)}")
    return np.broadcast_to(images, (*images.shape[:3], 3))


def _mapped(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    with path.open("rb") as stream:
        stream.seek(member.header_offset)
        header = stream.read(_HEADER)
        # its lengths of name and extra, which need not be those that the archive's directory says
        stream.seek(sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28)), 1)
        version = np.lib.format.read_magic(stream)
        # NumPy writes these two for plain types
        read: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream)
        if dtype.hasobject:
            raise ValueError("Python's objects, which would have to be unpickled")
        return np.memmap(path, dtype, "r", stream.tell(), shape, order="F" if fortran else "C")
