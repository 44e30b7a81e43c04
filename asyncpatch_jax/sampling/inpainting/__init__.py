"""Ways to fill the holes of images, one interface for all: the time field, and what is done with ordinary networks."""

from asyncpatch_jax.sampling.inpainting.asyncpatch import AsyncPatch
from asyncpatch_jax.sampling.inpainting.base import Inpainter, Step, Stepwise
from asyncpatch_jax.sampling.inpainting.ddnm import DDNM
from asyncpatch_jax.sampling.inpainting.ddrm import DDRM
from asyncpatch_jax.sampling.inpainting.deqir import DeqIR
from asyncpatch_jax.sampling.inpainting.dps import DPS
from asyncpatch_jax.sampling.inpainting.mcg import MCG
from asyncpatch_jax.sampling.inpainting.pigdm import PiGDM
from asyncpatch_jax.sampling.inpainting.rad import RAD
from asyncpatch_jax.sampling.inpainting.repaint import RePaint
from asyncpatch_jax.sampling.inpainting.score_sde import ScoreSDE
from asyncpatch_jax.sampling.inpainting.supervised import Supervised

__all__ = [
    "DDNM",
    "DDRM",
    "DPS",
    "MCG",
    "RAD",
    "AsyncPatch",
    "DeqIR",
    "Inpainter",
    "PiGDM",
    "RePaint",
    "ScoreSDE",
    "Step",
    "Stepwise",
    "Supervised",
]
