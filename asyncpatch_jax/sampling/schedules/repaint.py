"""RePaint: inpainting with a network that knows synchronous times only, by going down and up again. A baseline."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from asyncpatch_jax import checks, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.process import Process, check_process, diffuse, renoise
from asyncpatch_jax.sampling.schedules.base import check_grid, check_mask, length, spread
from asyncpatch_jax.sampling.schedules.grids import Synchronous
from asyncpatch_jax.sampling.solvers import DDIM
from asyncpatch_jax.types import Denoiser, Image, ImageKeys, Prediction, Times


def repaint_path(num_steps: int, jump: int = 10, resample: int = 10) -> Int[np.ndarray, "s"]:
    """At which of the levels num_steps ... 0 each model call finds the image, and 0 at last.

    Every `jump` levels the run goes `jump` levels up again, `resample - 1` times (Lugmayr et al. 2022, appendix B).
    Between two entries lies one model call, one level down, and the jump up, if any. A jump of one level ends where the
    call found the image.

    Raises:
        ValueError: jump < 1, as many levels as there are or more, or resample < 1.
    """
    checks.whole("num_steps", num_steps, 2)
    checks.whole("jump", jump, 1, int(num_steps) - 1)
    checks.whole("resample", resample)
    left = {level + 1: resample - 1 for level in range(0, num_steps - jump, jump)}
    path = [num_steps]
    while path[-1] > 0:
        level = path[-1] - 1
        if left.get(level, 0) > 0:
            left[level] -= 1
            level += jump
        path.append(level)
    return np.asarray(path)


def repaint_cost(num_steps: int, jump: int = 10, resample: int = 10) -> tuple[int, int]:
    """(model calls, re-noised levels) of a run: 2,410 and 2,160 for 250 steps with jumps of 10, 10 times."""
    path = repaint_path(num_steps, jump, resample)
    return len(path) - 1, jump * int((np.diff(path) >= 0).sum())


@checks.dataclass
class UpAndDown(Synchronous):
    """The levels of a RePaint run, which rise at each jump."""

    _falls: ClassVar[bool] = False


@checks.dataclass
class RePaint:
    """The solver of a RePaint run: a step down the grid, the jump up where the schedule says so, and the known pixels.

    The levels of a jump are re-noised at once: the forward process is Gaussian and Markov, so that is the same in law
    as one after the other. Known pixels are then `known`, freshly noised to the level of the next model call.

    Raises:
        ValueError: no process, grid, images or mask, or a negative eta.
    """

    process: Process = struct.field(pytree_node=False)
    grid: Any  # Float[Array, "s"]
    known: Any  # Float[Array, "b h w c"]
    mask: Any  # Float[Array, "b|1 h w 1"], 1 = generate
    eta: float = struct.field(pytree_node=False, default=1.0)

    # for the step down, the jump up, and the known pixels
    draws: ClassVar[int] = 3

    def __post_init__(self):
        check_process(self.process)
        check_grid(self.grid)
        check_mask(self.mask)
        checks.number("eta", self.eta, 0)
        if checks.is_array(self.known):
            checks.images("known", self.known)

    def init(self, x: Image) -> None:
        return None

    def step(
        self,
        denoise: Denoiser,
        pred: Prediction,
        x: Image,
        times: Times,
        times_next: Times,
        keys: ImageKeys,
        carry: None,
        noise: Float[Array, "3 b h w c"] | None = None,
    ) -> tuple[Image, None]:
        if noise is None:
            noise = jnp.stack([keys_lib.normal(key, x.shape[1:]) for key in keys_lib.split(keys, 3)])
        grid = jnp.asarray(self.grid, jnp.float32).reshape(1, 1, 1, -1)
        below = jnp.where(grid < times.level, grid, 0.0).max(-1, keepdims=True)
        down = Times(below, below)
        x, _ = DDIM(self.process, self.eta).step(denoise, pred, x, times, down, keys, None, noise[0])
        x = renoise(self.process, x, noise[1], below, times_next.level)
        noised = diffuse(self.process, self.known, noise[2], times_next.level)
        return jnp.where(timefield.like(spread(self.mask, x.shape[0]), x) > 0.5, x, noised), carry


def repaint(
    process: Process,
    grid: Float[Array, "s"],
    known: Image,
    mask: Float[Array, "_b h w 1"],
    jump: int = 10,
    resample: int = 10,
    eta: float = 1.0,
) -> tuple[Synchronous, RePaint]:
    """Schedule and solver of RePaint on a grid of times [num_steps + 1]; `mask` is 1 where something is generated.

    eta is 1 (ancestral sampling) in the paper.

    Raises:
        ValueError: as `repaint_path` and `RePaint`, or a jump of one level: the loop holds what has not moved.
    """
    checks.whole("jump", jump, 2)
    levels = length(grid) - repaint_path(length(grid), jump, resample)
    checks.images("known", known)
    checks.mask("mask", mask)
    solver = RePaint(process, grid, known, mask, eta)
    return UpAndDown(jnp.asarray(grid)[levels]), solver
