"""What each schedule costs, as a ratio to synchronous sampling in the same run; and each sampler of training times.

  python -m launch.benchmark --config=configs/digits.py
  python -m launch.benchmark --config=configs/imagenet64_60m.py --batch=32 --repeats=9 --out=v6e.json
  python -m launch.benchmark --workdir=runs/digits

Prints a table and writes it as JSON to --out. The weights are random unless --workdir names a trained run: they do not
change what a run costs. See docs/benchmark.md for what is measured, and how.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from asyncpatch_jax.files import check_writable, refuse_existing, write_json
from asyncpatch_jax.sampling import repaint_cost
from launch import build, cases, cli, pictures, trained
from launch.generate import Inputs, image_keys


def compiled(lower: Callable[..., Any], *arguments: Any) -> tuple[Callable[..., Any], float, float]:
    """Compile ahead of time: the function, the seconds it took, and the MiB that it needs."""
    start = time.perf_counter()
    done = lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = done.memory_analysis()
    parts = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return done, seconds, (parts - memory.alias_size_in_bytes) / 2**20


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times in turn, so that a machine that slows down slows all of them alike.

    Every call is made once before, untimed.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: list[float], baseline: list[float]) -> dict[str, float]:
    """Median, lowest and highest of the ratios within each repetition."""
    ratios = [a / b for a, b in zip(seconds, baseline, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def sampling_rows(run: build.Run, batch: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each schedule."""
    net = pictures.net(run)
    inputs = Inputs(
        keys=image_keys(0, batch),
        known=jnp.zeros((batch, *run.shape)),
        label=jnp.zeros(batch, jnp.int32) if run.num_classes else None,
    )
    chosen, calls, costs = cases.schedules(run), {}, {}
    for name, case in chosen.items():
        print(f"compiling {name}", flush=True)
        call, *costs[name] = compiled(jax.jit(partial(case.images, net)).lower, run.params, inputs)
        calls[name] = partial(call, run.params, inputs)
    print(f"sampling {batch} images {repeats} times along each", flush=True)
    seconds = interleaved(calls, repeats)
    rows = []
    for name, case in chosen.items():
        evaluations = cases.model_calls(case, net, inputs)
        median = statistics.median(seconds[name])
        rows.append(
            {
                "name": name,
                "steps": case.steps,
                "model_calls": evaluations,
                "images_per_s": batch / median,
                "ms_per_step": 1e3 * median / case.steps,
                "to_sync": ratio(seconds[name], seconds["sync"]),
                "compile_s": costs[name][0],
                "memory_mib": costs[name][1],
                "seconds": seconds[name],
            }
        )
    for row in rows:
        # what a schedule costs beyond the calls that it makes
        row["to_sync_per_call"] = row["to_sync"]["median"] * rows[0]["model_calls"] / row["model_calls"]
    return rows


def training_rows(run: build.Run, batch: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each sampler of training times."""
    rng = np.random.default_rng(0)
    data = {
        "image": jnp.asarray(rng.uniform(-1, 1, (batch, *run.shape)), jnp.float32),
        "label": jnp.zeros(batch, jnp.int32),
    }
    key = jax.random.key(0)
    state, lowered = cases.train_steps(run)
    calls, costs = {}, {}

    def step(done: Callable[..., Any]) -> Any:
        nonlocal state  # each step is given the last one's state, since it takes its memory
        state, metrics = done(state, data, key)
        return state, metrics

    for name, lower in lowered.items():
        print(f"compiling a training step, {name}", flush=True)
        call, *costs[name] = compiled(lower, state, data, key)
        calls[name] = partial(step, call)
    print(f"training on {batch} images {repeats} times with each", flush=True)
    seconds = interleaved(calls, repeats)
    return [
        {
            "name": name,
            "ms_per_step": 1e3 * statistics.median(seconds[name]),
            "images_per_s": batch / statistics.median(seconds[name]),
            "to_sync": ratio(seconds[name], seconds["synchronous"]),
            "compile_s": costs[name][0],
            "memory_mib": costs[name][1],
            "seconds": seconds[name],
        }
        for name in lowered
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text: names to the left, numbers to the right."""
    columns = {
        "name": ("", "{}"),
        "steps": ("steps", "{}"),
        "model_calls": ("model calls", "{:g}"),
        "images_per_s": ("images/s", "{:.4g}"),
        "ms_per_step": ("ms/step", "{:.4g}"),
        "to_sync": ("x sync (low ... high)", "{0[median]:.3f} ({0[low]:.3f} ... {0[high]:.3f})"),
        "to_sync_per_call": ("x sync per call", "{:.3f}"),
        "compile_s": ("compile s", "{:.1f}"),
        "memory_mib": ("memory MiB", "{:.1f}"),
    }
    shown = {key: column for key, column in columns.items() if key in rows[0]}
    cells = [[title for title, _ in shown.values()]]
    cells += [[text.format(row[key]) for key, (_, text) in shown.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    line = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    return "\n".join(line.format(*row) for row in cells)


def benchmark(run: build.Run, batch: int, repeats: int) -> dict[str, Any]:
    """All rows of a network, and what they were measured on.

    Raises:
        ValueError: settings that do not make sense.
    """
    device = jax.devices()[0]
    calls, renoised = repaint_cost(250)
    return {
        "device": f"{device.platform} ({device.device_kind})",
        "jax": jax.__version__,
        "image": run.shape,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
        "solver": run.config.sample.solver,
        "batch": batch,
        "repeats": repeats,
        "sampling": sampling_rows(run, batch, repeats),
        "training": training_rows(run, batch, repeats),
        "repaint_as_published": {"steps": 250, "model_calls": calls, "renoised_levels": renoised},
    }


def network(config: ConfigDict, workdir: str | None, steps: int | None) -> build.Run:
    """A trained run, or the configured network with random weights.

    Raises:
        ValueError: a configuration that does not make sense.
        FileNotFoundError: no run in `workdir`.
    """
    if workdir:
        run = build.load_run(workdir)
    else:
        run = build.untrained(config, build.dataset(config))
        run = run._replace(params=build.init_params(run.model, jax.random.key(config.seed), run.shape))
    if steps is not None:
        run.config.sample.steps = steps
    trained.check(run)
    return run


def main(config: ConfigDict) -> None:
    values = flags.FLAGS
    refuse_existing(values.out, values.overwrite)
    run = network(config, values.workdir, values.steps)
    check_writable(values.out)
    report = benchmark(run, values.batch, values.repeats)
    published = report["repaint_as_published"]
    print("\n{device}, {parameters:,} parameters, batch {batch}, {repeats} repeats".format(**report))
    print(f"\n{table(report['sampling'])}\n\n{table(report['training'])}\n")
    about = "RePaint as published: {steps} steps, {model_calls} model calls, {renoised_levels} re-noised levels"
    print(about.format(**published))
    write_json(values.out, report, overwrite=values.overwrite)
    print(f"wrote {values.out}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Benchmark the network of this trained run, instead of --config's.")
    flags.DEFINE_integer("batch", 16, "Images at a time.", lower_bound=1)
    flags.DEFINE_integer("steps", None, "Steps of a synchronous run; config.sample.steps unless given.")
    flags.DEFINE_integer("repeats", 5, "Timed repetitions; the table shows medians.", lower_bound=1)
    flags.DEFINE_string("out", "benchmark.json", "File to write.")
    flags.DEFINE_bool("overwrite", False, "Replace --out.")
    cli.main(main, __doc__)
