"""Many images by a function of one batch size."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from asyncpatch_jax import checks


def batched(
    call: Callable[[Any], Any], inputs: Any, *, batch: int, on_batch: Callable[[int], None] = lambda done: None
) -> list[Any]:
    """`call` on slices of `batch` of every array in `inputs` [n, ...]; the last is filled up: only one size compiles.

    Returns:
        What `call` gave for each, on the host; the filler is still in the last.

    Raises:
        ValueError: a batch below 1.
    """
    checks.whole("batch", batch)
    count = len(jax.tree.leaves(inputs)[0])
    results = []
    for first in range(0, count, batch):
        index = np.minimum(np.arange(first, first + batch), count - 1)
        results.append(jax.device_get(call(jax.tree.map(lambda leaf, index=index: leaf[index], inputs))))
        on_batch(min(first + batch, count))
    return results
