"""DeqIR: all states of DDNM's deterministic run at once, as a fixed point."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from asyncpatch_jax import checks, timefield
from asyncpatch_jax.process import Process
from asyncpatch_jax.sampling.inpainting.base import Task
from asyncpatch_jax.types import Denoiser, Image, Times

States = Float[Array, "s b h w c"]


class _Tried(NamedTuple):
    """The last few states that were tried, and what the run's equations made of them."""

    states: Float[Array, "m s b h w c"]
    answers: Float[Array, "m s b h w c"]


@dataclass(frozen=True)
class DeqIR:
    """Deep equilibrium restoration (Cao et al. 2024, arXiv 2311.11600): a parallel solver of DDNM with eta = 0.

    A run's states solve one system of equations, each of which has a state on the left and those before it on the
    right. All states begin as the noise that the run begins with; an iteration is one call on all of them at once, so
    that a run may take fewer calls one after the other, and takes many more in all. Its end is DDNM's, with DDNM's
    bias: exactly so after as many plain iterations (`memory=1`) as the grid has steps; Anderson's method comes near it
    sooner, and stays as far away as its `ridge` says. The authors stop earlier where little changes; here the number of
    iterations is the cost.

    Memory is that of `num_steps` images in the network at once, and `2 memory num_steps` images beside it.

    Attributes:
        iterations: at most 15 in the authors' code.
        memory: how many earlier iterations Anderson's method mixes; 1 is plain iteration.
        ridge: added to the diagonal of its least-squares problem.

    Raises:
        ValueError: no iteration, no memory, or a ridge that is not positive.
    """

    iterations: int = 15
    memory: int = 5
    ridge: float = 1e-3

    def __post_init__(self):
        checks.whole("iterations", self.iterations)
        checks.whole("memory", self.memory)
        checks.number("ridge", self.ridge, above=0)

    def calls(self, num_steps: int) -> int:
        return self.iterations * num_steps

    def gradients(self, num_steps: int) -> int:
        return 0

    def __call__(
        self,
        denoise: Denoiser,
        process: Process,
        key: Key[Array, "..."],
        known: Image,
        mask: Float[Array, "_b h w 1"],
        grid: Float[Array, "s"],
    ) -> Image:
        task = Task.of(denoise, process, key, known, mask, grid)
        noise = task.start(process)
        states = jnp.broadcast_to(noise, (task.num_steps, *noise.shape))
        # the first of what was tried is its own answer, so that the first iteration begins there
        empty = jnp.zeros((self.memory, *states.shape), states.dtype).at[0].set(states)

        def body(tried: _Tried, i: Int[Array, ""]) -> tuple[_Tried, None]:
            states = self._mixed(tried, i)
            answer = _answer(denoise, process, task, noise, states)
            slot = i % self.memory
            return _Tried(tried.states.at[slot].set(states), tried.answers.at[slot].set(answer)), None

        order = jnp.arange(self.iterations, dtype=jnp.int32)
        tried, _ = jax.lax.scan(body, _Tried(empty, empty), order)
        x = tried.answers[(self.iterations - 1) % self.memory, -1]
        return jnp.where(task.free, x, jnp.asarray(known).astype(x.dtype))

    def _mixed(self, tried: _Tried, i: Int[Array, ""]) -> States:
        """The mixture of earlier answers whose mixed residual is least, by images (Walker & Ni 2011)."""
        there = jnp.arange(self.memory) < jnp.maximum(i, 1)
        residual = jnp.where(there.reshape(-1, 1, 1, 1, 1, 1), tried.answers - tried.states, 0.0)
        products = jnp.einsum("isbhwc,jsbhwc->bij", residual, residual, preferred_element_type=jnp.float32)
        # weights w that sum to 1: ones^T w = 1, and (products + ridge) w = constant; those of what is not there are 0
        ridge = jnp.diag(jnp.where(there, self.ridge, 1.0))
        square = jnp.pad(products + ridge[None], ((0, 0), (1, 0), (1, 0)))
        border = jnp.concatenate([jnp.zeros(1), there.astype(jnp.float32)])
        square = square.at[:, 0].set(border).at[:, :, 0].set(border)
        one = jnp.zeros((len(square), self.memory + 1, 1)).at[:, 0].set(1.0)
        weights = jnp.linalg.solve(square, one)[:, 1:, 0]
        return jnp.einsum("bi,isbhwc->sbhwc", weights, tried.answers)


def _answer(denoise: Denoiser, process: Process, task: Task, noise: Image, states: States) -> States:
    """What the equations make of all states at once.

    A step from t to s leaves `x / alpha + (sigma_s / alpha_s - sigma_t / alpha_t) eps` in the hole, in units of the
    data. The sum of these begins with the first step's own result, since alpha may be 0 at the first time.
    """
    before = jnp.concatenate([noise[None], states[:-1]])
    now, below = task.grid[:-1], task.grid[1:]

    def predict(x: Image, t: Float[Array, ""]) -> tuple[Image, Image]:
        level = timefield.constant(t, x.shape[0])
        pred = denoise(x, Times(level, level))
        return pred.x0, pred.eps

    x0, eps = jax.vmap(predict)(before, now)
    alpha, sigma = process.alpha(below), process.sigma(below)
    depth = sigma / jnp.where(alpha == 0, 1.0, alpha)  # alpha is 0 at no time but the first
    # the last but first: where a step ends the next one begins
    change = jnp.concatenate([depth[:1], depth[1:] - depth[:-1]]).reshape(-1, 1, 1, 1, 1) * eps
    hole = jnp.cumsum(change.at[0].add(x0[0]), 0)
    alpha, sigma = (weight.reshape(-1, 1, 1, 1, 1) for weight in (alpha, sigma))
    return jnp.where(task.free[None], alpha * hole, alpha * task.known[None] + sigma * eps).astype(states.dtype)
