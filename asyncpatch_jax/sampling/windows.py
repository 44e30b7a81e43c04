"""Which parts of a photo a network is shown, in which order, so that it fills holes of any size and number.

A network makes images of one size; photos have any. A window is a part of the photo that is scaled to that size. Each
hole is filled in a window that is so many times as large as itself (`room`), of the photo's own scale or larger; one
from farther away makes the hole softer than the photo. Only what is too long for any window that lies within the photo
takes several, which overlap and keep what their neighbours made before. Asked for detail, finer and finer windows
change what the coarse one made once more, in part (`REFINE`). That is for networks that know what photos look like from
near: one that has only seen whole digits writes digits into a close look. Everything here is geometry in NumPy.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

Box = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right are past the end
Size = tuple[int, int]

REFINE = 0.3  # of the way to noise: finer windows draw details anew, and keep what is where
_STEP = 2.0  # between the scales of details
_FIT = 1.1  # between the scales of which a hole takes the first that it fits into


class Window(NamedTuple):
    """One look of the network at a part of a photo.

    place: its rows and columns in the photo.
    scale: pixels of the photo to one of the network's.
    strength: how much each of its pixels is to change, 0 ... 1; 0 is known.
    write: the pixels that are taken from the result; each of them has a strength above 0.
    """

    place: tuple[slice, slice]
    scale: float
    strength: Float[np.ndarray, "h w 1"]
    write: Bool[np.ndarray, "h w 1"]


def whole(strength: Float[np.ndarray, "H W 1"], size: Size) -> Window:
    """All of a photo in one look, whatever its shape."""
    height, width = strength.shape[:2]
    scale = max(height / size[0], width / size[1])
    return Window((slice(0, height), slice(0, width)), scale, strength, strength > 0)


def starts(length: int, window: int, overlap: int) -> list[int]:
    """Where windows start along an axis, each sharing `overlap` pixels or more with the one before.

    They are as few as possible, and spread evenly.

    Raises:
        ValueError: the window is longer than the axis, or the overlap not below the window.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"expected an overlap in 0 ... {window - 1} (below the window), got {overlap}")
    if window > length:
        raise ValueError(f"expected a canvas of {window} pixels or more (the window) on each side, got {length}")
    count = 1 + -(-(length - window) // (window - overlap))
    return [round(i * (length - window) / max(count - 1, 1)) for i in range(count)]


def plan(
    strength: Float[np.ndarray, "H W 1"],
    size: Size,
    *,
    overlap: int,
    room: float = 2.0,
    detail: float | None = None,
    coarse: bool = True,
) -> list[Window]:
    """The windows that fill what has a strength above 0, in their order.

    Every such pixel is written by one window; with `detail` by one of each scale, from coarse to fine. Of the windows
    of a scale, the next is always the one of which most is known.

    Args:
        strength: how much each pixel of the photo may change, 0 ... 1.
        size: height and width of the network's images.
        overlap: pixels of the network's that a window shows beside what it fills, and shares with its neighbours.
        room: how many times as large as a hole its window is on each side, if the photo is large enough.
        detail: go on to finer scales, until a pixel of the network's is so many of the photo's.
        coarse: look from farther away at holes that are too large for a window of the photo's own scale; without, they
            take several.

    Raises:
        ValueError: nothing to fill, strengths out of range, a detail below 1, or as `starts`.
    """
    if not ((strength >= 0) & (strength <= 1)).all():
        raise ValueError(f"expected strengths in 0 ... 1, got {strength.min()} to {strength.max()}")
    if not strength.any():
        raise ValueError("expected something to fill, got strengths of 0 alone")
    if detail is not None and not 1 <= detail < math.inf:
        raise ValueError(f"expected a detail of 1 pixel or more, got {detail}")
    if not 0 <= overlap < min(size):
        raise ValueError(f"expected an overlap in 0 ... {min(size) - 1} (below the window), got {overlap}")
    if not 1 <= room < math.inf:
        raise ValueError(f"expected a room of 1 or more times the hole, got {room}")
    shape = strength.shape[:2]
    most = min(side / window for side, window in zip(shape, size, strict=True))
    finest = min(detail or 1.0, most)
    scales = _ladder(finest, most, _STEP if detail else _FIT) if coarse else [finest]
    owner, boxes = _holes(strength[..., 0] > 0, shape, size, overlap, room, finest)
    first = [_first(box, shape, size, room, scales) for box in boxes]
    windows: list[Window] = []
    canvas = _Canvas(strength, owner, np.zeros(shape, bool), np.zeros(shape, bool))
    for level in reversed(range(max(first) + 1)):
        active = [number for number, own in enumerate(first, 1) if own == level or (own > level and detail is not None)]
        canvas.pending[...] = np.isin(owner, active)
        for number in active:
            places = _places(boxes[number - 1], shape, size, overlap, scales[level])
            windows += _visit(canvas, number, places, scales[level])
    return windows


def rounds(windows: Sequence[Window]) -> list[list[int]]:
    """Windows, by number, that can be made at the same time: none sees what another one of its round writes."""
    boxes = np.array([_box(window.place) for window in windows])
    depth = np.zeros(len(windows), int)
    for i in range(1, len(windows)):
        meets = _meets(boxes[:i], boxes[i])
        depth[i] = depth[:i][meets].max(initial=-1) + 1
    return [np.flatnonzero(depth == d).tolist() for d in range(depth.max() + 1)]


def _ladder(fine: float, most: float, step: float) -> list[float]:
    """Scales from the finest to the coarsest, each at most `step` times the one before."""
    count = math.ceil(math.log(most / fine, step) - 1e-9)
    return [fine * (most / fine) ** (k / count) for k in range(count + 1)] if count > 0 else [fine]


def _scaled(shape: Size, size: Size, overlap: int, scale: float) -> tuple[Size, int]:
    """A window and its overlap in the photo's pixels."""
    rows, columns = (min(side, max(1, round(window * scale))) for side, window in zip(shape, size, strict=True))
    return (rows, columns), min(round(overlap * scale), rows - 1, columns - 1)


def _spans(boxes: Int[np.ndarray, "n 4"], shape: Size, overlap: int) -> Int[np.ndarray, "n 4"]:
    """Boxes with what is to be seen around them, as far as the photo goes."""
    low, high = np.maximum(boxes - overlap, 0), boxes + overlap
    return np.stack([low[:, 0], np.minimum(high[:, 1], shape[0]), low[:, 2], np.minimum(high[:, 3], shape[1])], axis=1)


def _fits(boxes: Int[np.ndarray, "n 4"], shape: Size, size: Size, room: float, scale: float) -> Bool[np.ndarray, "n"]:
    window, _ = _scaled(shape, size, 0, scale)
    rows, columns = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    return (rows * room <= window[0]) & (columns * room <= window[1])


def _first(box: Box, shape: Size, size: Size, room: float, scales: list[float]) -> int:
    """The finest scale at which a hole fits into a window; the coarsest if none is."""
    fitting = [_fits(np.array([box]), shape, size, room, scale)[0] for scale in scales]
    return fitting.index(True) if True in fitting else len(scales) - 1


def _holes(
    hole: Bool[np.ndarray, "H W"], shape: Size, size: Size, overlap: int, room: float, scale: float
) -> tuple[Int[np.ndarray, "H W"], list[Box]]:
    """The number of each pixel's hole, from 1 on, and their boxes: parts that fit into a window together are one."""
    _, margin = _scaled(shape, size, overlap, scale)
    near = ndimage.maximum_filter(hole, size=margin + 1)
    parts = np.where(hole, ndimage.label(near, np.ones((3, 3)))[0], 0)
    found = [(part, piece) for part, piece in enumerate(ndimage.find_objects(parts), 1) if piece is not None]
    left = np.array([part for part, _ in found])
    boxes = np.array([_box(piece) for _, piece in found])
    new = np.zeros(parts.max() + 1, int)
    merged: list[Box] = []
    while len(left):
        box, members = boxes[0], left[:1]
        left, boxes = left[1:], boxes[1:]
        while len(left):
            union = np.stack([*(f(boxes[:, i], box[i]) for i, f in enumerate((np.minimum, np.maximum) * 2))], axis=1)
            area = (union[:, 1] - union[:, 0]) * (union[:, 3] - union[:, 2])
            area = np.where(_fits(union, shape, size, room, scale), area, np.iinfo(int).max)
            nearest = int(area.argmin())
            if area[nearest] == np.iinfo(int).max:
                break
            box, members = union[nearest], np.append(members, left[nearest])
            left, boxes = np.delete(left, nearest), np.delete(boxes, nearest, axis=0)
        top, bottom, left_edge, right = (int(edge) for edge in box)
        merged.append((top, bottom, left_edge, right))
        new[members] = len(merged)
    return new[parts], merged


def _places(box: Box, shape: Size, size: Size, overlap: int, scale: float) -> list[tuple[slice, slice]]:
    """The windows of a scale over a hole's box: one in its middle, or a grid."""
    window, margin = _scaled(shape, size, overlap, scale)
    (span,) = _spans(np.array([box]), shape, margin)
    axes = []
    for axis in (0, 1):
        low, high, length = int(span[2 * axis]), int(span[2 * axis + 1]), window[axis]
        if high - low <= length:
            middle = (box[2 * axis] + box[2 * axis + 1] - length) // 2
            axes.append([min(max(middle, 0), shape[axis] - length)])
        else:
            axes.append([low + start for start in starts(high - low, length, margin)])
    return [(slice(y, y + window[0]), slice(x, x + window[1])) for y, x in product(*axes)]


class _Canvas(NamedTuple):
    """What has been written so far; the last two change as windows are planned.

    owner: the number of each pixel's hole, from 1 on; 0 is known from the beginning.
    filled: written, at whatever scale.
    pending: still to be written at the present scale.
    """

    strength: Float[np.ndarray, "H W 1"]
    owner: Int[np.ndarray, "H W"]
    filled: Bool[np.ndarray, "H W"]
    pending: Bool[np.ndarray, "H W"]

    def unknown(self, place: tuple[slice, slice]) -> Bool[np.ndarray, "h w"]:
        return self.pending[place] | ((self.owner[place] > 0) & ~self.filled[place])


def _visit(canvas: _Canvas, number: int, places: list[tuple[slice, slice]], scale: float) -> list[Window]:
    """The places that have something of a hole to write, as windows, always on where most is known."""

    def counts(place: tuple[slice, slice]) -> tuple[int, int]:
        """Pixels to write, and to make."""
        write = canvas.pending[place] & (canvas.owner[place] == number)
        return int(write.sum()), int(canvas.unknown(place).sum())

    boxes = np.array([_box(place) for place in places])
    to_write, to_make = np.array([counts(place) for place in places]).T
    windows = []
    while to_write.any():
        i = int(np.where(to_write > 0, to_make, np.iinfo(int).max).argmin())
        place = places[i]
        write = canvas.pending[place] & (canvas.owner[place] == number)
        part = np.where(canvas.filled[place], np.float32(REFINE), np.float32(1)) * canvas.unknown(place)
        windows.append(Window(place, scale, canvas.strength[place] * part[..., None], write[..., None]))
        canvas.pending[place] &= ~write
        canvas.filled[place] |= write
        for near in np.flatnonzero(_meets(boxes, boxes[i])):
            to_write[near], to_make[near] = counts(places[near])
    return windows


def _box(place: Sequence[slice]) -> Box:
    return place[0].start, place[0].stop, place[1].start, place[1].stop


def _meets(boxes: Int[np.ndarray, "n 4"], box: Int[np.ndarray, "4"]) -> Bool[np.ndarray, "n"]:
    return (boxes[:, 0] < box[1]) & (box[0] < boxes[:, 1]) & (boxes[:, 2] < box[3]) & (box[2] < boxes[:, 3])
