"""Scenes with captions, composed of real handwritten digits: what a small text-to-image network can be trained on.

A caption says what a scene holds: which digits, how many, how large, where, and how two of them lie to each other. What
it says is true of the image by construction, and can be checked (`asyncpatch_jax.metrics.alignment`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from asyncpatch_jax.data.dataset import Dataset
from asyncpatch_jax.data.sources import Split, check_split, digits

Size = Literal["", "small", "large"]
Kind = Literal["single", "count", "place", "relation", "sized"]
KINDS: tuple[str, ...] = get_args(Kind)
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("left of", "right of", "above", "below")
PLACES = ("top left", "top right", "bottom left", "bottom right", "middle")
MOST = 3  # digits of a scene
INK = 60  # a pixel brighter than this belongs to a digit

# heights of a digit in an image of side 24, both ends included: a pixel lies between any two sizes
_SIDE = 24
_HEIGHTS: dict[str, tuple[int, int]] = {"small": (6, 7), "": (9, 10), "large": (12, 13)}
_GAP = 2  # dark pixels between two digits, at least
# of a kind among the scenes: relations are what is hard
_SHARES = {"single": 0.1, "count": 0.15, "place": 0.15, "relation": 0.3, "sized": 0.3}
_HELD_OUT = 5  # every fifth scene of each kind but the single digits


class Box(NamedTuple):
    """Where a digit lies, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column."""
        return self.top + self.height / 2, self.left + self.width / 2


@dataclass(frozen=True)
class Caption:
    """A text, and what it says.

    digits: of the scene, in the text's order.
    sizes: of each digit; "" is the middle one, which the text does not mention.
    relation: of the first digit to the second; "" says nothing.
    place: of the only digit; "" says nothing.
    """

    text: str
    kind: Kind
    digits: tuple[int, ...]
    sizes: tuple[Size, ...]
    relation: str = ""
    place: str = ""

    @property
    def objects(self) -> tuple[str, ...]:
        """The words of the text that name digits, each once."""
        plural = len(self.digits) > 1 and not self.relation
        return tuple(dict.fromkeys(_plural(NAMES[digit]) if plural else NAMES[digit] for digit in self.digits))


def _plural(name: str) -> str:
    return name + ("es" if name.endswith("x") else "s")


def _noun(digit: int, size: Size = "") -> str:
    words = f"{size} {NAMES[digit]}".strip()
    return f"{'an' if words[0] == 'e' else 'a'} {words}"


def _singles() -> list[list[Caption]]:
    return [[Caption(_noun(d, size), "single", (d,), (size,))] for size in get_args(Size) for d in range(10)]


def _counts() -> list[list[Caption]]:
    any_size: tuple[Size, ...] = ("",)
    return [
        [Caption(f"{NAMES[n]} {_plural(NAMES[d])}", "count", (d,) * n, any_size * n)]
        for n in range(2, MOST + 1)
        for d in range(10)
    ]


def _places() -> list[list[Caption]]:
    def text(digit: int, place: str) -> str:
        return f"{_noun(digit)} in the {place}" + ("" if place == "middle" else " corner")

    return [[Caption(text(d, p), "place", (d,), ("",), place=p)] for p in PLACES for d in range(10)]


def _relations(kind: Kind, sizes: tuple[Size, Size]) -> list[list[Caption]]:
    """Each scene has two captions: a left of b, and b right of a."""

    def caption(order: int, relation: str, pair: tuple[int, int]) -> Caption:
        first, second = ((d, s) for d, s in list(zip(pair, sizes, strict=True))[::order])
        text = f"{_noun(*first)} {relation} {_noun(*second)}"
        return Caption(text, kind, (first[0], second[0]), (first[1], second[1]), relation)

    return [
        [caption(1, before, (a, b)), caption(-1, after, (a, b))]
        for before, after in (RELATIONS[:2], RELATIONS[2:])
        for a in range(10)
        for b in range(10)
        if a != b
    ]


@functools.cache
def _scenes() -> dict[str, list[list[Caption]]]:
    """The different scenes of each kind, each with all captions that are true of it."""
    return {
        "single": _singles(),
        "count": _counts(),
        "place": _places(),
        "relation": _relations("relation", ("", "")),
        "sized": _relations("sized", ("small", "large")) + _relations("sized", ("large", "small")),
    }


@functools.cache
def captions() -> tuple[Caption, ...]:
    """All captions, in a fixed order: a record's label is the index in it."""
    return tuple(caption for scenes in _scenes().values() for scene in scenes for caption in scene)


