"""Where AsynDM's objects are (arXiv 2510.04504): in the attention of the run as it goes, or in masks that are given."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.types import Prediction


def thresholded(
    maps: Float[Array, "b _gh _gw k"], threshold: float | Float[Array, ""] = 1.0
) -> Bool[Array, "b _gh _gw k"]:
    """Where each object is: its attention is at least `threshold` times its mean over the image.

    An object without any attention (a prompt of fewer objects than others in its batch has such) is nowhere.
    """
    maps = maps.astype(jnp.float32)
    # the float32 mean of equal values is not exact, and an even map must be all of the object
    low = maps.min((1, 2), keepdims=True)
    mean = low + (maps - low).mean((1, 2), keepdims=True)
    return (maps >= threshold * mean) & (mean > 0)


def disjoint(masks: Bool[Array, "_b _gh _gw k"], k: Float[Array, "_b2 k"]) -> Bool[Array, "_b3 _gh _gw k"]:
    """The masks with every cell given to one object: the one with the highest k, of equal ones the first."""
    rank = jnp.where(masks, k[:, None, None], -jnp.inf)
    first = rank.argmax(-1, keepdims=True) == jnp.arange(masks.shape[-1]).reshape(1, 1, 1, -1)
    return first & masks


def nearest(masks: Shaped[Array, "b _gh _gw k"], cells: timefield.Grid) -> Shaped[Array, "b _gh2 _gw2 k"]:
    """Masks or labels on another grid, each cell from the one that it lies in; any two grids fit."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(cells, masks.shape[1:3], strict=True))
    return masks[:, rows][:, :, columns]


@checks.dataclass
class Dynamic:
    """The masks that the network's attention shows at every step: `A >= threshold mean(A)`, A = `pred.aux["maps"]`.

    The first mask is all ones. The mask of a step's maps decides where the next step lands.

    Raises:
        ValueError: a threshold that is no number from 0 on.
    """

    threshold: Any = 1.0

    def __post_init__(self):
        checks.numbers("threshold", self.threshold, 0)

    def masks(self, pred: Prediction, cells: timefield.Grid, objects: int | None) -> Bool[Array, "b gh gw k"]:
        """The masks of a prediction on the grid `cells`.

        Raises:
            ValueError: no attention maps, or maps of another number of objects than `objects` (None: any).
        """
        checks.given("threshold", self.threshold)
        if "maps" not in pred.aux:
            raise ValueError(
                'expected attention maps in the prediction (aux["maps"], which a network with text tokens gives when '
                f"its condition names the objects in `spans`), got {sorted(pred.aux) or 'nothing'} beside the image"
            )
        maps = pred.aux["maps"]
        if objects is not None and maps.shape[-1] != objects:
            raise ValueError(f"expected attention maps of {objects} objects, one for each k, got {maps.shape[-1]}")
        return nearest(thresholded(maps, self.threshold), cells)


@checks.dataclass
class Fixed:
    """Masks that are known before the run: drawn by a user, or from another run's maps (`from_maps`).

    mask: [b|1, gh, gw, k], 1 (more than 1/2) where object k is. On a grid finer than the field's a cell belongs to an
    object if at least half of it does.

    Raises:
        ValueError: no masks [b, gh, gw, k], or numbers outside of 0 ... 1.
    """

    mask: Any  # Float[Array, "b gh gw k"]

    def __post_init__(self):
        if checks.is_array(self.mask):
            checks.shaped("masks", self.mask, "b gh gw k")
            checks.numbers("masks", self.mask, 0, 1)

    def masks(self, cells: timefield.Grid, objects: int | None) -> Bool[Array, "b gh gw k"]:
        """The masks on the grid `cells`; an axis of size 1 stays.

        Raises:
            ValueError: no masks [b, gh, gw, k], or of another number of objects than `objects` (None: any).
        """
        checks.shaped("masks", self.mask, "b gh gw k")
        mask = jnp.asarray(self.mask)
        if mask.ndim != 4 or (objects is not None and mask.shape[-1] != objects):
            raise ValueError(f"expected masks [b, gh, gw, {objects or 'k'}], one for each k, got shape {mask.shape}")
        hard = (mask > 0.5).astype(jnp.float32)
        return timefield.resize(hard, cells) >= 0.5


def everywhere() -> Fixed:
    """One object that is the whole image: all cells on the curve (DM_concave), at the price of a scalar time."""
    return Fixed(jnp.ones((1, 1, 1, 1), jnp.float32))


def from_maps(maps: Float[Array, "b gh gw k"], threshold: float | Float[Array, ""] = 1.0) -> Fixed:
    """Fixed masks from attention maps averaged over the steps of a synchronous run (`trace` of `sample` collects them).

    Args:
        maps: [b, gh, gw, k].
        threshold: as in `Dynamic`.

    Raises:
        ValueError: no maps [b, gh, gw, k] of numbers from 0 on, or a threshold that is none.
    """
    checks.shaped("attention maps", maps, "b gh gw k")
    checks.numbers("attention maps", maps, 0)
    checks.given("threshold", threshold)
    checks.numbers("threshold", threshold, 0)
    return Fixed(thresholded(maps, threshold).astype(jnp.float32))
