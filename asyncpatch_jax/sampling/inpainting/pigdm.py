"""PiGDM: pseudo-inverse guidance, for known pixels without noise."""

from dataclasses import dataclass

from asyncpatch_jax import checks
from asyncpatch_jax.sampling.inpainting.base import Step
from asyncpatch_jax.sampling.inpainting.gradient import Differentiated, pulled
from asyncpatch_jax.sampling.solvers import DDIM
from asyncpatch_jax.types import Image


@dataclass(frozen=True)
class PiGDM(Differentiated):
    """Pseudo-inverse guided diffusion (Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems").

    A DDIM step from t to s, plus `weight alpha_s alpha_t J^T (known - x0)`, where J is the derivative of x0 by x, and
    the difference is 0 in the hole. The known pixels move with the others, and are put back at the end alone. Biased,
    and a weight belongs to one number of steps.

    Attributes:
        weight: 1 in public code.
        eta: of DDIM's step down; 0 in public code.

    Raises:
        ValueError: a negative number.
    """

    weight: float = 1.0
    eta: float = 0.0

    def __post_init__(self):
        checks.number("weight", self.weight, 0)
        checks.number("eta", self.eta, 0)

    def step(self, at: Step) -> Image:
        pred, missing, transposed = pulled(at)
        x, _ = DDIM(at.process, self.eta).step(at.denoise, pred, at.x, at.now, at.below, at.keys, None)
        scale = self.weight * at.process.alpha(at.below.level) * at.process.alpha(at.now.level)
        return x + scale * transposed(missing)
