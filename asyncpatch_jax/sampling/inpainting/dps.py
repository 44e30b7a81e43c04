"""DPS: a step down the gradient of the distance to what is known, and nothing replaced."""

from dataclasses import dataclass

from asyncpatch_jax import checks
from asyncpatch_jax.sampling.inpainting.base import Step
from asyncpatch_jax.sampling.inpainting.gradient import Differentiated, distance_gradient
from asyncpatch_jax.sampling.solvers import DDIM
from asyncpatch_jax.types import Image


@dataclass(frozen=True)
class DPS(Differentiated):
    """Diffusion posterior sampling (Chung et al. 2023, arXiv 2209.14687, algorithm 1), without noise in what is known.

    A step down, minus `step_size` times the gradient by x of `||known - x0||` (over an image's known pixels). The known
    pixels move with the others, and are put back at the end alone. Biased, and a step size belongs to one number of
    steps, process and size of images: tune it.

    Attributes:
        step_size: .5 in the authors' code for inpainting, for 1,000 steps of a variance-preserving process at 256 x 256
            pixels, known up to noise of .05.
        eta: of DDIM's step down; 1 is ancestral sampling.

    Raises:
        ValueError: a negative number.
    """

    step_size: float = 0.5
    eta: float = 1.0

    def __post_init__(self):
        checks.number("step_size", self.step_size, 0)
        checks.number("eta", self.eta, 0)

    def step(self, at: Step) -> Image:
        pred, gradient = distance_gradient(at)
        x, _ = DDIM(at.process, self.eta).step(at.denoise, pred, at.x, at.now, at.below, at.keys, None)
        return x - self.step_size * gradient
