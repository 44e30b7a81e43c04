"""Solvers: how a cell moves from its time to the next. All per cell, all safe where nothing moves or sigma is 0."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax import timefield
from asyncpatch_jax.process import Process
from asyncpatch_jax.types import Denoiser, Image, ImageKeys, Prediction, Times


@runtime_checkable
class Solver(Protocol):
    """Moves an image from one field to the next; a frozen dataclass of settings.

    A cell that does not move may come back with rounding errors: the loop holds it bit for bit.
    """

    def init(self, x: Image) -> Any:
        """The solver's memory before the first step."""

    def step(
        self,
        denoise: Denoiser,
        pred: Prediction,
        x: Image,
        times: Times,
        times_next: Times,
        keys: ImageKeys,
        carry: Any,
    ) -> tuple[Image, Any]:
        """The image at `times_next.level`, from `x` at `times.level` where the prediction is `pred`."""


@dataclass(frozen=True)
class DDIM:
    """DDIM with stochasticity eta (Song et al. 2021, eq. 12): 0 is deterministic, 1 is ancestral sampling.

    `x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z`, `s = eta sqrt((sigma'^2 / sigma^2)(1 - alpha^2 / alpha'^2))`.
    """

    process: Process
    eta: float = 0.0

    def init(self, x: Image) -> None:
        return None

    def step(self, denoise, pred, x, times, times_next, keys, carry):
        t, t_next = timefield.like(times.level, x), timefield.like(times_next.level, x)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        alpha_next, sigma_next = self.process.alpha(t_next), self.process.sigma(t_next)
        if self.eta == 0.0:
            return alpha_next * pred.x0 + sigma_next * pred.eps, carry
        ratio = alpha / jnp.where(alpha_next == 0, 1.0, alpha_next)
        fresh = sigma_next / jnp.where(sigma == 0, 1.0, sigma) * jnp.sqrt(jnp.maximum(1.0 - ratio**2, 0.0))
        s = jnp.minimum(self.eta * fresh, sigma_next)
        noise = keys_lib.normal(keys, x.shape[1:])
        return alpha_next * pred.x0 + jnp.sqrt(sigma_next**2 - s**2) * pred.eps + s * noise, carry
