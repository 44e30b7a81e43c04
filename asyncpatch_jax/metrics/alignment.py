"""Does an image show what its caption says? For captioned scenes of digits: find the digits, and check each claim."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from asyncpatch_jax.data.scenes import INK, Box, Caption, holds, lies, size_of

_LEAST = 1 / 6  # of the image's height: lower spots are no digits


class Spot(NamedTuple):
    """A connected piece of ink, and nothing else: pixels of other pieces inside of its box are dark."""

    box: Box
    pixels: UInt8[np.ndarray, "h w"]


class Found(NamedTuple):
    """A digit of an image, as a classifier named it."""

    box: Box
    digit: int


class Verdict(NamedTuple):
    """How far an image agrees with its caption, each in [0, 1]; None where the caption says nothing.

    objects: digits that are both wanted and found, of all that are wanted or found.
    sizes: wanted sizes that a digit of that name has.
    relation, place: 1 or 0.
    """

    objects: float
    sizes: float | None
    relation: float | None
    place: float | None

    @property
    def alignment(self) -> float:
        """The mean over what the caption says."""
        said = [part for part in self if part is not None]
        return sum(said) / len(said)

    @property
    def strict(self) -> bool:
        """Whether the image shows all of it, and no other digit."""
        return self.alignment == 1.0


def spots(image: UInt8[np.ndarray, "h w"]) -> list[Spot]:
    """The connected pieces of ink in an image, from left to right; pieces at most one dark pixel apart are one.

    Pieces lower than a sixth of the image are left out.
    """
    from scipy import ndimage

    ink = image > INK
    joined, _ = ndimage.label(ndimage.binary_dilation(ink, np.ones((2, 2))), np.ones((3, 3)))
    labels = np.where(ink, joined, 0)
    found = []
    for label, where in enumerate(ndimage.find_objects(labels), 1):
        if where is None:
            continue
        rows, columns = where
        box = Box(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        if box.height >= _LEAST * image.shape[0]:
            found.append(Spot(box, np.where(labels[where] == label, image[where], 0).astype(np.uint8)))
    return sorted(found, key=lambda spot: spot.box.left)


def check(caption: Caption, found: list[Found], side: int) -> Verdict:
    """Compare the digits of an image, `side` pixels high and wide, with what a caption says."""
    wanted, seen = Counter(caption.digits), Counter(digit for _, digit in found)
    objects = (wanted & seen).total() / max(wanted.total(), seen.total())
    boxes = [[box for box, named in found if named == digit] for digit in caption.digits]
    sizes = relation = place = None
    if any(caption.sizes):
        fits = [any(size_of(box, side) == size for box in b) for b, size in zip(boxes, caption.sizes, strict=True)]
        sizes = sum(fits) / len(fits)
    if caption.relation:
        relation = float(any(holds(caption.relation, a, b) for a in boxes[0] for b in boxes[1]))
    if caption.place:
        place = float(any(lies(caption.place, box, side) for box in boxes[0]))
    return Verdict(objects, sizes, relation, place)
