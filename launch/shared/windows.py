"""Paint a canvas larger than the network's images: window by window, each given what is already there."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """A part of the canvas, and what of it is still to be generated when its turn comes."""

    place: tuple[slice, slice]
    mask: np.ndarray  # float32 [h, w, 1], 1 = generate


Fill = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


def starts(length: int, window: int, overlap: int) -> list[int]:
    """Where windows start along an axis, each sharing `overlap` pixels with the one before; the last is flush.

    Raises:
        ValueError: the window is longer than the axis, or the overlap not below the window.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"expected an overlap in 0 ... {window - 1} (below the window), got {overlap}")
    if window > length:
        raise ValueError(f"expected a canvas of {window} pixels or more (the window) on each side, got {length}")
    return [*range(0, length - window, window - overlap), length - window]


def plan(known: np.ndarray, window: tuple[int, int], overlap: int) -> list[Window]:
    """The order in which windows cover what is unknown of a canvas, bool [H, W]: always on where most is known.

    An image inside a larger canvas grows outwards; on an empty canvas the first window is painted freely.

    Raises:
        ValueError: see `starts`.
    """
    known = known.copy()
    height, width = window
    places = [
        (slice(y, y + height), slice(x, x + width))
        for y in starts(known.shape[0], height, overlap)
        for x in starts(known.shape[1], width, overlap)
    ]
    windows = []
    while not known.all():
        place = max((place for place in places if not known[place].all()), key=lambda place: known[place].sum())
        windows.append(Window(place, (~known[place])[..., None].astype(np.float32)))
        known[place] = True
    return windows


def paint(canvas: np.ndarray, windows: list[Window], fill: Fill) -> np.ndarray:
    """Fill canvases [n, H, W, c] along a plan; what the plan holds known keeps its bits.

    Args:
        fill: `(number of the window, images [n, h, w, c], mask [h, w, 1]) -> images`.
    """
    canvas = canvas.copy()
    for i, (place, mask) in enumerate(windows):
        images = canvas[:, *place]
        canvas[:, *place] = np.where(mask > 0, fill(i, images, mask), images)
    return canvas
