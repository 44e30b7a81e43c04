"""Grids of times [num_steps + 1] from 1 to 0, and the schedules that follow one as it is: synchronous, or any table."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asyncpatch_jax import checks
from asyncpatch_jax.process import Process, check_process
from asyncpatch_jax.sampling.schedules.base import Planned, check_grid, check_table, length, not_falling

Grid = Float[Array, "s"]


# more than float32 tells times apart by; a run of as many calls would not end either
MOST_STEPS = 10**6


def _check_steps(num_steps: int) -> None:
    checks.whole("num_steps", num_steps)
    if num_steps > MOST_STEPS:
        raise ValueError(f"expected at most {MOST_STEPS} steps, got {num_steps}")


def linear(num_steps: int) -> Grid:
    """1, 1 - 1/n, ..., 0.

    Raises:
        ValueError: fewer than one step or more than `MOST_STEPS`.
    """
    _check_steps(num_steps)
    return jnp.linspace(1.0, 0.0, num_steps + 1, dtype=jnp.float32)


def shifted(num_steps: int, shift: float | Float[Array, ""]) -> Grid:
    """`a t / (1 + (a - 1) t)` of the linear grid: more steps at high noise for a > 1, as larger images need.

    Source: Esser et al. 2024 (Stable Diffusion 3, section 5.3.2), a = 3; FLUX has a = e^mu with mu linear in the number
    of tokens.

    Raises:
        ValueError: fewer than one step or more than `MOST_STEPS`, or a known shift that is not positive.
    """
    if not checks.is_array(shift):
        checks.number("shift", shift, above=0)
    checks.numbers("shift", shift, above=0)
    t = linear(num_steps)
    return shift * t / (1.0 + (shift - 1.0) * t)


def cosine(num_steps: int) -> Grid:
    """Rectified-flow times with the signal-to-noise ratios that the cosine process has on the linear grid.

    `t = s / (s + c)` with s, c the sine and cosine of `pi t' / 2`: somewhat denser at both ends.

    Raises:
        ValueError: fewer than one step or more than `MOST_STEPS`.
    """
    t = linear(num_steps)
    s, c = jnp.sin(0.5 * jnp.pi * t), jnp.sin(0.5 * jnp.pi * (1.0 - t))
    return s / (s + c)


def logsnr(num_steps: int, process: Process, limit: float = 8.0) -> Grid:
    """Times whose log-SNR is uniform between -limit and limit (or the process's own end); the ends are 1 and 0.

    The spacing of DPM-Solver (Lu et al. 2022, section 3.4). The log-SNR itself is infinite at t = 0, so a limit is
    needed: 8 is t = .982 and .018 in rectified flow.

    Raises:
        ValueError: fewer than one step or more than `MOST_STEPS`, no log-SNR between the ends, or so large a limit that
            times are the same in float32.
    """
    _check_steps(num_steps)
    check_process(process)
    checks.number("limit", limit, above=0)
    low = jnp.maximum(process.logsnr(jnp.ones((1,), jnp.float32)), -limit)
    checks.numbers(f"the process's log-SNR at t = 1 (limit = {limit:g})", low, below=float(limit))
    u = jnp.arange(1, num_steps, dtype=jnp.float32) / num_steps
    wanted = low + (limit - low) * u
    below, above = jnp.zeros_like(u), jnp.ones_like(u)
    for _ in range(30):  # bisection: log-SNR falls with t; 2^-30 is finer than float32 times
        middle = 0.5 * (below + above)
        noisy = process.logsnr(middle) < wanted
        below, above = jnp.where(noisy, below, middle), jnp.where(noisy, middle, above)
    grid = jnp.concatenate([jnp.ones((1,)), 0.5 * (below + above), jnp.zeros((1,))]).astype(jnp.float32)
    known = checks.known(grid)
    if known is not None and (seen := not_falling(known, strictly=True)) is not None:
        raise ValueError(f"expected a limit whose times float32 tells apart, got {limit:g} (times {seen})")
    return grid


@checks.dataclass
class Synchronous(Planned):
    """All cells on one grid of times [num_steps + 1]: ordinary diffusion, at the price of a scalar time.

    Raises:
        ValueError: no grid of times in 0 ... 1, one that rises, or ends before 0.
    """

    grid: Any  # Float[Array, "s"]
    distinct: ClassVar[int] = 1
    _falls: ClassVar[bool] = True

    def __post_init__(self):
        check_grid(self.grid, falls=self._falls)

    @property
    def num_steps(self) -> int:
        return length(self.grid)

    def field(self, i: int | Int[Array, ""]) -> Float[Array, "1 1 1 1"]:
        length(self.grid)
        return jnp.asarray(self.grid, jnp.float32)[i].reshape(1, 1, 1, 1)


@checks.dataclass
class Table(Planned):
    """Any run, written out: the field after each step [num_steps + 1, b|1, gh, gw] (a last axis of 1 may follow).

    The first row is the start. Times may go up on the way as well as down; a cell whose time stays is held. In the last
    row all cells are at 0: what ends before is no image yet.

    Raises:
        ValueError: no such table, times outside of 0 ... 1, or one that does not end at 0.
    """

    levels: Any  # Float[Array, "s b gh gw"] or Float[Array, "s b gh gw 1"]

    def __post_init__(self):
        if checks.is_array(self.levels):
            self.num_steps  # noqa: B018, the property checks
            check_table(self.levels)

    @property
    def num_steps(self) -> int:
        shape: tuple[int, ...] = getattr(self.levels, "shape", ())
        if len(shape) not in (4, 5) or shape[4:] not in ((), (1,)) or shape[0] < 2:
            raise ValueError(f"expected a table of fields [num_steps + 1, b, gh, gw], got shape {shape}")
        return shape[0] - 1

    def field(self, i: int | Int[Array, ""]) -> Float[Array, "_b gh gw 1"]:
        self.num_steps  # noqa: B018, the property checks
        levels = jnp.asarray(self.levels, jnp.float32)
        return levels[i].reshape(*levels.shape[1:4], 1)
