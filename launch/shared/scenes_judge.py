"""Do images show what their captions say? Judged by a classifier that has seen only real digits."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from asyncpatch_jax import viz
from asyncpatch_jax.data import scenes, sources
from asyncpatch_jax.metrics.alignment import Found, Verdict, check, spots

_SIDE = 12  # pixels that a digit is brought to
_HEIGHTS = (6, 7, 9, 10, 12, 13)  # of digits in scenes


def _row(glyph: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "d"]:
    """A digit cut out of an image, brought to one height in the middle of a square (a wider one to its width)."""
    shrunk = min(_SIDE, max(1, round(_SIDE * glyph.shape[0] / glyph.shape[1])))
    glyph = scenes.scaled(glyph, shrunk)[:, :_SIDE]
    square = np.zeros((_SIDE, _SIDE))
    top, left = ((_SIDE - length) // 2 for length in glyph.shape)
    square[top : top + glyph.shape[0], left : left + glyph.shape[1]] = glyph / 255.0
    return square.ravel()


def real(split: str) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"]]:
    """Real digits of a split at the heights that scenes have, as rows; and their names."""
    source = sources.digits(split).source
    records = [source[i] for i in range(len(source))]
    glyphs = [(scenes.crop(record["image"][..., 0]), record["label"]) for record in records]
    rows = [_row(scenes.crop(scenes.scaled(glyph, height))) for glyph, _ in glyphs for height in _HEIGHTS]
    return np.array(rows), np.array([label for _, label in glyphs for _ in _HEIGHTS])


@functools.cache
def _classifier() -> Any:
    from sklearn.svm import SVC

    return SVC(C=3.0, gamma=0.03).fit(*real("train"))


def accuracy_of_real() -> float:
    """Share of real digits that the classifier has not seen and names correctly, over all heights."""
    return float(_classifier().score(*real("test")))


def read(images: Float[np.ndarray, "b h w 1"] | UInt8[np.ndarray, "b h w 1"]) -> list[list[Found]]:
    """The digits of each image, from left to right."""
    cut = [spots(image[..., 0]) for image in viz.to_uint8(images)]
    rows = [_row(spot.pixels) for found in cut for spot in found]
    named = iter(_classifier().predict(np.array(rows)) if rows else [])
    return [[Found(spot.box, int(next(named))) for spot in found] for found in cut]


def judge(
    images: Float[np.ndarray, "b h w 1"] | UInt8[np.ndarray, "b h w 1"], label: Sequence[int] | Int[np.ndarray, "b"]
) -> list[Verdict]:
    """How far each image agrees with the caption `scenes.captions()[label]`."""
    captions = scenes.captions()
    return [check(captions[i], found, images.shape[1]) for i, found in zip(label, read(images), strict=True)]


def of_real(count: int, seed: int, split: str = "test") -> tuple[list[Verdict], list[Verdict]]:
    """Verdicts on real scenes with their own captions, and with those of other scenes, of the same kind."""
    source = scenes.scenes(split, seed=seed).source
    records = [source[i] for i in range(count)]
    images, labels = np.stack([r["image"] for r in records]), np.array([r["label"] for r in records])
    by_kind: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        by_kind.setdefault(scenes.captions()[label].kind, []).append(i)
    other = labels.copy()
    for places in by_kind.values():
        other[places] = np.roll(labels[places], 1)
    different = other != labels
    return judge(images, labels), judge(images[different], other[different])


def summary(verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """Mean alignment, and the share of strict successes."""
    return float(np.mean([v.alignment for v in verdicts])), float(np.mean([v.strict for v in verdicts]))
