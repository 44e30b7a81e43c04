"""DDRM for masks without noise."""

from dataclasses import dataclass

import jax.numpy as jnp

from asyncpatch_jax import checks
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.sampling.inpainting.base import Step, Stepwise
from asyncpatch_jax.types import Image


@dataclass(frozen=True)
class DDRM(Stepwise):
    """Denoising diffusion restoration (Kawar et al. 2022, arXiv 2201.11793, section 3), for known pixels.

    A mask's singular values are 1 and 0. With x0 and eps the network's and z fresh noise, at the time below a pixel of
    the hole is `alpha x0 + sigma (sqrt(1 - eta^2) eps + eta z)`, and a known one
    `alpha (eta_b known + (1 - eta_b) x0) + sigma z`. Biased, as DDNM is. The authors' code ends at the network's x0 in
    the known pixels; here they are exact.

    Attributes:
        eta: the share of sigma that is fresh noise in the hole (not of the posterior's spread, as DDIM's is).
        eta_b: how much of a known pixel's mean is what is known.

    Raises:
        ValueError: a share outside of 0 ... 1.
    """

    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self):
        checks.number("eta", self.eta, 0, 1)
        checks.number("eta_b", self.eta_b, 0, 1)

    def step(self, at: Step) -> Image:
        pred = at.denoise(at.x, at.now)
        alpha, sigma = at.process.alpha(at.below.level), at.process.sigma(at.below.level)
        noise = keys_lib.normal(at.keys, at.x.shape[1:])
        free = alpha * pred.x0 + sigma * ((1.0 - self.eta**2) ** 0.5 * pred.eps + self.eta * noise)
        held = alpha * (self.eta_b * at.known + (1.0 - self.eta_b) * pred.x0) + sigma * noise
        return jnp.where(at.free, free, held)
