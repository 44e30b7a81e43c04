"""From settings to the schedule of a batch; what is compiled in is decided once for all batches of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from asyncpatch_jax import timefield
from asyncpatch_jax.pretrained.folders.loading import Pretrained
from asyncpatch_jax.pretrained.requests import Request, cells, latent_shape, omegas
from asyncpatch_jax.pretrained.settings import Settings
from asyncpatch_jax.process import Discrete
from asyncpatch_jax.sampling.schedules import Graded, Inpaint, Schedule, Synchronous
from asyncpatch_jax.sampling.schedules.concave import Concave
from asyncpatch_jax.sampling.schedules.masks import Dynamic, Fixed, everywhere


@dataclass(frozen=True)
class Plan:
    """How the cells of every batch of a run move.

    start: the time that the scheduler begins at, where cells are all noise.
    grid: times of a synchronous run [s + 1], as numbers; without its first steps if no cell moves in them.
    hard: masks are 0 or 1 only, so that a field holds few times.
    one_omega: all objects of all images go equally slow: the same.
    """

    settings: Settings
    start: float
    grid: tuple[float, ...]
    cells: timefield.Grid
    shift: float
    levels: int | None
    joint: bool
    hard: bool
    one_omega: bool

    def schedule(self, mask: Any, omegas: Any, object_masks: Any) -> Schedule:
        """The schedule of a batch.

        Args:
            mask: of pixels, 1 = generate [b, h, w, 1]; None: everything is generated.
            omegas: of each object [b, k], negative for those that an image does not have.
            object_masks: [b, gh, gw, k], for fixed and drawn masks.

        Raises:
            ValueError: an omega that the curve does not allow.
        """
        grid = jnp.asarray(self.grid, jnp.float32)
        # a cell changes as much as any pixel in it
        coarse = None if mask is None else timefield.resize(jnp.asarray(mask, jnp.float32), self.cells, "max")
        if self.settings.schedule == "sync":
            if coarse is None:
                return Synchronous(grid)
            return Inpaint(coarse, grid) if self.hard else Graded(coarse, grid)
        k, masks = jnp.float32(self.settings.omega), everywhere()
        if self.settings.schedule == "asyndm":
            known = np.maximum(omegas, 0)
            k = jnp.float32(known.max()) if self.one_omega else jnp.asarray(known)
            dynamic = self.settings.masks == "dynamic"
            masks = Dynamic(self.settings.threshold) if dynamic else Fixed(jnp.asarray(object_masks))
        return Concave(
            grid,
            k,
            masks,
            self.cells,
            self.settings.curve,
            # a run that begins below all noise, as Stable Diffusion's, leaves slow cells room above
            head_start=self.start < 1,
            levels=self.levels,
            shift=self.shift,
            text_time=self.settings.text_time if self.joint else None,
            mask=coarse if self.hard else None,
            strength=None if self.hard else coarse,
        )

    def synchronous(self) -> "Plan":
        """The same with all cells together: the run whose attention gives fixed masks."""
        return replace(self, settings=replace(self.settings, schedule="sync"))


def plan(pretrained: Pretrained, requests: Sequence[Request], settings: Settings) -> Plan:
    """The plan of a run of these images.

    Raises:
        ValueError: more steps than the scheduler has, or an omega that the curve does not allow.
    """
    tokens = int(np.prod(latent_shape(pretrained, settings)[:2])) // 4
    scheduler = pretrained.scheduler
    grid = np.asarray(scheduler.grid(settings.num_steps, tokens)).tolist()
    masks = [request.mask for request in requests if request.mask is not None]
    table = omegas(requests, settings)
    together = masks and settings.schedule == "sync"
    made = Plan(
        settings,
        grid[0],
        tuple(_moving(grid, max(float(mask.max()) for mask in masks)) if together else grid),
        cells(pretrained, settings),
        scheduler.shift(tokens),
        scheduler.process.num_steps if isinstance(scheduler.process, Discrete) else None,
        joint=pretrained.family in ("sd3", "flux", "kontext"),
        hard=bool(masks) and all(np.isin(mask, (0, 1)).all() for mask in masks),
        one_omega=len(np.unique(table[table >= 0])) == 1 and bool((table >= 0).any(1).all()),
    )
    # a schedule refuses what it cannot follow; here it does so for all images at once, before one is made
    nowhere = np.zeros((1, 1, 1, table.shape[1]), np.float32)
    made.schedule(masks[0][None] if masks else None, table, nowhere)
    return made


def _moving(grid: list[float], most: float) -> list[float]:
    """The grid from the last time at or above `most`: until then, no cell that starts there moves."""
    first = max((i for i, t in enumerate(grid[:-1]) if t >= most), default=0)
    return grid[first:]
