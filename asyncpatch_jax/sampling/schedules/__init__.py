"""Schedules: when each cell moves."""

from asyncpatch_jax.sampling.schedules.autoregressive import Autoregressive, raster, shuffled
from asyncpatch_jax.sampling.schedules.base import Planned, Schedule
from asyncpatch_jax.sampling.schedules.grids import Synchronous, Table, cosine, linear, logsnr, shifted
from asyncpatch_jax.sampling.schedules.inpaint import Graded, Inpaint

__all__ = [
    "Autoregressive",
    "Graded",
    "Inpaint",
    "Planned",
    "Schedule",
    "Synchronous",
    "Table",
    "cosine",
    "linear",
    "logsnr",
    "raster",
    "shifted",
    "shuffled",
]
