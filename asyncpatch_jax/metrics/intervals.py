"""How sure a mean is: bootstrap intervals (Efron 1979), of numbers that may come in groups."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from asyncpatch_jax import checks


class Interval(NamedTuple):
    """A mean and the bounds between which it lies with some confidence."""

    mean: float
    low: float
    high: float


def bootstrap(
    values: Float[np.ndarray, "n"],
    groups: Sequence[object] | Shaped[np.ndarray, "n"] | None = None,
    *,
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean; of paired scores, give their differences.

    Args:
        groups: what each number belongs to, such as its prompt. Groups are drawn again as a whole, with all that is in
            them, for images of one prompt are no independent evidence about prompts. None: each number is its own.
        level: the confidence.
        samples: how often all is drawn again.

    Raises:
        ValueError: no numbers, numbers that are not finite, not a group for each, or a level outside of (0, 1).
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        found = checks.shown(values) if values.ndim == 1 else f"shape {values.shape}"
        raise ValueError(f"expected finite numbers [n], at least one, got {found}")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"expected a group for each of {len(values)} numbers, got {len(groups)}")
    if not 0 < level < 1:
        raise ValueError(f"expected a level in (0, 1), got {level}")
    member = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    totals, counts = np.bincount(member, values), np.bincount(member)
    rng, means = np.random.default_rng(seed), np.empty(samples)
    step = max(1, 2**22 // len(totals))  # a table of all draws of many groups would be gigabytes
    for start in range(0, samples, step):
        drawn = rng.integers(0, len(totals), (min(step, samples - start), len(totals)))
        means[start : start + step] = totals[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return Interval(float(values.mean()), float(low), float(high))
