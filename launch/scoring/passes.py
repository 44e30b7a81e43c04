"""Passes over images: each network is loaded once, sees all folders batch by batch, and gives a row for every image.

Processes share the images, each with its own devices and without waiting for the others, and put their rows together at
the end of a folder: so a number is the same for any number of them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from asyncpatch_jax.data.masks import Convention, read_mask
from asyncpatch_jax.metrics.moments import Moments, gather, gather_rows, merge, moments
from launch.scoring.images import Images, batches
from launch.scoring.measures import Given, Loaded
from launch.shared import processes

_PATIENCE = 24 * 3600.0  # seconds that processes wait for the slowest of them
_CHUNK = 2048  # features that are added to moments at a time


class Asked(NamedTuple):
    """A folder that is scored, and what its images are held against.

    pairs: under the same names, in the same order.
    masks: of each name; white is generated.
    texts, captions: of each image, in order.
    """

    images: Images
    pairs: Images | None = None
    masks: Mapping[str, Path] | None = None
    texts: Sequence[str] | None = None
    captions: Sequence[str] | None = None
    convention: Convention = "white_generate"

    def read(self, place: int) -> tuple[np.ndarray, ...]:
        """An image, and what belongs to it of pairs and masks."""
        name = self.images.names[place]
        found = [self.images.read(place)]
        if self.pairs is not None:
            found.append(self.pairs.read(place))
        if self.masks is not None:
            found.append(read_mask(self.masks[name], self.images.shapes[place], self.convention))
        return tuple(found)

    def given(self, places: Sequence[int], arrays: tuple[np.ndarray, ...]) -> Given:
        rest = list(arrays[1:])
        pairs = rest.pop(0) if self.pairs is not None else None
        holes = rest.pop(0) if self.masks is not None else None
        filled = [*places, *[places[-1]] * (len(arrays[0]) - len(places))]
        texts, captions = ([of[place] for place in filled] if of else [] for of in (self.texts, self.captions))
        return Given(arrays[0], pairs, holes, texts, captions)


class Pace(NamedTuple):
    """How long a pass took, compiling and reading included."""

    images: int
    seconds: float


def rows(loaded: Loaded, asked: Asked, batch: int, title: str) -> tuple[Float[np.ndarray, "n k"], Pace]:
    """A row for each image of all processes, in the order of the images."""
    parts: dict[int, np.ndarray] = {}

    def take(places: list[int], found: np.ndarray) -> None:
        parts.update(zip(places, found, strict=True))

    pace = _over(loaded, asked, batch, title, take)
    own = np.array([parts[place] for place in _mine(asked.images)], np.float32)
    with processes.waiting(f"the other processes' part of {asked.images.place}", _PATIENCE):
        return gather_rows(own), pace


def summed(loaded: Loaded, asked: Asked, batch: int, title: str) -> tuple[Moments, Pace]:
    """Mean and covariance of all rows, of which none is kept."""
    total: list[Moments] = []
    waiting: list[np.ndarray] = []

    def add() -> None:
        part = moments(np.concatenate(waiting))
        total[:] = [merge(total[0], part)] if total else [part]
        waiting.clear()

    def take(places: list[int], found: np.ndarray) -> None:
        waiting.append(found)
        if sum(map(len, waiting)) >= _CHUNK:
            add()

    pace = _over(loaded, asked, batch, title, take)
    if waiting:
        add()
    with processes.waiting(f"the other processes' part of {asked.images.place}", _PATIENCE):
        return gather(total[0]), pace


def _over(loaded: Loaded, asked: Asked, batch: int, title: str, take: Callable[[list[int], np.ndarray], Any]) -> Pace:
    start = time.perf_counter()
    places = _mine(asked.images)
    with tqdm(total=len(places), desc=title, unit="image", disable=jax.process_index() > 0) as bar:
        for now, arrays in batches(asked.read, asked.images.shapes, places, batch):
            take(now, np.asarray(loaded.call(asked.given(now, arrays)))[: len(now)])
            bar.update(len(now))
    return Pace(len(asked.images.names), time.perf_counter() - start)


def _mine(images: Images) -> range:
    """Which images this process takes; `gather_rows` puts them between those of the others."""
    return range(jax.process_index(), len(images.names), jax.process_count())
