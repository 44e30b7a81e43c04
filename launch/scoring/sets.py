"""FID and KID: a pass over each folder of images, and one over the reference, unless a file has its statistics."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from asyncpatch_jax.metrics.distances import Distance, check_reference, frechet_distance, kernel_distance
from asyncpatch_jax.metrics.features import Features
from asyncpatch_jax.metrics.influence import frechet_influence, kernel_influence
from asyncpatch_jax.metrics.moments import Moments, moments
from asyncpatch_jax.metrics.statistics import Statistics, write_statistics
from launch.scoring.images import Images
from launch.scoring.measures import Loaded
from launch.scoring.passes import Asked, Pace, rows, summed
from launch.scoring.report import Number

_RULE = {"clean": "clean", "legacy_pytorch": "legacy pytorch-fid", "legacy_tensorflow": "legacy TensorFlow"}


class Reference(NamedTuple):
    """What sets are compared with.

    images: None where all that is asked for is in `statistics`.
    statistics: of a file.
    """

    place: str
    images: Images | None
    statistics: Statistics | None


def numbers(
    names: Sequence[str],
    loaded: Loaded,
    folders: Sequence[Asked],
    reference: Reference,
    *,
    rule: str,
    batch: int,
    write: str,
) -> dict[str, list[Number]]:
    """FID and KID, as far as they are among `names`, of each folder.

    Args:
        rule: by which images are resized, for titles.
        write: where the reference's statistics go; "": nowhere.

    Raises:
        ValueError: statistics of other features, before any image is read; features that are not finite.
    """
    features = loaded.features
    assert features is not None  # only measures of sets come here
    kept: Float[np.ndarray, "m d"] | None = None
    sums: Moments | Statistics | None = reference.statistics
    if sums is not None:
        try:
            check_reference(features, sums, features.width)
        except ValueError as error:
            raise ValueError(f"{error}, in {reference.place}") from error
    if reference.images is not None:
        asked = Asked(reference.images)
        if "kid" in names:
            kept, _ = rows(loaded, asked, batch, reference.place)
            sums = sums or moments(kept)
        elif sums is None:
            sums, _ = summed(loaded, asked, batch, reference.place)
    assert sums is not None  # there are statistics or images
    silent = isinstance(sums, Statistics) and sums.resize is None
    about = f"{reference.place}, which does not say its resize rule" if silent else reference.place
    if write and isinstance(sums, Moments):
        write_statistics(write, sums, features)
    found: dict[str, list[Number]] = {name: [] for name in names}
    for folder in folders:
        own, pace = rows(loaded, folder, batch, folder.images.place)
        for name in names:
            made = _frechet(features, own, sums) if name == "fid" else _kernel(features, own, kept)
            found[name].append(_number(*made, rule, about, loaded, pace))
    return found


def _frechet(
    features: Features, own: Float[np.ndarray, "n d"], sums: Moments | Statistics
) -> tuple[Distance, Float[np.ndarray, "n"]]:
    return frechet_distance(features, moments(own), sums), frechet_influence(own, sums.mean, sums.covariance)


def _kernel(
    features: Features, own: Float[np.ndarray, "n d"], kept: Float[np.ndarray, "m d"] | None
) -> tuple[Distance, Float[np.ndarray, "n"]]:
    assert kept is not None  # it was asked for
    return kernel_distance(features, own, kept), kernel_influence(own, kept)


def _number(
    distance: Distance, moved: Float[np.ndarray, "n"], rule: str, place: str, loaded: Loaded, pace: Pace
) -> Number:
    count = "an unknown number" if distance.reference_count is None else f"{distance.reference_count:,}"
    file = "" if distance.reference is None else f" (sha256 {distance.reference[:16]})"
    spread = "" if distance.spread is None else f"; standard deviation over its subsets {distance.spread:.3g}"
    about = (
        f"{distance.features}; {distance.resize}; {distance.count:,} images against {count} of {place}{file}{spread}"
    )
    title = f"{distance.name} ({_RULE[rule]})"
    return Number(title, about, loaded.weights, distance.value + moved, pace.images / pace.seconds)
