"""Schedules: when each cell moves."""

from asyncpatch_jax.sampling.schedules.autoregressive import Autoregressive, raster, shuffled
from asyncpatch_jax.sampling.schedules.base import Planned, Schedule
from asyncpatch_jax.sampling.schedules.concave import Concave
from asyncpatch_jax.sampling.schedules.grids import Synchronous, Table, cosine, linear, logsnr, shifted
from asyncpatch_jax.sampling.schedules.inpaint import Graded, Inpaint
from asyncpatch_jax.sampling.schedules.masks import Dynamic, Fixed, everywhere, from_maps
from asyncpatch_jax.sampling.schedules.repaint import RePaint, repaint, repaint_cost, repaint_path
from asyncpatch_jax.sampling.schedules.tpm import ConstantDeviation, TPMSchedule, deviation
from asyncpatch_jax.sampling.schedules.uncertainty import DualLoop, UncertaintyGuided

__all__ = [
    "Autoregressive",
    "Concave",
    "ConstantDeviation",
    "DualLoop",
    "Dynamic",
    "Fixed",
    "Graded",
    "Inpaint",
    "Planned",
    "RePaint",
    "Schedule",
    "Synchronous",
    "TPMSchedule",
    "Table",
    "UncertaintyGuided",
    "cosine",
    "deviation",
    "everywhere",
    "from_maps",
    "linear",
    "logsnr",
    "raster",
    "repaint",
    "repaint_cost",
    "repaint_path",
    "shifted",
    "shuffled",
]
