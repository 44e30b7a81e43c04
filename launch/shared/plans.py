"""Schedules by name, for images that are made from noise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from asyncpatch_jax.sampling.schedules import (
    Autoregressive,
    DualLoop,
    Schedule,
    Synchronous,
    UncertaintyGuided,
    raster,
    shuffled,
)
from asyncpatch_jax.timefield import Grid
from asyncpatch_jax.training.perlin import by_rank, perlin_noise
from launch.shared import build

PLANS = ("sync", "autoregressive", "random_order", "two_phases", "uncertainty", "dual_loop", "look_ahead")
_PATCHES = 4  # to a side, in autoregression
_CELLS = 16  # to a side at most, where the network's uncertainty decides


class Plan(NamedTuple):
    """A schedule, how often the loop asks it, and the cells that look ahead, if any do."""

    schedule: Schedule
    num_steps: int
    ahead: Grid | None = None


def plan(name: str, run: build.Run) -> Plan:
    """The schedule `name` at the run's own number of steps and grid of times.

    Autoregression goes over 4x4 patches, in reading or random order, a quarter of the steps each: four times the steps
    of a synchronous run. Two phases are RAD's way to make an image: all but a region cut from Perlin noise, then that
    region, in half of the steps each. The dual loop takes four calls to a step, look-ahead two.

    Raises:
        ValueError: unknown name, or a schedule that needs the log-variance head that the network lacks, or several
            times in an image, of a supervised run.
    """
    if name not in PLANS:
        raise ValueError(f"expected a schedule out of {', '.join(PLANS)}, got {name!r}")
    if name != "sync" and run.model.reference:
        raise ValueError(f"expected sync of a supervised run, whose network is told one time an image, got {name!r}")
    if name in ("uncertainty", "dual_loop", "look_ahead") and not run.model.log_variance:
        raise ValueError(f"expected a network with a log-variance head for {name}, got one trained without")
    steps = run.config.sample.steps
    grid = build.grid(run.config, steps, run.process)
    judged = cells(run)
    if name in ("autoregressive", "random_order"):
        patches = _divide(build.field_grid(run.config), _PATCHES)
        groups = patches[0] * patches[1]
        order = jnp.asarray(raster(patches))
        if name == "random_order":
            order = shuffled(jax.random.key(0), order, groups)
        schedule = Autoregressive(order, build.grid(run.config, -(-steps // _PATCHES), run.process), groups)
        return Plan(schedule, schedule.num_steps)
    if name == "two_phases":
        fine = build.field_grid(run.config)
        region = by_rank(perlin_noise(jax.random.key(0), fine, max(fine) / 2), 0.5)
        halves = build.grid(run.config, -(-steps // 2), run.process)
        phases = Autoregressive(region.astype(jnp.int32)[None, :, :, None], halves, 2)
        return Plan(phases, phases.num_steps)
    if name == "uncertainty":
        return Plan(UncertaintyGuided(grid, judged), steps)
    if name == "dual_loop":
        schedule = DualLoop(grid, judged)
        return Plan(schedule, schedule.num_steps)
    return Plan(Synchronous(grid), steps, judged if name == "look_ahead" else None)


def cells(run: build.Run) -> Grid:
    """Cells that are judged or ordered one by one: those of the run's training fields, joined to at most 16 a side."""
    return _divide(build.field_grid(run.config), _CELLS)


def _divide(grid: Grid, most: int) -> Grid:
    """The finest grid of at most `most` cells to a side whose cells are whole cells of `grid`."""
    rows, columns = (max(count for count in range(1, most + 1) if side % count == 0) for side in grid)
    return rows, columns
