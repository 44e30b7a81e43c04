"""A time field for a pretrained network: its J distinct times are embedded and projected, and then spread over cells.

A pretrained network's features of a time turn too fast to be interpolated (a radian a timestep), so J is the number of
times that the field holds: 1 for a synchronous one, k for `FewTimes`, else one for each cell. A level coarser than the
field takes the time of each cell's top left corner, as AsynDM (arXiv 2510.04504) does.
"""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, Float

from asyncpatch_jax import timefield
from asyncpatch_jax.models.times import LevelTimes
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.types import FewTimes, TimeField


def level_times(
    t: TimeField | FewTimes,
    embed: Callable[[Float[Array, "_b j"]], Float[Array, "_b2 j e"]],
    grids: Sequence[Grid],
) -> list[LevelTimes]:
    """The field for each level of a network; `models.times.modulation` spreads a level's projected times.

    Args:
        t: in the network's units.
        embed: from J times an image [b|1, J] to their embeddings [b|1, J, e], after the silu that projections begin
            with. It may return a row for each image where the times are the same for all.
        grids: rows and columns of each level.

    Raises:
        ValueError: no field, or a grid of which neither refines the other.
    """
    # the times of all images [1, k], or an index for all, hold for any batch
    timefield.check(t, max(part.shape[0] for part in (t if isinstance(t, FewTimes) else (t,))))
    if isinstance(t, FewTimes):
        emb = embed(t.values)
        return [LevelTimes(emb, position=_picked(t.index, grid)) for grid in grids]
    emb = embed(t.reshape(t.shape[0], -1))
    cells = emb.reshape(emb.shape[0], *t.shape[1:3], emb.shape[-1])
    levels = [_picked(cells, grid) for grid in grids]
    return [
        LevelTimes(level.reshape(level.shape[0], -1, level.shape[-1]), grid=timefield.grid_of(level))
        for level in levels
    ]


def _picked(cells: jax.Array, grid: Grid) -> jax.Array:
    """Cells [b, gh, gw, d] at the top left corners of a coarser grid's; a finer grid leaves them."""
    steps = []
    for have, want in zip(cells.shape[1:3], grid, strict=True):
        if have % want and want % have:
            raise ValueError(f"expected a field whose grid refines {grid} or is refined by it, got {cells.shape[1:3]}")
        steps.append(max(have // want, 1))
    return cells[:, :: steps[0], :: steps[1]]
