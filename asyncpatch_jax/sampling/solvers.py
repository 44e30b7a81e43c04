"""Solvers: how a cell moves from its time to the next. All per cell, all safe where nothing moves or sigma is 0."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from asyncpatch_jax import checks, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.process import Process, check_process
from asyncpatch_jax.types import Denoiser, Image, ImageKeys, Prediction, TimeField, Times


@runtime_checkable
class Solver(Protocol):
    """Moves an image from one field to the next; a frozen dataclass of settings.

    A cell that does not move may come back with rounding errors: the loop holds it bit for bit.

    A solver that draws noise says in `draws` how often a step does (no such attribute, or 0: never). Its `step` then
    has one argument more, `noise=None`: recorded noise in the place of the keys', [b, h, w, c], or [draws, b, h, w, c]
    of one that draws several times.
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

    `x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z` with `s = eta sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2)`,
    the spread of the process's own posterior q(x' | x, x0) at eta = 1. In a variance-preserving process this is the
    paper's `sqrt((sigma'^2 / sigma^2)(1 - alpha^2 / alpha'^2))`; that form exceeds sigma' near t = 0 in rectified flow,
    and the samples then lose variance with the square root of the step size only.

    Order 1 for eta = 0. An upward move of eta = 0 is DDIM inversion.

    Raises:
        ValueError: no process, or an eta that is no number from 0 on.
    """

    process: Process
    eta: float = 0.0

    def __post_init__(self):
        check_process(self.process)
        checks.number("eta", self.eta, 0)

    @property
    def draws(self) -> int:
        """How often a step draws noise."""
        return int(self.eta > 0)

    def init(self, x: Image) -> None:
        return None

    def step(self, denoise, pred, x, times, times_next, keys, carry, noise=None):
        t, t_next = timefield.like(times.level, x), timefield.like(times_next.level, x)
        alpha_next, sigma_next = self.process.alpha(t_next), self.process.sigma(t_next)
        if self.eta == 0:
            return alpha_next * pred.x0 + sigma_next * pred.eps, carry
        s = jnp.minimum(self.eta * _posterior_spread(self.process, t, t_next), sigma_next)
        noise = keys_lib.normal(keys, x.shape[1:]) if noise is None else noise
        kept = jnp.sqrt(jnp.maximum(sigma_next**2 - s**2, 0.0))
        return alpha_next * pred.x0 + kept * pred.eps + s * noise, carry


def DDPM(process: Process) -> DDIM:  # noqa: N802, the name of the method it builds
    """Ancestral sampling (Ho et al. 2020): DDIM with eta = 1."""
    return DDIM(process, eta=1.0)


@dataclass(frozen=True)
class Euler:
    """Euler's rule for the probability-flow ODE `dx/dt = alpha' x0 + sigma' eps`; order 1.

    In rectified flow the right side is the velocity `eps - x0`, and Euler is DDIM. A move to sigma = 0 lands on x0: the
    same there, and finite in processes whose sigma' is infinite at 0.
    """

    process: Process

    def __post_init__(self):
        check_process(self.process)

    def init(self, x: Image) -> None:
        return None

    def step(self, denoise, pred, x, times, times_next, keys, carry):
        return _euler(self.process, pred, x, times, times_next), carry


@dataclass(frozen=True)
class Heun:
    """Heun's rule for the same ODE (Karras et al. 2022, algorithm 1): two model calls a step, order 2.

    The second call sees the whole field after the move, so that cells support each other at their new times. Like
    Karras et al. it is Euler's rule for a move to sigma = 0, where the second slope does not exist.
    """

    process: Process

    def __post_init__(self):
        check_process(self.process)

    def init(self, x: Image) -> None:
        return None

    def step(self, denoise, pred, x, times, times_next, keys, carry):
        first = _euler(self.process, pred, x, times, times_next)
        second = denoise(first, times_next)
        t, t_next = timefield.like(times.level, x), timefield.like(times_next.level, x)
        edge = _at_the_edge(self.process, t, t_next)
        # the slopes are taken at safe times where they are not used: 0 * inf would be NaN
        slope = _slope(self.process, pred, jnp.where(edge, 1.0, t))
        slope_next = _slope(self.process, second, jnp.where(edge, 1.0, t_next))
        return jnp.where(edge, first, x + 0.5 * (t_next - t) * (slope + slope_next)), carry


class History(NamedTuple):
    """What DPMSolver2M remembers: the last x0, and each cell's last step h [b, h, w, 1], 0 where it did not move."""

    x0: Image
    h: Float[Array, "b h w 1"]


@dataclass(frozen=True)
class DPMSolver2M:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), each cell with a history of its own; one call a step, order 2.

    With lambda = log(alpha / sigma), h = lambda' - lambda and D the x0 prediction,
    `x' = (sigma' / sigma) x - alpha' expm1(-h) [D + (D - D_prev) h / (2 h_prev)]`. First order where a cell has no
    usable history: on its first move, on the move after a pause, and to sigma' = 0; from alpha = 0 (lambda = -inf) the
    limits are taken. Grids even in lambda suit it: on linear times from 1 to 0 the measured order is 1.7 to 1.8.
    """

    process: Process

    def __post_init__(self):
        check_process(self.process)

    def init(self, x: Image) -> History:
        # times and their logarithms are float32, whatever the image is
        return History(jnp.zeros_like(x), jnp.zeros((*x.shape[:3], 1), jnp.float32))

    def step(self, denoise, pred, x, times, times_next, keys, carry):
        t, t_next = timefield.like(times.level, x), timefield.like(times_next.level, x)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        alpha_next, sigma_next = self.process.alpha(t_next), self.process.sigma(t_next)
        moved = t_next != t
        # log of sigmas and alphas kept off 0, where `first` says that h has no use
        first = (alpha == 0) | (sigma == 0) | (sigma_next == 0) | (alpha_next == 0)
        safe = [jnp.where(first, 1.0, value) for value in (alpha_next, sigma, sigma_next, alpha)]
        h = jnp.log(safe[0] * safe[1] / (safe[2] * safe[3]))
        h_prev = carry.h
        usable = moved & ~first & (h_prev != 0)
        d = pred.x0 + jnp.where(usable, 0.5 * h / jnp.where(usable, h_prev, 1.0), 0.0) * (pred.x0 - carry.x0)
        # -alpha' expm1(-h), without the logarithms that are infinite at both ends
        ratio = sigma_next / jnp.where(sigma == 0, 1.0, sigma)
        after = ratio * x + (alpha_next - alpha * ratio) * d
        # up from clean data, which holds no noise to be scaled
        after = jnp.where(sigma == 0, alpha_next * pred.x0 + sigma_next * pred.eps, after)
        h = jnp.broadcast_to(jnp.where(moved & ~first, h, 0.0), carry.h.shape).astype(jnp.float32)
        return after, History(pred.x0, h)


@dataclass(frozen=True)
class ZSampling:
    """Zigzag sampling (Bai et al. 2024, arXiv 2412.10891): a step down, back up with weak guidance, and down again.

    The way back is DDIM inversion: from x at t' the weak denoiser, told t as in the authors' code, gives
    `x~ = alpha x0 + sigma eps`, and the strong one then steps from x~. What the two differ by is left in the image. The
    paper has guidance 5.5 in `denoise` and 0 in `weak`, in the first n - 1 of n steps; such a step has three calls, so
    that a run has 3n - 2 (two of a step, 2n - 1 in all, with the strong guidance). All moves are DDIM's with eta = 0.

    Attributes:
        weak: the denoiser of the way back; guidance 0 is the unconditional network.
        zigzags: how many steps, from the first on, are zigzags.

    Raises:
        ValueError: no process or denoiser, or negative `zigzags`.
    """

    process: Process
    weak: Denoiser
    zigzags: int

    def __post_init__(self):
        check_process(self.process)
        checks.function("weak", self.weak, "(x, times) -> Prediction, as bind(...) makes")
        checks.whole("zigzags", self.zigzags, 0)

    def init(self, x: Image) -> Int[Array, ""]:
        return jnp.int32(0)

    def step(self, denoise, pred, x, times, times_next, keys, carry):
        t, t_next = timefield.like(times.level, x), timefield.like(times_next.level, x)

        def jump(pred: Prediction, x: Image, t_there: TimeField) -> Image:
            there = self.process.alpha(t_there) * pred.x0 + self.process.sigma(t_there) * pred.eps
            # a cell that stays is the same context for the others in all three calls
            return jnp.where(t_next == t, x, there)

        def zigzag(down: Image) -> Image:
            back = jump(self.weak(down, times._replace(level=times_next.level)), down, t)
            return jump(denoise(back, times), back, t_next)

        down = jump(pred, x, t_next)
        return jax.lax.cond(carry < self.zigzags, zigzag, lambda down: down, down), carry + 1


def _posterior_spread(process: Process, t: TimeField, t_next: TimeField) -> TimeField:
    """Standard deviation of q(x at t_next | x at t, x0) for t_next <= t; 0 where it would go up."""
    alpha_next, sigma = process.alpha(t_next), process.sigma(t)
    sigma_next = process.sigma(t_next)
    bottom = alpha_next * sigma
    ratio = jnp.where(bottom == 0, 1.0, process.alpha(t) * sigma_next / jnp.where(bottom == 0, 1.0, bottom))
    return sigma_next * jnp.sqrt(jnp.maximum(1.0 - ratio**2, 0.0))


def _slope(process: Process, pred: Prediction, t: TimeField) -> Image:
    """dx/dt of the probability-flow ODE."""
    rate_x0, rate_eps = process.rates(t)
    return rate_x0 * pred.x0 + rate_eps * pred.eps


def _euler(process: Process, pred: Prediction, x: Image, times: Times, times_next: Times) -> Image:
    t, t_next = timefield.like(times.level, x), timefield.like(times_next.level, x)
    edge = _at_the_edge(process, t, t_next)
    moved = x + (t_next - t) * _slope(process, pred, jnp.where(edge, 1.0, t))
    jump = process.alpha(t_next) * pred.x0 + process.sigma(t_next) * pred.eps
    return jnp.where(t_next == t, x, jnp.where(edge, jump, moved))


def _at_the_edge(process: Process, t: TimeField, t_next: TimeField) -> Bool[Array, "b h w 1"]:
    """Whether a move ends or begins at clean data, where the ODE's slope may be infinite."""
    return (process.sigma(t) == 0) | (process.sigma(t_next) == 0)
