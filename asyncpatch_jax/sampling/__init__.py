"""Sampling: schedules say when a cell moves, solvers how, guidance which prediction they see."""

from asyncpatch_jax.sampling.guidance import classifier_free, input_guidance, look_ahead
from asyncpatch_jax.sampling.loop import SamplerState, sample, start
from asyncpatch_jax.sampling.paste import paste_back
from asyncpatch_jax.sampling.schedules import (
    Autoregressive,
    DualLoop,
    Graded,
    Inpaint,
    Schedule,
    Synchronous,
    Table,
    UncertaintyGuided,
    cosine,
    linear,
    logsnr,
    raster,
    repaint,
    repaint_cost,
    repaint_path,
    shifted,
    shuffled,
)
from asyncpatch_jax.sampling.solvers import DDIM, DDPM, DPMSolver2M, Euler, Heun, Solver

__all__ = [
    "DDIM",
    "DDPM",
    "Autoregressive",
    "DPMSolver2M",
    "DualLoop",
    "Euler",
    "Graded",
    "Heun",
    "Inpaint",
    "SamplerState",
    "Schedule",
    "Solver",
    "Synchronous",
    "Table",
    "UncertaintyGuided",
    "classifier_free",
    "cosine",
    "input_guidance",
    "linear",
    "logsnr",
    "look_ahead",
    "paste_back",
    "raster",
    "repaint",
    "repaint_cost",
    "repaint_path",
    "sample",
    "shifted",
    "shuffled",
    "start",
]
