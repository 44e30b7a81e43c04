"""RePaint as an inpainting method; its levels and its solver are those of the schedule of that name."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from asyncpatch_jax import checks
from asyncpatch_jax.sampling.inpainting.base import Step, Stepwise
from asyncpatch_jax.sampling.schedules.repaint import RePaint as Solver
from asyncpatch_jax.sampling.schedules.repaint import repaint_path
from asyncpatch_jax.types import Image


@dataclass(frozen=True)
class RePaint(Stepwise):
    """Replacement, and again and again up and down, so that both sides of the hole's edge hear of each other.

    Lugmayr et al. 2022 (arXiv 2201.09865): 250 levels, jumps of 10, each stretch 10 times. Biased; less so, the more
    often it resamples.

    Attributes:
        jump: levels between two jumps up, and their height.
        resample: how often each stretch is gone down.
        eta: of DDIM's step down; 1 is ancestral sampling.

    Raises:
        ValueError: a jump or a number below 1, or a negative eta; later, a jump of as many levels as the grid has.
    """

    jump: int = 10
    resample: int = 10
    eta: float = 1.0

    def __post_init__(self):
        checks.whole("jump", self.jump)
        checks.whole("resample", self.resample)
        checks.number("eta", self.eta, 0)

    def path(self, num_steps: int) -> Int[np.ndarray, "s"]:
        return repaint_path(num_steps, self.jump, self.resample)

    def step(self, at: Step) -> Image:
        solver = Solver(at.process, at.grid, at.known, at.free.astype(at.x.dtype), self.eta)
        x, _ = solver.step(at.denoise, at.denoise(at.x, at.now), at.x, at.now, at.then, at.keys, None)
        return x
