"""Numbers of rows, with intervals, and the table and the content of the file that show them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from asyncpatch_jax.metrics.intervals import Interval, bootstrap
from asyncpatch_jax.metrics.paired import Weights
from launch.shared import markdown

_DIGITS = 16  # of a hash, in tables


class Number(NamedTuple):
    """A measure of a folder.

    values: of each image, or (of a distance of sets) distance plus the influence of each image, whose mean is the
        distance; NaN of images that have none (PSNR of equal ones is infinite).
    """

    title: str
    about: str
    weights: Weights | None
    values: Float[np.ndarray, "n"]
    pace: float  # images a second


class Summary(NamedTuple):
    """A measure of all folders.

    values: None where no image has a finite one.
    differences: of the other folders to the first one, image by image.
    """

    numbers: Sequence[Number]
    values: Sequence[Interval | None]
    differences: Sequence[Interval | None]


def summary(numbers: Sequence[Number], groups: Sequence[object] | None) -> Summary:
    """With intervals; `groups` are drawn as wholes, such as all images of a prompt."""
    first = numbers[0].values
    with np.errstate(invalid="ignore"):  # two that are infinite have no difference
        differences = [number.values - first for number in numbers[1:]]
    of = [number.values for number in numbers]
    return Summary(numbers, *([_interval(values, groups) for values in each] for each in (of, differences)))


def _interval(values: Float[np.ndarray, "n"], groups: Sequence[object] | None) -> Interval | None:
    """Of the finite values; None if there are none. Of one group, which says nothing of others, by its values."""
    kept = np.isfinite(values)
    if not kept.any():
        return None
    own = None if groups is None else [group for group, keep in zip(groups, kept, strict=True) if keep]
    return bootstrap(values[kept], own if own is not None and len(set(own)) > 1 else None)


def table(places: Sequence[str], found: Mapping[str, Summary]) -> str:
    """In Markdown: a measure a row, a folder a column, and differences to the first folder."""
    head = ["measure", *places, *(f"{place} - {places[0]}" for place in places[1:])]
    lines = [
        [one.numbers[0].title, *map(_text, one.values), *(_text(value, "+") for value in one.differences)]
        for one in found.values()
    ]
    return markdown.table(head, lines)


def notes(found: Mapping[str, Summary]) -> str:
    """A line for each measure: what it is of, its weights by hash, and how fast it went."""
    lines = []
    for one in found.values():
        number = one.numbers[-1]  # of the first folder, compiling took a while
        by = f"{number.weights.file} (sha256 {number.weights.sha256[:_DIGITS]})" if number.weights else "no weights"
        missing = max(int((~np.isfinite(number.values)).sum()) for number in one.numbers)
        without = f"{missing} images are infinite and not in the mean" if missing else ""
        parts = [number.about, by, without, f"{number.pace:.3g} images/s"]
        lines.append(f"{number.title}: {'; '.join(filter(None, parts))}")
    return "\n".join(lines)


def content(found: Mapping[str, Summary]) -> dict[str, Any]:
    """All of it as JSON."""
    return {
        name: {
            "title": one.numbers[0].title,
            "about": [number.about for number in one.numbers],
            "weights": None if (weights := one.numbers[0].weights) is None else weights._asdict(),
            "values": [value and value._asdict() for value in one.values],
            "differences": [value and value._asdict() for value in one.differences],
            "images_per_second": [number.pace for number in one.numbers],
            "each": [[float(v) if np.isfinite(v) else None for v in number.values] for number in one.numbers],
        }
        for name, one in found.items()
    }


def _text(value: Interval | None, sign: str = "") -> str:
    if value is None:
        return "infinite"
    mean, low, high = (format(number, f"{sign}.4g") for number in value)
    return f"{mean} [{low}, {high}]"
