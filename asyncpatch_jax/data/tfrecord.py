"""Random access to TFRecord files without TensorFlow."""

import os
from collections.abc import Sequence

import numpy as np


def _spans(path: str, count: int) -> list[tuple[int, int]]:
    """(offset, length) of the data of each of a file's `count` records.

    A record is its length (8 bytes), a checksum of that (4), the data and a checksum of the data (4).
    """
    spans, end = [], 0
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        while end < size:
            start = end + 12
            length = int.from_bytes(os.pread(file, 8, end), "little")
            spans.append((start, length))
            end = start + length + 4
    finally:
        os.close(file)
    if end != size or len(spans) != count:
        raise ValueError(f"expected {count} whole records, got a damaged or truncated file: {path}")
    return spans


class TFRecords:
    """Records of some files as bytes, by index: a pass over their lengths once, then one read per record.

    Checksums are not verified. Files must be local.

    Raises:
        ValueError: a file does not consist of the expected number of whole records.
    """

    def __init__(self, files: Sequence[tuple[str, int, int, int]]):
        """`files`: path, number of records in it, how many of them to skip, how many to take after that."""
        self._paths = [path for path, *_ in files]
        parts = [_spans(path, count)[skip : skip + take] for path, count, skip, take in files]
        self._spans = np.array([span for part in parts for span in part], np.int64).reshape(-1, 2)
        self._file = np.repeat(np.arange(len(parts)), [len(part) for part in parts])

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> bytes:
        offset, length = map(int, self._spans[index])
        # opened anew for each record: a large set has more files than a process may hold open
        file = os.open(self._paths[self._file[index]], os.O_RDONLY)
        try:
            return os.pread(file, length, offset)
        finally:
            os.close(file)
