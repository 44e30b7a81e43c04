"""MCG: replacement, and a step down the gradient of the distance to what is known."""

from dataclasses import dataclass

from asyncpatch_jax import checks
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.sampling.inpainting.base import Step
from asyncpatch_jax.sampling.inpainting.gradient import Differentiated, distance_gradient
from asyncpatch_jax.sampling.solvers import DDIM
from asyncpatch_jax.types import Image


@dataclass(frozen=True)
class MCG(Differentiated):
    """Manifold constrained gradient (Chung et al. 2022, arXiv 2206.00941, algorithm 1).

    A step down, minus `step_size` times the gradient by x of `||known - x0||` (over an image's known pixels); then the
    known pixels are replaced by noised ones. Biased, and a step size belongs to one number of steps, process and size
    of images: tune it. The authors' code also clips x0, and replaces by pixels at the time before the step.

    Attributes:
        step_size: 1 in the authors' code, for 1,000 steps of a variance-preserving process at 256 x 256 pixels.
        eta: of DDIM's step down; 1 is ancestral sampling.

    Raises:
        ValueError: a negative number.
    """

    step_size: float = 1.0
    eta: float = 1.0

    def __post_init__(self):
        checks.number("step_size", self.step_size, 0)
        checks.number("eta", self.eta, 0)

    def step(self, at: Step) -> Image:
        down, replaced = keys_lib.split(at.keys, 2)
        pred, gradient = distance_gradient(at)
        x, _ = DDIM(at.process, self.eta).step(at.denoise, pred, at.x, at.now, at.below, down, None)
        return at.with_known(x - self.step_size * gradient, at.below, replaced)
