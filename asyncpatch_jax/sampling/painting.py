"""Filling the holes of photos of any size, window by window, with whatever makes images of one size.

`repaint` shows each window to a function `fill` at the size that it works at, scales what comes back to the photo, and
stitches it in. All pixels that are to be kept are the photo's own, bit for bit, whatever `fill` answers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

from asyncpatch_jax.sampling.paste import stitch
from asyncpatch_jax.sampling.windows import Size, Window, rounds

Photo = UInt8[np.ndarray, "H W c"]


class Job(NamedTuple):
    """A photo, what becomes of it, and what a painter may want to know of it (a class, a prompt, ...)."""

    photo: Photo
    windows: Sequence[Window]
    about: object = None


class Shown(NamedTuple):
    """A window as the network sees it.

    job, window: their numbers.
    strength: how much each pixel is to change, 0 ... 1; 0 is known.
    """

    job: int
    window: int
    image: UInt8[np.ndarray, "h w c"]
    strength: Float[np.ndarray, "h w 1"]


Fill = Callable[[list[Shown]], Sequence[UInt8[np.ndarray, "h w c"]]]


def repaint(
    jobs: Sequence[Job],
    size: Size,
    fill: Fill,
    *,
    batch: int,
    feather: float = 2.0,
    erase: bool = True,
) -> Iterator[tuple[int, Photo]]:
    """Fill the windows of each job, and give back each photo as soon as it is done: its number, and the result.

    Windows that do not depend on each other, of one photo or of several, are shown together.

    Args:
        size: height and width of what is shown.
        fill: at most `batch` windows to as many images of that size.
        feather: the width of the seam, inside the holes, in pixels of what is shown (`paste.stitch`).
        erase: nothing of what the photo had where all is to change is ever shown; without, it is there until it is
            written over.
    """
    canvases = [erased(job.photo, job.windows) if erase else job.photo.copy() for job in jobs]
    turns = [rounds(job.windows) for job in jobs]
    for turn in range(max(len(own) for own in turns)):
        due = [(j, i) for j, own in enumerate(turns) if turn < len(own) for i in own[turn]]
        for first in range(0, len(due), batch):
            part = due[first : first + batch]
            shown = [Shown(j, i, *look(canvases[j], jobs[j].windows[i], size)) for j, i in part]
            for one, made in zip(shown, fill(shown), strict=True):
                window = jobs[one.job].windows[one.window]
                canvases[one.job][window.place] = placed(canvases[one.job], window, one.image, made, feather)
        yield from ((j, canvases[j]) for j, own in enumerate(turns) if turn == len(own) - 1)


def together(jobs: Sequence[Job], most: int) -> int:
    """How many windows to show at once: of one number a program is compiled, and most of it shall not stay empty."""
    turns = [rounds(job.windows) for job in jobs]
    return min(most, -(-sum(len(job.windows) for job in jobs) // max(len(own) for own in turns)))


def erased(photo: Photo, windows: Sequence[Window]) -> Photo:
    """The photo without what is to change altogether: each such pixel has the colour of the nearest other one."""
    gone = np.zeros(photo.shape[:2], bool)
    for window in windows:
        gone[window.place] |= (window.strength[..., 0] == 1) & window.write[..., 0]
    if gone.all():
        return np.full_like(photo, 127)
    nearest = ndimage.distance_transform_edt(gone, return_distances=False, return_indices=True)
    return photo[tuple(nearest)]


def look(canvas: Photo, window: Window, size: Size) -> tuple[UInt8[np.ndarray, "h w c"], Float[np.ndarray, "h w 1"]]:
    """A window at the size of the network: its pixels, and how much each changes, by the most of what it stands for."""
    return resized(canvas[window.place], size), most(window.strength, size).astype(np.float32)


def most(mask: Float[np.ndarray, "_h _w k"], size: Size) -> Float[np.ndarray, "h w k"]:
    """A mask at another size, each pixel the largest of what it stands for."""
    for axis in (0, 1):
        edges = np.arange(size[axis] + 1) * mask.shape[axis] / size[axis]
        parts = zip(np.floor(edges[:-1] + 1e-9).astype(int), np.ceil(edges[1:] - 1e-9).astype(int), strict=True)
        mask = np.stack([mask.take(range(low, high), axis).max(axis) for low, high in parts], axis)
    return mask


def placed(
    canvas: Photo, window: Window, shown: UInt8[np.ndarray, "h w c"], made: UInt8[np.ndarray, "h w c"], feather: float
) -> UInt8[np.ndarray, "_h _w c"]:
    """What becomes of a window's part of the photo when `shown` has become `made`.

    Pixels that change only in part keep that part of the detail that a coarse look does not see.
    """
    before = canvas[window.place]
    base, size = before.astype(np.float32), before.shape[:2]
    detail = base - resized(shown, size)
    after = resized(made, size) + (1 - window.strength) * detail
    after = stitch(base, after, window.write, window.strength == 0, feather * max(window.scale, 1.0))
    return np.where(window.write, np.clip(np.rint(after), 0, 255).astype(np.uint8), before)


def resized(image: UInt8[np.ndarray, "_h _w c"], size: Size) -> UInt8[np.ndarray, "h w c"]:
    """Antialiased bicubic to a height and width; bit for bit the same at its own size."""
    if image.shape[:2] == size:
        return image
    flat = [Image.fromarray(channel) for channel in np.moveaxis(image, -1, 0)]
    return np.stack([np.asarray(channel.resize(size[::-1], Image.Resampling.BICUBIC)) for channel in flat], axis=-1)
