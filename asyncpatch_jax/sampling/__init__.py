"""Sampling: schedules say when a cell moves, solvers how, guidance which prediction they see."""

from asyncpatch_jax.sampling.guidance import classifier_free, input_guidance
from asyncpatch_jax.sampling.loop import SamplerState, sample, start
from asyncpatch_jax.sampling.paste import paste_back
from asyncpatch_jax.sampling.schedules import (
    Autoregressive,
    Graded,
    Inpaint,
    Schedule,
    Synchronous,
    Table,
    cosine,
    linear,
    logsnr,
    raster,
    shifted,
    shuffled,
)
from asyncpatch_jax.sampling.solvers import DDIM, DDPM, DPMSolver2M, Euler, Heun, Solver

__all__ = [
    "DDIM",
    "DDPM",
    "Autoregressive",
    "DPMSolver2M",
    "Euler",
    "Graded",
    "Heun",
    "Inpaint",
    "SamplerState",
    "Schedule",
    "Solver",
    "Synchronous",
    "Table",
    "classifier_free",
    "cosine",
    "input_guidance",
    "linear",
    "logsnr",
    "paste_back",
    "raster",
    "sample",
    "shifted",
    "shuffled",
    "start",
]
