"""A training as people watch it: the loop of steps with a bar, and its scalars in TensorBoard files."""

from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from asyncpatch_jax.training import loop
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.step import Metrics, TrainState


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
    # late, as it takes seconds: TensorFlow comes with it
    from clu import metric_writers

    train, first_process = config.train, jax.process_index() == 0
    files = [metric_writers.SummaryWriter(str(epath.Path(config.workdir)))] if first_process else []
    writer = metric_writers.AsyncWriter(metric_writers.MultiWriter(files))
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
        writer.write_scalars(done, metrics)
        bar.set_postfix(shown, refresh=False)

    def on_sample(done: int, state: TrainState) -> None:
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
    writer.close()
    return finished
