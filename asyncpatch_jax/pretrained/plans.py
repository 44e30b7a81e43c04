"""From settings to the schedule of a batch; what is compiled in is decided once for all batches of a run."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from asyncpatch_jax import timefield
from asyncpatch_jax.pretrained.loading import Pretrained
from asyncpatch_jax.pretrained.requests import cells, latent_shape
from asyncpatch_jax.pretrained.settings import Settings
from asyncpatch_jax.process import Discrete
from asyncpatch_jax.sampling.schedules import Graded, Inpaint, Schedule, Synchronous
from asyncpatch_jax.sampling.schedules.concave import Concave
from asyncpatch_jax.sampling.schedules.masks import Dynamic, Fixed, everywhere


@dataclass(frozen=True)
class Plan:
    """How the cells of every batch of a run move.

    grid: times of a synchronous run [s + 1], as numbers.
    hard: masks are 0 or 1 only, so that a field holds few times.
    one_omega: all objects of all images go equally slow: the same.
    """

    settings: Settings
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
            omegas: of each object [b, k].
            object_masks: [b, gh, gw, k], for fixed and drawn masks.
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
            k = jnp.asarray(omegas)[0, 0] if self.one_omega else jnp.asarray(omegas)
            dynamic = self.settings.masks == "dynamic"
            masks = Dynamic(self.settings.threshold) if dynamic else Fixed(jnp.asarray(object_masks))
        return Concave(
            grid,
            k,
            masks,
            self.cells,
            self.settings.curve,
            # a run that begins below all noise, as Stable Diffusion's, leaves slow cells room above
            head_start=self.grid[0] < 1,
            levels=self.levels,
            shift=self.shift,
            text_time=self.settings.text_time if self.joint else None,
            mask=coarse if self.hard else None,
            strength=None if self.hard else coarse,
        )


def plan(pretrained: Pretrained, settings: Settings, mask: Any, omegas: Any) -> Plan:
    """The plan of a run of these images.

    Args:
        mask: of all images of the run [n, h, w, 1], or None.
        omegas: of all their objects [n, k].

    Raises:
        ValueError: more steps than the scheduler has.
    """
    tokens = int(np.prod(latent_shape(pretrained, settings)[:2])) // 4
    scheduler = pretrained.scheduler
    return Plan(
        settings,
        tuple(np.asarray(scheduler.grid(settings.num_steps, tokens)).tolist()),
        cells(pretrained, settings),
        scheduler.shift(tokens),
        scheduler.process.num_steps if isinstance(scheduler.process, Discrete) else None,
        joint=pretrained.family in ("sd3", "flux", "kontext"),
        hard=mask is not None and bool(np.isin(mask, (0, 1)).all()),
        one_omega=len(np.unique(omegas)) == 1,
    )