@functools.cache
def scene_numbers() -> tuple[int, ...]:
    """Of each caption, which scene it tells of: those of one number are true of the same images."""
    every = [scene for scenes in _scenes().values() for scene in scenes]
    return tuple(i for i, scene in enumerate(every) for _ in scene)


@functools.cache
def split_captions(split: Split) -> tuple[int, ...]:
    """The captions of a split, by index: a fifth of the scenes of each kind is held out for "test".

    All captions of a held-out scene are held out with it, so that neither its combination of digits, sizes and places
    nor another way to say it is trained on; every word is, and so is every digit alone, in each size.

    Raises:
        ValueError: unknown split.
    """
    check_split(split)
    rng = np.random.default_rng(0)
    held_out: set[Caption] = set()
    for kind, scenes in _scenes().items():
        if kind != "single":
            chosen = rng.permutation(len(scenes))[: len(scenes) // _HELD_OUT]
            held_out.update(caption for i in chosen for caption in scenes[i])
    return tuple(i for i, caption in enumerate(captions()) if (caption in held_out) == (split == "test"))


def holds(relation: str, first: Box, second: Box) -> bool:
    """Whether the centre of a box lies "left of", "right of", "above" or "below" that of another.

    The direction in which the centres are further apart counts: a box to the left and slightly above is left.

    Raises:
        ValueError: unknown relation.
    """
    if relation not in RELATIONS:
        raise ValueError(f"expected a relation out of {', '.join(RELATIONS)}, got {relation!r}")
    down, right = (b - a for a, b in zip(first.centre, second.centre, strict=True))
    along, across = (right, down) if relation in RELATIONS[:2] else (down, right)
    return abs(along) > abs(across) and (along > 0) == (relation in ("left of", "above"))


def lies(place: str, box: Box, side: int) -> bool:
    """Whether the centre of a box lies in a quarter of the image ("top left", ...), or in the "middle" ninth of it.

    Raises:
        ValueError: unknown place.
    """
    if place not in PLACES:
        raise ValueError(f"expected a place out of {', '.join(PLACES)}, got {place!r}")
    row, column = (c / side for c in box.centre)
    if place == "middle":
        return max(abs(row - 0.5), abs(column - 0.5)) < 1 / 6
    return (row < 0.5) == place.startswith("top") and (column < 0.5) == place.endswith("left")


def size_of(box: Box, side: int) -> Size:
    """Small, large, or neither, by a box's height."""
    height = box.height * _SIDE / side
    edges = [(_HEIGHTS[a][1] + _HEIGHTS[b][0]) / 2 for a, b in (("small", ""), ("", "large"))]
    return "small" if height < edges[0] else "large" if height > edges[1] else ""


def crop(image: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "_h _w"]:
    """The part of an image that has ink.

    Raises:
        ValueError: there is none.
    """
    rows, columns = np.nonzero(image > INK)
    if not len(rows):
        raise ValueError(f"expected pixels above {INK}, got none")
    return image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def scaled(image: UInt8[np.ndarray, "h w"], height: int) -> UInt8[np.ndarray, "{height} _w"]:
    """An image at another height, smoothly (bicubic), as wide as that makes it."""
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _range(size: Size, side: int) -> range:
    low, high = (round(height * side / _SIDE) for height in _HEIGHTS[size])
    return range(low, high + 1)


@dataclass(frozen=True, eq=False)
class _Scenes:
    glyphs: dict[tuple[int, int], list[np.ndarray]]  # digit and height: real digits, cropped and scaled
    labels: dict[str, np.ndarray]  # kind: captions to draw from
    side: int
    length: int
    seed: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        shares = np.array([_SHARES[kind] for kind in self.labels])
        kind = rng.choice(list(self.labels), p=shares / shares.sum())
        label = int(rng.choice(self.labels[kind]))
        return {**self.scene(captions()[label], rng), "label": label}

    def scene(self, caption: Caption, rng: np.random.Generator) -> dict[str, Any]:
        chosen = [self._glyph(d, size, rng) for d, size in zip(caption.digits, caption.sizes, strict=True)]
        shapes = np.array([glyph.shape for glyph in chosen])
        corners = _related(caption.relation, shapes, self.side, rng) if caption.relation else None
        if corners is None:
            corners = _scattered(shapes, self.side, rng, functools.partial(self._fits, caption, shapes))
        image = np.zeros((self.side, self.side), np.uint8)
        for glyph, (top, left) in zip(chosen, corners, strict=True):
            image[top : top + glyph.shape[0], left : left + glyph.shape[1]] = glyph
        boxes, found = np.full((MOST, 4), -1), np.full(MOST, -1)
        boxes[: len(chosen)], found[: len(chosen)] = np.concatenate([corners, shapes], 1), caption.digits
        return {"image": image[..., None], "boxes": boxes, "digits": found}

    def _glyph(self, digit: int, size: Size, rng: np.random.Generator) -> np.ndarray:
        heights = _range(size, self.side)
        drawn = self.glyphs[digit, heights[rng.integers(len(heights))]]
        return drawn[rng.integers(len(drawn))]

    def _fits(self, caption: Caption, shapes: np.ndarray, corners: np.ndarray) -> bool:
        return not caption.place or lies(caption.place, Box(*map(int, (*corners[0], *shapes[0]))), self.side)


def _related(relation: str, shapes: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Top left corners of two digits that lie as told, with a gap between them along that direction."""
    along = int(relation in RELATIONS[:2])
    order = [0, 1] if relation in ("left of", "above") else [1, 0]
    before, after = shapes[order]
    slack = side - before[along] - after[along] - _GAP
    ends = np.sort(rng.integers(0, slack + 1, 2))
    corners = np.zeros((2, 2), int)
    corners[:, along] = ends[0], ends[1] + before[along] + _GAP
    apart = np.diff(corners[:, along] + shapes[order][:, along] / 2)[0]
    across = 1 - along
    # the other direction: anywhere that leaves the first one clearly the longer
    start = rng.integers(0, side - before[across] + 1)
    middle = start + (before[across] - after[across]) / 2
    reach = max(apart - 2, 0)
    low, high = max(0, int(np.ceil(middle - reach))), min(side - after[across], int(np.floor(middle + reach)))
    corners[:, across] = start, rng.integers(low, high + 1) if low <= high else np.clip(round(middle), 0, None)
    return corners[order]


def _scattered(
    shapes: np.ndarray, side: int, rng: np.random.Generator, fits: Callable[[np.ndarray], bool]
) -> np.ndarray:
    """Top left corners anywhere, so that no two digits come closer than the gap."""
    while True:
        corners = rng.integers(0, side - shapes + 1)
        ends = corners + shapes + _GAP
        apart = (corners[:, None] >= ends[None]) | (corners[None] >= ends[:, None])
        if (apart.any(-1) | np.eye(len(shapes), dtype=bool)).all() and fits(corners):
            return corners


@functools.cache
def _glyphs(split: Split, side: int) -> dict[tuple[int, int], list[np.ndarray]]:
    source = digits(split).source
    records = [source[i] for i in range(len(source))]
    cropped = [(record["label"], crop(record["image"][..., 0])) for record in records]
    heights = {height for size in get_args(Size) for height in _range(size, side)}
    return {(d, h): [scaled(glyph, h) for label, glyph in cropped if label == d] for d in range(10) for h in heights}


def scenes(split: Split = "train", size: int = _SIDE, length: int = 2**20, seed: int = 0) -> Dataset:
    """Captioned scenes of one to three real digits, grey, light on dark, size x size.

    The class of a scene is its caption: `captions()[label]`, whose text is in `class_names`. Records also hold
    "boxes" (int [3, 4], each a `Box`) and "digits" (int [3]) in the caption's order, -1 where there are fewer. Record i
    depends on (split, size, seed, i) only. "test" scenes are made of held-out digits and have held-out captions
    (`split_captions`).

    Args:
        size: 24 or more; digits are 1/4 to 1/2 of it high.
        length: records; they are made when asked for.

    Raises:
        ValueError: unknown split, a size below 24, no records.
    """
    check_split(split)
    labels = np.array(split_captions(split))
    if size < _SIDE or length < 1:
        raise ValueError(f"expected a size of at least {_SIDE} and a length of at least 1, got {size} and {length}")
    kinds = np.array([captions()[i].kind for i in labels])
    by_kind = {kind: labels[kinds == kind] for kind in KINDS if kind in kinds}
    source = _Scenes(_glyphs(split, size), by_kind, size, length, seed)
    return Dataset(source, len(captions()), tuple(caption.text for caption in captions()), (size, size, 1))
