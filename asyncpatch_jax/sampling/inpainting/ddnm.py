"""DDNM: the prediction's known pixels are what is known, with time travel if wanted."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from asyncpatch_jax import checks
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.sampling.inpainting.base import Step, Stepwise
from asyncpatch_jax.sampling.schedules.repaint import repaint_path
from asyncpatch_jax.types import Image


@dataclass(frozen=True)
class DDNM(Stepwise):
    """The null space alone is the network's (Wang et al. 2023, arXiv 2212.00490, algorithms 1 and 2).

    `x' = alpha' x0' + sigma' (sqrt(1 - eta^2) eps + eta z)`, where x0' is the network's x0 in the hole and `known`
    elsewhere, and eps is the network's everywhere. Biased: where data are Gaussian, less and less with more steps if
    eta is 0, and of too little spread if not. With time travel, every `travel` levels the network's own x0 is noised
    as many levels up, `repeat - 1` times.

    Attributes:
        eta: the share of sigma that is fresh noise (not of the posterior's spread, as DDIM's is).
        travel: levels between two journeys up, and their height.
        repeat: how often each stretch is gone down; 1 is no travel.

    Raises:
        ValueError: an eta outside of 0 ... 1, or whole numbers below 1; later, a journey of as many levels as the grid.
    """

    eta: float = 0.85
    travel: int = 1
    repeat: int = 1

    def __post_init__(self):
        checks.number("eta", self.eta, 0, 1)
        checks.whole("travel", self.travel)
        checks.whole("repeat", self.repeat)

    def path(self, num_steps: int) -> Int[np.ndarray, "s"]:
        if self.repeat == 1:
            return super().path(num_steps)
        return repaint_path(num_steps, self.travel, self.repeat)

    def step(self, at: Step) -> Image:
        pred = at.denoise(at.x, at.now)
        noise = keys_lib.normal(at.keys, at.x.shape[1:])
        alpha, sigma = at.process.alpha(at.then.level), at.process.sigma(at.then.level)
        up = alpha * pred.x0 + sigma * noise
        x0 = jnp.where(at.free, pred.x0, at.known)
        down = alpha * x0 + sigma * ((1.0 - self.eta**2) ** 0.5 * pred.eps + self.eta * noise)
        return jnp.where(at.then.level > at.below.level, up, down)
