"""From settings to the schedule of a batch; what is compiled in is decided once for all batches of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from asyncpatch_jax import timefield
from asyncpatch_jax.pretrained.folders.loading import Pretrained
from asyncpatch_jax.pretrained.folders.schedulers import Leveled, Scheduler
from asyncpatch_jax.pretrained.requests import Request, cells, inpaints, latent_shape, omegas
from asyncpatch_jax.pretrained.settings import Settings
from asyncpatch_jax.process import Discrete
from asyncpatch_jax.sampling.schedules import Graded, Inpaint, Schedule, Synchronous
from asyncpatch_jax.sampling.schedules.concave import Concave
from asyncpatch_jax.sampling.schedules.masks import Dynamic, Fixed, everywhere


class Background(NamedTuple):
    """The run that concave schedules lag behind, as a scheduler has it; the one place that makes them of it.

    grid: its times [s + 1], falling, as numbers.
    shift: a of `a u / (1 + (a - 1) u)`, which the grid was shifted by; 1 is none.
    levels: the number of train steps to whose levels times are rounded; None: times are continuous.
    """

    grid: tuple[float, ...]
    shift: float = 1.0
    levels: int | None = None

    @property
    def start(self) -> float:
        """The time of the first call, where cells are all noise."""
        first = self.grid[0]
        return first if self.levels is None else float(np.round(first * self.levels - 1) + 1) / self.levels

    def concave(self, k: Any, masks: Dynamic | Fixed, cells: timefield.Grid, curve: str, **more: Any) -> Concave:
        """Cells in `masks` on a curve (see `Concave`, which also says what `more` there is).

        Raises:
            ValueError: as `Concave`.
        """
        grid = jnp.asarray(self.grid, jnp.float32)
        # a run that begins below all noise, as Stable Diffusion's, leaves slow cells room above
        head_start = self.grid[0] < 1
        return Concave(grid, k, masks, cells, curve, head_start, self.levels, self.shift, **more)


def background(scheduler: Scheduler, num_steps: int, tokens: int, *, released: bool = False) -> Background:
    """What a scheduler's concave schedules lag behind.

    Args:
        tokens: of the image, for a scheduler that shifts times by them.
        released: of Stable Diffusion's levels, as the released code of AsynDM has them: steps of 1000 / n, rounded one
            by one, also where n does not divide 1000 and the public samplers take whole steps of less.

    Raises:
        ValueError: more steps than the scheduler has.
    """
    grid = np.asarray(scheduler.grid(num_steps, tokens)).tolist()
    levels = scheduler.process.num_steps if isinstance(scheduler.process, Discrete) else None
    if released and levels is not None and isinstance(scheduler.spaced, Leveled):
        index = scheduler.spaced.offset + np.arange(num_steps)[::-1] * (levels / num_steps)
        # its last move is to step 0; where that would be none, to clean data
        grid = [*((index + 1) / levels).tolist(), 1 / levels if scheduler.spaced.offset else 0.0]
    return Background(tuple(grid), scheduler.shift(tokens), levels)


@dataclass(frozen=True)
class Plan:
    """How the cells of every batch of a run move.

    grid: times of a synchronous run [s + 1], as numbers; without its first steps if no cell moves in them.
    begin: the time that a synchronous run begins at, where cells are all noise.
    behind: what cells of concave schedules lag behind.
    hard: masks are 0 or 1 only, so that a field holds few times.
    one_omega: all objects of all images go equally slow: the same.
    """

    settings: Settings
    grid: tuple[float, ...]
    begin: float
    behind: Background
    cells: timefield.Grid
    joint: bool
    hard: bool
    one_omega: bool

    @property
    def start(self) -> float:
        """The time at and above which cells begin as pure noise."""
        return self.begin if self.settings.schedule == "sync" else self.behind.start

    def schedule(self, mask: Any, omegas: Any, object_masks: Any, first: Any = None) -> Schedule:
        """The schedule of a batch.

        Args:
            mask: of pixels, 1 = generate [b, h, w, 1]; None: everything is generated.
            omegas: of each object [b, k], negative for those that an image does not have.
            object_masks: [b, gh, gw, k], for fixed and drawn masks.
            first: of dynamic masks, the object that all cells begin with [b]; None: the slowest.

        Raises:
            ValueError: an omega that the curve does not allow.
        """
        # a cell changes as much as any pixel in it
        coarse = None if mask is None else timefield.resize(jnp.asarray(mask, jnp.float32), self.cells, "max")
        if self.settings.schedule == "sync":
            grid = jnp.asarray(self.grid, jnp.float32)
            if coarse is None:
                return Synchronous(grid)
            return Inpaint(coarse, grid) if self.hard else Graded(coarse, grid)
        slow = _slow(omegas, self.settings)
        k = jnp.float32(slow.max()) if self.one_omega else jnp.asarray(slow)
        masks: Fixed | Dynamic = everywhere()
        if self.settings.schedule == "asyndm":
            dynamic = self.settings.masks == "dynamic"
            masks = Dynamic(self.settings.threshold) if dynamic else Fixed(jnp.asarray(object_masks))
        return self.behind.concave(
            k,
            masks,
            self.cells,
            self.settings.curve,
            text_time=self.settings.text_time if self.joint else None,
            mask=coarse if self.hard else None,
            strength=None if self.hard else coarse,
            first=None if first is None or self.one_omega else jnp.asarray(first),
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
    grid = np.asarray(pretrained.scheduler.grid(settings.num_steps, tokens)).tolist()
    masks = [request.mask for request in requests if request.mask is not None and not inpaints(pretrained)]
    table = omegas(requests, settings)
    together = masks and settings.schedule == "sync"
    # an image without objects lags nowhere
    lagging = settings.schedule == "concave" or bool((table >= 0).any(1).all())
    known = _slow(table, settings)[(table >= 0) if settings.schedule == "asyndm" else ...]
    made = Plan(
        settings,
        tuple(_moving(grid, max(float(mask.max()) for mask in masks)) if together else grid),
        grid[0],
        background(pretrained.scheduler, settings.num_steps, tokens, released=settings.reference_compat),
        cells(pretrained, settings),
        joint=pretrained.family in ("sd3", "flux", "kontext"),
        hard=bool(masks) and all(np.isin(mask, (0, 1)).all() for mask in masks),
        one_omega=len(np.unique(known)) == 1 and lagging,
    )
    # a schedule refuses what it cannot follow; here it does so for all images at once, before one is made
    nowhere = np.zeros((1, 1, 1, table.shape[1]), np.float32)
    made.schedule(masks[0][None] if masks else None, table, nowhere)
    return made


def _slow(omegas: Any, settings: Settings) -> Any:
    """How much slower each object goes [b, k], or the whole image: as its slowest object, as in the released code."""
    if settings.schedule == "asyndm":
        return np.maximum(omegas, 0)
    most = np.max(omegas, axis=1, keepdims=True)
    return np.where(most < 0, np.float32(settings.omega), most)


def _moving(grid: list[float], most: float) -> list[float]:
    """The grid from the last time at or above `most`: until then, no cell that starts there moves."""
    first = max((i for i, t in enumerate(grid[:-1]) if t >= most), default=0)
    return grid[first:]
