"""The one sampling loop: predict, ask the schedule, step, hold what did not move."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import checkify
from jaxtyping import Array, Float, Key

from asyncpatch_jax import checks, timefield
from asyncpatch_jax import keys as keys_lib
from asyncpatch_jax.process import Process, check_process, diffuse
from asyncpatch_jax.sampling.schedules.base import Schedule
from asyncpatch_jax.sampling.solvers import Solver
from asyncpatch_jax.sampling.state import SamplerState
from asyncpatch_jax.types import Denoiser, FewTimes, Image, Prediction, Times

# fold-in constants that keep the three uses of an image's key apart
_START, _INIT, _STEP = 0, 1, 2


def start(process: Process, schedule: Schedule, key: Key[Array, "..."], known: Image) -> Image:
    """The image that a run begins with: `known`, noised to the schedule's first field.

    Cells that start at 1 are pure noise and cells that start at 0 are `known` bit for bit, so that zeros serve as
    `known` when everything is to be generated.

    Args:
        key: one key, or one per image; the same that `sample` gets.
        known: [b, h, w, c], floating-point numbers in the network's units (about -1 ... 1).

    Raises:
        ValueError: no process, schedule, key or images, or a schedule whose field does not fit the images.
    """
    check_process(process)
    _check_schedule(schedule)
    checks.images("known", known)
    known = jnp.asarray(known)
    keys = keys_lib.per_image(key, known.shape[0])
    times, _ = schedule.init(keys_lib.fold_in(keys, _INIT), known)
    noise = keys_lib.normal(keys_lib.fold_in(keys, _START), known.shape[1:])
    # a process may keep a little of the data at t = 1 (Stable Diffusion's keeps 7 %), and what lies under an inpainting
    # mask is no data at all (it may even be NaN)
    return jnp.where(timefield.like(times.level, known) == 1, noise, diffuse(process, known, noise, times.level))


def sample(
    denoise: Denoiser,
    solver: Solver,
    schedule: Schedule,
    key: Key[Array, "..."],
    x: Image,
    *,
    num_steps: int,
    trace: Callable[[SamplerState, Prediction], Any] | None = None,
    noise: Float[Array, "s *draws b h w c"] | None = None,
) -> tuple[SamplerState, Any]:
    """Move an image along a schedule, as one `lax.scan`.

    Pure; jit it with `num_steps` static. Only shapes and settings are compiled in: weights, masks, conditions, guidance
    and times are traced.

    Args:
        denoise: from `bind`, possibly wrapped by a guidance.
        key: one key, or one per image [b]: image i depends on its own key alone.
        x: the image at the schedule's first field, usually from `start`; [b, h, w, c] float32.
        num_steps: how often the schedule is asked for the next field.
        trace: `(state before the step, prediction) -> anything`, stacked over the steps.
        noise: what a stochastic solver shall take in the place of its keys' draws, to replay a recorded run:
            [num_steps, b, h, w, c], or [num_steps, draws, b, h, w, c] of one that draws several times a step.

    Returns:
        The last state, and what `trace` gave at each step (None without one).

    Raises:
        ValueError: an argument of another kind; the schedule's fields do not fit the image, or hold another number of
            steps, or times outside of 0 ... 1; noise for a solver that draws none, or of another shape.
    """
    checks.function("denoise", denoise, "(x, times) -> Prediction, as bind(...) makes")
    checks.instance("solver", solver, Solver, "DDIM(process)")
    _check_schedule(schedule)
    checks.images("x", x)
    if x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"expected x as float32 images [b, h, w, c], got {x.dtype}")
    checks.whole("num_steps", num_steps)
    if trace is not None:
        checks.function("trace", trace, "(state, prediction) -> anything")
    x = jnp.asarray(x)
    keys = keys_lib.per_image(key, x.shape[0])
    length = getattr(schedule, "num_steps", num_steps)
    if length != num_steps:
        raise ValueError(
            f"expected num_steps = {length}, the length of this {type(schedule).__name__}, got {num_steps}"
        )
    times, schedule_carry = schedule.init(keys_lib.fold_in(keys, _INIT), x)
    timefield.like(times.level, x)
    checks.numbers("a schedule's times", times.level, 0, 1)
    _check_distinct(schedule, times)
    state = SamplerState(x, times, solver.init(x), schedule_carry)
    if noise is not None:
        _check_noise(solver, noise, num_steps, x)

    def body(state: SamplerState, turn: tuple[jax.Array, jax.Array | None]) -> tuple[SamplerState, Any]:
        i, drawn = turn
        key_schedule, key_solver = keys_lib.split(keys_lib.fold_in(keys, _STEP + i), 2)
        pred = _as(x.dtype, denoise(state.x, state.times))
        times_next, schedule_carry = schedule.next(i, state, pred, key_schedule)
        if jax.tree.map(jnp.shape, times_next) != jax.tree.map(jnp.shape, state.times):
            raise ValueError(
                f"expected a schedule whose fields stay {state.times.level.shape}, got {times_next.level.shape}"
            )
        _check_distinct(schedule, times_next)
        checks.numbers("a schedule's times", times_next.level, 0, 1)
        given = {} if drawn is None else {"noise": drawn}
        stepped, solver_carry = solver.step(
            denoise, pred, state.x, state.times, times_next, key_solver, state.solver, **given
        )
        # told apart bit for bit, so that a known or waiting cell never drifts, whatever the solver's arithmetic
        moved = timefield.like((times_next.level != state.times.level).astype(jnp.float32), x) > 0
        image = jnp.where(moved, stepped, state.x).astype(x.dtype)
        after = SamplerState(image, times_next, solver_carry, schedule_carry)
        return after, None if trace is None else trace(state, pred)

    return jax.lax.scan(body, state, (jnp.arange(num_steps, dtype=jnp.int32), noise))


def _check_noise(solver: Solver, noise: Array, num_steps: int, x: Image) -> None:
    draws = getattr(solver, "draws", 0)
    if not draws:
        raise ValueError(f"expected a solver that draws noise, such as DDIM with eta > 0, got noise for {solver}")
    wanted = (num_steps, *((draws,) if draws > 1 else ()), *x.shape)
    found = noise.shape if checks.is_array(noise) else checks.shown(noise)
    if found != wanted:
        raise ValueError(f"expected noise of shape {wanted}, one for each step, got {found}")
    checks.numbers("noise", noise)


def _check_schedule(schedule: Any) -> None:
    checks.instance("schedule", schedule, Schedule, "Synchronous(linear(50))")


def _as(dtype: Any, pred: Prediction) -> Prediction:
    """In the image's type, whatever the denoiser computes in: a loop's types stay.

    Raises:
        ValueError: the denoiser's answer is no prediction.
    """
    checks.instance("a denoiser's answer", pred, Prediction, "Prediction(x0, eps, aux)")
    return pred._replace(x0=pred.x0.astype(dtype), eps=pred.eps.astype(dtype))


def _check_distinct(schedule: Schedule, times: Times) -> None:
    """Hold a schedule to the number of distinct times that it declares.

    Raises:
        ValueError: it tells a field of few times that may hold more. A field that is written out is right with any
            number of times; more than declared are an error under `jax.experimental.checkify` (of no cost elsewhere).
    """
    most = getattr(schedule, "distinct", None)
    if most is None:
        return
    if isinstance(times.told, FewTimes):
        if times.told.values.shape[1] > most:
            raise ValueError(
                f"expected at most {most} distinct times, which this {type(schedule).__name__} declares, got a field "
                f"of {times.told.values.shape[1]}"
            )
        return
    t = jnp.sort(times.told.reshape(times.told.shape[0], -1))
    count = 1 + (t[:, 1:] != t[:, :-1]).sum(1)
    checkify.debug_check(
        jnp.all(count <= most),
        f"expected at most {most} distinct times, which this {type(schedule).__name__} declares, got {{count}}",
        count=count.max(),
    )
