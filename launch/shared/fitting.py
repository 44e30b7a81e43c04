"""A training as people watch it: the loop of steps with a bar, and its scalars in TensorBoard files."""

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from asyncpatch_jax.training import loop
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.step import Metrics, TrainState


class Scalars:
    """A TensorBoard file of scalars, begun by the first of them; a training does not wait for a distant folder.

    Without TensorFlow, whose import takes longer than that of all else together. What went wrong in writing is raised
    by the next call.
    """

    def __init__(self, folder: str) -> None:
        self._folder, self._thread, self._records = epath.Path(folder), ThreadPoolExecutor(1), None
        self._last: Future | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        events = [Event(wall_time=time.time(), step=step, summary=summary)]
        if self._last is None:
            events.insert(0, Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()
        self._last = self._thread.submit(self._append, [event.SerializeToString() for event in events])

    def _append(self, events: Sequence[bytes]) -> None:
        if self._records is None:
            from tensorboard.summary.writer.record_writer import RecordWriter

            name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
            self._records = RecordWriter((self._folder / name).open("wb"))
        for event in events:
            self._records.write(event)
        self._records.flush()

    def flush(self) -> None:
        """Return once all is in the file."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        self.flush()
        self._thread.shutdown()
        if self._records is not None:
            self._records.close()


def fit(
    state: TrainState,
    batches: Any,
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    config: ConfigDict,
    checkpoints: Checkpoints,
    *,
    unit: str,
    begin: Callable[[], None],
    said: Callable[[int, dict[str, float]], dict[str, str]],
    draw: Callable[[int, TrainState], None],
) -> bool:
    """Train to `config.train.steps`, as `training.loop.fit`; returns whether all was done. The first process reports.

    Args:
        unit: what a step is called.
        begin: is called after the first step: what fails to begin leaves no trace.
        said: of a step and its metrics, what the bar shows; what it adds to the metrics is written with them.
        draw: makes the pictures of a step. All is saved by then, and a signal ends the process at once.

    Raises:
        FloatingPointError, OSError: as `training.loop.fit`.
    """
    train, first_process = config.train, jax.process_index() == 0
    writer = Scalars(config.workdir) if first_process else None
    first = int(state.step) + 1
    bar = tqdm(
        total=train.steps,
        initial=first - 1,
        unit=unit,
        dynamic_ncols=True,
        smoothing=0.1,
        disable=not first_process,
    )

    def on_step(done: int) -> None:
        if done == first:
            bar.unpause()  # compiling is no measure of the steps to come
            begin()
        bar.update(1)

    def on_log(done: int, metrics: dict[str, float]) -> None:
        shown = said(done, metrics)
        metrics[f"{unit}s_per_second"] = bar.format_dict["rate"] or 0.0
        if writer:
            writer.write(done, metrics)
        bar.set_postfix(shown, refresh=False)

    def on_sample(done: int, state: TrainState) -> None:
        if writer:
            writer.flush()  # from here on, a signal ends this process at once
        if done == train.steps:
            bar.close()
        draw(done, state)
        bar.unpause()

    with bar:
        _, finished = loop.fit(
            state,
            batches,
            step,
            steps=train.steps,
            checkpoints=checkpoints,
            checkpoint_every=train.checkpoint_every,
            log_every=train.log_every,
            sample_every=train.sample_every,
            on_step=on_step,
            on_log=on_log,
            on_sample=on_sample,
        )
    if writer:
        writer.close()
    return finished
