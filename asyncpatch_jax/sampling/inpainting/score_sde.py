"""Score-SDE's inpainting: known pixels are replaced by noised ones after each step."""

from dataclasses import dataclass

import jax.numpy as jnp

from asyncpatch_jax import checks
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.sampling.inpainting.base import Step, Stepwise
from asyncpatch_jax.sampling.solvers import DDIM
from asyncpatch_jax.types import Image, ImageKeys, Prediction


@dataclass(frozen=True)
class ScoreSDE(Stepwise):
    """Replacement: ordinary sampling, after each step of which the known pixels are `known`, noised to the step's time.

    Song et al. 2021 (arXiv 2011.13456, appendix I.2). What is generated hears of the known pixels through the network
    alone, which cannot know that they will not move: biased, however many steps. The authors' code also has Langevin
    corrections, one before each step down, and replaces by pixels at the time before the step, so that they are not
    exact at the end; here they have the time of the image.

    Attributes:
        eta: of DDIM's step down; 1 is ancestral sampling.
        corrections: Langevin moves at each time, a call each; 1 in the authors' code.
        snr: the size of such a move: how large the noise is beside the score.

    Raises:
        ValueError: a negative eta, no whole number of corrections, or an snr that is not positive.
    """

    eta: float = 1.0
    corrections: int = 0
    snr: float = 0.16

    def __post_init__(self):
        checks.number("eta", self.eta, 0)
        checks.whole("corrections", self.corrections, 0)
        checks.number("snr", self.snr, above=0)

    def calls(self, num_steps: int) -> int:
        return num_steps * (1 + self.corrections)

    def step(self, at: Step) -> Image:
        down, replaced, *more = keys_lib.split(at.keys, 2 + 2 * self.corrections)
        pred = at.denoise(at.x, at.now)
        for i in range(self.corrections):
            x = at.with_known(self._corrected(at, pred, more[2 * i]), at.now, more[2 * i + 1])
            at = at._replace(x=x)
            pred = at.denoise(at.x, at.now)
        x, _ = DDIM(at.process, self.eta).step(at.denoise, pred, at.x, at.now, at.below, down, None)
        return at.with_known(x, at.below, replaced)

    def _corrected(self, at: Step, pred: Prediction, keys: ImageKeys) -> Image:
        """A Langevin move (algorithm 5 of the paper), its size by each image's own score instead of the batch's."""
        score = -pred.eps / at.process.sigma(at.now.level)
        noise = keys_lib.normal(keys, at.x.shape[1:])
        sizes = [jnp.sqrt((a**2).sum((1, 2, 3), keepdims=True)) for a in (noise, score)]
        step = 2.0 * (self.snr * sizes[0] / jnp.maximum(sizes[1], 1e-12)) ** 2
        return at.x + step * score + jnp.sqrt(2.0 * step) * noise
