"""How far a mask leaks through an autoencoder, as numbers, for any that has an encoder and a decoder.

1. Latents: an image is encoded whole, and again with a hole in it. Known cells should stay where they are; how far they
   move is told by their distance to the hole, in units of the latents' own standard deviation.
2. Pixels: the latents of the hole are exchanged for those of another image. Known pixels should stay; how far they
   move is told by the distance of their cells.

A cell belongs to the hole if any of its pixels does. Distances are in cells, diagonal steps counting one: 1 is a cell
that touches the hole.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import ndimage

from asyncpatch_jax import checks

LONGEST = 5  # cells; the last ring has all that are further away
_GREYS = 127.5  # of 255 to 1 of an image in [-1, 1]

Images = Float[np.ndarray, "n h w c"]
Latents = Float[np.ndarray, "n gh gw z"]
Away = Int[np.ndarray, "n gh gw"]


class Coder(NamedTuple):
    """An autoencoder as functions of arrays on the host.

    encode: (images [n, h, w, c], masks [n, h, w, 1] or None) -> latents [n, h / factor, w / factor, z].
    decode: (latents, masks) -> images.
    index: latents -> codes [n, gh, gw]; None for one without codes.
    factor: pixels to a side of a cell.
    """

    encode: Callable[..., Array | np.ndarray]
    decode: Callable[..., Array | np.ndarray]
    index: Callable[..., Array | np.ndarray] | None  # type: ignore[assignment]  # hides tuple.index
    factor: int


class Ring(NamedTuple):
    """What lies at one distance from holes.

    away: in cells; the last ring's stands for all from there on.
    count: how many known cells (or known pixels) that is.
    moved: root mean square of how far they moved; NaN where there are none.
    largest: of them.
    same: share of codes that stayed the same; None without codes.
    """

    away: int
    count: int  # type: ignore[assignment]  # hides tuple.count
    moved: float
    largest: float
    same: float | None = None


class Leakage(NamedTuple):
    """Rings of latents, in standard deviations, and of pixels, in levels of 255; and how far the hole's pixels move."""

    latents: tuple[Ring, ...]
    pixels: tuple[Ring, ...]
    hole: float


def away(holes: Float[np.ndarray, "n h w 1"], factor: int) -> Away:
    """How many cells each cell is away from the hole; 0 in it.

    Raises:
        ValueError: holes that the cells do not tile, or an image without one.
    """
    n, h, w, _ = holes.shape
    if h % factor or w % factor:
        raise ValueError(f"expected holes whose sides are multiples of {factor}, got {h}x{w}")
    cells = holes.reshape(n, h // factor, factor, w // factor, factor).max((2, 4)) > 0.5
    if not np.any(cells, axis=(1, 2)).all():
        raise ValueError("expected a hole in each image, got none in some")
    return np.stack([ndimage.distance_transform_cdt(~hole, "chessboard") for hole in cells]).astype(np.int64)


def latents_moved(
    whole: Latents,
    masked: Latents,
    away: Away,
    codes: tuple[Int[np.ndarray, "n gh gw"], Int[np.ndarray, "n gh gw"]] | None = None,
    longest: int = LONGEST,
) -> tuple[Ring, ...]:
    """How far the latents of known cells moved between the whole images and the masked ones, ring by ring.

    A cell's distance is the root mean square over channels, each in units of its standard deviation in `whole`.

    Args:
        codes: of `whole` and of `masked`.

    Raises:
        ValueError: latents that do not differ at all between cells, so that they have no unit.
    """
    checks.whole("longest", longest)
    spread = np.asarray(whole, np.float64).std((0, 1, 2))
    if not (spread > 0).all():
        raise ValueError(f"expected latents whose channels vary, got standard deviations {spread}")
    moved = np.sqrt((((np.asarray(masked, np.float64) - whole) / spread) ** 2).mean(-1))
    same = None if codes is None else codes[0] == codes[1]
    return tuple(_ring(d, moved, away == d if d < longest else away >= d, same) for d in range(1, longest + 1))


def pixels_moved(
    images: Images, others: Images, holes: Float[np.ndarray, "n h w 1"], away: Away, longest: int = LONGEST
) -> tuple[tuple[Ring, ...], float]:
    """How far known pixels moved where the latents of holes were exchanged, ring by ring, in levels of 255.

    Args:
        images, others: decoded from the latents and from those with another hole.

    Returns:
        The rings, and the root mean square of what moved in the hole.
    """
    factor = images.shape[1] // away.shape[1]
    moved = _GREYS * np.sqrt(((np.asarray(images, np.float64) - others) ** 2).mean(-1))
    # all that is a cell or more away from the hole is known
    pixels = away.repeat(factor, 1).repeat(factor, 2)
    rings = tuple(_ring(d, moved, pixels == d if d < longest else pixels >= d, None) for d in range(1, longest + 1))
    return rings, float(np.sqrt((moved[np.asarray(holes)[..., 0] > 0.5] ** 2).mean()))


def _ring(
    distance: int,
    moved: Float[np.ndarray, "n _h _w"],
    where: Bool[np.ndarray, "n _h _w"],
    same: Bool[np.ndarray, "n _h _w"] | None,
) -> Ring:
    there = moved[where]
    if not there.size:
        return Ring(distance, 0, float("nan"), float("nan"), None)
    kept = None if same is None else float(same[where].mean())
    return Ring(distance, there.size, float(np.sqrt((there**2).mean())), float(there.max()), kept)


def leakage(
    coder: Coder, images: Images, holes: Float[np.ndarray, "n h w 1"], *, batch: int = 16, longest: int = LONGEST
) -> Leakage:
    """Both numbers of an autoencoder, on images with a hole each.

    In a hole the other latents are those of the next image, the last one's those of the first.

    Args:
        batch: images at a time.

    Raises:
        ValueError: fewer than two images, or as `away` and `latents_moved`.
    """
    if len(images) < 2:
        raise ValueError(f"expected two images or more, got {len(images)}")
    distance = away(holes, coder.factor)
    whole = _batched(lambda x: coder.encode(x, None), batch, images)
    masked = _batched(coder.encode, batch, images, holes)
    index = coder.index
    codes = None if index is None else (_batched(index, batch, whole), _batched(index, batch, masked))
    inside = (distance == 0)[..., None]
    decoded = [
        _batched(coder.decode, batch, np.where(inside, filling, masked).astype(np.float32), holes)
        for filling in (whole, np.roll(whole, 1, axis=0))
    ]
    pixels, hole = pixels_moved(decoded[0], decoded[1], holes, distance, longest)
    return Leakage(latents_moved(whole, masked, distance, codes, longest), pixels, hole)


def _batched(
    function: Callable[..., Array | np.ndarray], batch: int, *arrays: Float[np.ndarray, "n ..."]
) -> np.ndarray:
    """Whole batches only, so that one program serves; the last one is filled up with what it begins with."""
    count = len(arrays[0])
    parts = []
    for start in range(0, count, batch):
        rows = np.arange(start, start + batch) % count
        parts.append(np.asarray(function(*(array[rows] for array in arrays)))[: count - start])
    return np.concatenate(parts)
