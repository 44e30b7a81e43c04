"""The training loop: steps, logs, checkpoints and pictures, and a clean end whatever happens."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from asyncpatch_jax import sharding
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.step import Metrics, TrainState


class StopSignal:
    """Within the block SIGTERM and SIGINT only set `requested`; a second one acts as usual."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._request) for number in self.signals}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def __exit__(self, *error: object) -> None:
        self._restore()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this block, of which nothing can be lost, a signal ends the process whatever it is in.

        Python's own handlers wait for the end of what is compiled or computed, which may take minutes; a thread that
        reads from a pipe does not.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        done = threading.Event()

        def watch() -> None:
            if os.read(reader, 1) and not done.is_set():
                print("stopped as asked to; all is saved, and the same command continues from here", flush=True)
                os._exit(0)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            if self.requested:  # just before
                os.write(writer, b"\0")
            yield
        finally:
            done.set()
            signal.set_wakeup_fd(before)
            os.close(writer)
            thread.join()
            os.close(reader)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Agreement:
    """All processes stop at the same step, whichever of them was asked to.

    Each step asks all of them, and reads the answer to what was asked `lag` steps before: it is there by now, so that
    the host still runs ahead of the devices.
    """

    lag = 2

    def __init__(self) -> None:
        self._asked: deque[jax.Array] = deque()

    def now(self, requested: bool) -> bool:
        """The same without running ahead, where the host waits anyway."""
        return requested if jax.process_count() == 1 else bool(sharding.any_process(requested))

    def __call__(self, requested: bool) -> bool:
        if jax.process_count() == 1:
            return requested
        self._asked.append(sharding.any_process(requested))
        return len(self._asked) > self.lag and bool(self._asked.popleft())


def check_finite(last_step: int, metrics: list[dict[str, Any]], advice: Callable[[], str]) -> None:
    """Stop a run that went wrong.

    Args:
        last_step: the number of steps done after the last of `metrics`, which are those of consecutive steps.
        advice: says what is safe, and how to go on.

    Raises:
        FloatingPointError: a step was refused by `train_step`; says which, and what was not finite.
    """
    for step, values in enumerate(metrics, last_step - len(metrics) + 1):
        if not values["finite"]:
            wrong = [f"{name} = {values[name]}" for name in ("loss", "grad_norm")]
            wrong = [text for text in wrong if not np.isfinite(float(text.split(" = ")[1]))]
            raise FloatingPointError(
                f"step {step} is not finite ({', '.join(wrong)}); its update was not applied, and nothing was saved "
                "since. Look for bad values in the data, or lower the learning rate, warm up longer, compute in "
                f"float32; {advice()}"
            )


@jax.jit
def _finite(tree: Any) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def fit(
    state: TrainState,
    batches: Any,
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    *,
    steps: int,
    checkpoints: Checkpoints,
    checkpoint_every: int,
    log_every: int,
    sample_every: int,
    on_step: Callable[[int], None],
    on_log: Callable[[int, dict[str, float]], None],
    on_sample: Callable[[int, TrainState], None],
) -> tuple[TrainState, bool]:
    """Train from `state.step` to `steps`; returns the state, and whether all was done.

    The host looks at the metrics only when it logs or saves, so that the device never waits. A checkpoint is written
    every `checkpoint_every` steps, at the end, before pictures, and at once on SIGTERM or Ctrl-C (of several processes,
    to any one of them: two steps later, in all), if all parameters and averages are finite; pictures are made every
    `sample_every` steps and at the end (0: never), and left alone at once if a signal comes.
    All is done, unless a signal came before the last step or its pictures.

    Args:
        batches: a Grain iterator of batches.
        step: `(state, batch) -> (state, metrics)`: `train_step` with its settings, usually from `jit_step`.
        on_step: called with the number of steps done after each.
        on_log: called with the steps done and each metric's mean since the last call.
        on_sample: called with the steps done and the state.

    Raises:
        ValueError: an interval below 1 (`sample_every`: below 0).
        FloatingPointError: the loss, its gradient or the parameters became infinite or NaN.
        OSError: a checkpoint could not be written.
    """
    if min(checkpoint_every, log_every) < 1 or sample_every < 0:
        raise ValueError(
            f"expected checkpoint_every, log_every >= 1 and sample_every >= 0, got {checkpoint_every}, {log_every}, "
            f"{sample_every}"
        )
    done, recent, agree = int(state.step), [], Agreement()
    with StopSignal() as stop:
        while done < steps:
            state, metrics = step(state, next(batches))
            recent.append(metrics)
            done += 1
            on_step(done)
            # read once: a signal that comes later in this round must find the next one, not an end without a checkpoint
            stopping, last = agree(stop.requested), done == steps
            show = bool(sample_every) and (last or done % sample_every == 0)
            log, save = last or done % log_every == 0, last or stopping or show or done % checkpoint_every == 0
            if log or save:
                values = jax.device_get(recent)
                check_finite(done, values, checkpoints.advice)
            if log:
                on_log(done, {name: float(np.mean([v[name] for v in values])) for name in values[0]})
                recent = []
            if save:
                # the step itself does not look at what it results in, which would read all of it twice
                if not _finite((state.params, state.ema)):
                    raise FloatingPointError(
                        f"parameters are not finite after step {done}, which is not saved. Lower the learning rate; "
                        f"{checkpoints.advice()}"
                    )
                checkpoints.save(done, state, batches)
            if stopping and not last:
                break
            if show:
                checkpoints.wait()
                if agree.now(stop.requested):
                    return state, False
                with stop.at_once():
                    on_sample(done, state)
    checkpoints.wait()
    return state, done >= steps
