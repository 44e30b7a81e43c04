"""What the inpainting study measures: of each filled image, and of sets of images against real ones."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from asyncpatch_jax.metrics.distances import distance_name, frechet_distance
from asyncpatch_jax.metrics.features import Features
from asyncpatch_jax.metrics.inception import read_inception
from asyncpatch_jax.metrics.lpips import read_features, read_lpips
from asyncpatch_jax.metrics.moments import moments
from asyncpatch_jax.metrics.paired import Paired, weights
from asyncpatch_jax.metrics.similarity import HOLE_RMSE

_SEEN = 64  # pixels of a side that a trunk trained on photographs needs to see anything
Images = UInt8[np.ndarray, "n h w c"]


class Scores(NamedTuple):
    """What can be measured, with the words that stand beside it.

    names: of a score -> what a reader must know of it.
    decisive: the paired score by which settings are chosen.
    """

    names: dict[str, str]
    decisive: str
    paired: Callable[[Images, Images, Float[np.ndarray, "n h w 1"]], dict[str, Float[np.ndarray, "n"]]]
    sets: Callable[[Images, Images], dict[str, float]]


def read(lpips: str | None, inception: str | None) -> Scores:
    """By the weights that there are.

    Raises:
        ValueError: a folder without them; it says what to provide.
    """
    pairs: list[Paired] = [HOLE_RMSE]
    features: Features | None = None
    names = {HOLE_RMSE.name: "root mean square error over the hole, of pixels in [-1, 1]"}
    if lpips:
        measure = read_lpips(lpips)
        pairs.append(measure)
        of = f"weights {measure.weights.sha256[:12]}" if measure.weights else "no weights"
        names[measure.name] = f"over the hole, {of}; images enlarged to at least {_SEEN} pixels, each pixel a square"
        see = read_features(lpips)
        trunk = measure.name.removeprefix("LPIPS-")
        about = f"nearest neighbour to at least {_SEEN} pixels"
        features = Features(f"{trunk}, last layer", about, weights(lpips).sha256, lambda images: see(enlarged(images)))
    if inception:
        features = read_inception(inception)
    if features:
        called = f"{features.name}; {features.resize}; weights {features.weights[:12]}"
        names[distance_name(features)] = f"between sets of images, of features {called}"

    def paired(made: Images, real: Images, hole: Float[np.ndarray, "n h w 1"]) -> dict[str, Float[np.ndarray, "n"]]:
        found = {HOLE_RMSE.name: HOLE_RMSE(made, real, hole)}
        for measure in pairs[1:]:
            found[measure.name] = measure(enlarged(made), enlarged(real), enlarged(hole))
        return found

    known: dict[str, np.ndarray] = {}

    def sets(made: Images, real: Images) -> dict[str, float]:
        if features is None:
            return {}
        key = digest(real)
        if key not in known:  # the same for all that is compared with it
            known[key] = features.call(real)
        distance = frechet_distance(features, moments(features.call(made)), moments(known[key]))
        return {distance.name: distance.value}

    return Scores(names, pairs[-1].name, paired, sets)


def enlarged(images: Shaped[np.ndarray, "n h w c"]) -> Shaped[np.ndarray, "n _h _w c"]:
    """Small images with each pixel a square, so that they have at least `_SEEN` pixels a side."""
    times = max(1, -(-_SEEN // min(images.shape[1:3])))
    return images.repeat(times, 1).repeat(times, 2)


def digest(array: Shaped[np.ndarray, "..."]) -> str:
    """A short hash of an array's numbers."""
    return hashlib.sha256(np.ascontiguousarray(array, np.uint8).tobytes()).hexdigest()[:12]
