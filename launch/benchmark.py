"""What each schedule, each sampler of training times and each kind of field costs, as a ratio to synchronous ones.

  python -m launch.benchmark --config=configs/digits.py
  python -m launch.benchmark --config=configs/imagenet64_60m.py --batch=32 --repeats=9 --out=v6e.json
  python -m launch.benchmark --workdir=runs/digits --parts=training,torch      # against PyTorch too

Prints tables and writes them as JSON to --out. The weights are random unless --workdir names a trained run: they do not
change what a run costs. See docs/benchmark.md for what is measured, and how.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from asyncpatch_jax.files import check_writable, write_json
from asyncpatch_jax.keys import of_seed
from asyncpatch_jax.sampling import repaint_cost
from launch.bench import cases, reference, text, versus
from launch.bench.timing import compiled, interleaved, row, speed_row, table
from launch.shared import build, cache, cli, datasets, outputs, pictures, trained
from launch.shared.generate import Inputs, image_keys
from launch.shared.programs import Program

PARTS = ("sampling", "text", "training", "fields", "torch")


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
        costs[name] = compiled(jax.jit(partial(case.images, net)), run.params, inputs)
        calls[name] = partial(costs[name].call, run.params, inputs)
    print(f"sampling {batch} images {repeats} times along each", flush=True)
    taken = interleaved(calls, repeats)
    rows = []
    for name, case in chosen.items():
        made = row(name, batch, taken[name], taken["sync"], costs[name])
        more = {"steps": case.steps, "model_calls": cases.model_calls(case, net, inputs)}
        rows.append({**made, **more, "ms_per_step": made.pop("ms") / case.steps})
    for made in rows:
        # what a schedule costs beyond the calls that it makes
        made["to_sync_per_call"] = made["to_sync"]["median"] * rows[0]["model_calls"] / made["model_calls"]
    return rows


def text_rows(run: build.Run, batch: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each schedule of the text network, at the run's number of steps; nothing else of the run is used."""
    steps, calls, costs = run.config.sample.steps, {}, {}
    for name, program in text.programs(batch, steps).items():
        print(f"compiling {name} of the text network", flush=True)
        costs[name] = compiled(program.fn, *program.args)
        calls[name] = partial(costs[name].call, *program.args)
    print(f"sampling {batch} images {repeats} times along each", flush=True)
    taken = interleaved(calls, repeats)
    rows = [{**row(name, batch, taken[name], taken["sync"], costs[name]), "steps": steps} for name in calls]
    return [{**made, "ms_per_step": made.pop("ms") / steps} for made in rows]


def training_rows(run: build.Run, batch: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each sampler of training times."""
    data, key = cases.batch_of(run, batch), jax.random.key(0)
    state, steps = cases.train_steps(run)
    # what is computed a second time to save memory is no work of the model's
    _, plain = cases.train_steps(run._replace(model=run.model.clone(remat="none")))
    calls, costs = {}, {}

    def step(done: Callable[..., Any]) -> Any:
        nonlocal state  # each step is given the last one's state, since it takes its memory
        state, metrics = done(state, data, key)
        return state, metrics

    for name, fn in steps.items():
        print(f"compiling a training step, {name}", flush=True)
        costs[name] = compiled(fn, state, data, key, counted=plain[name])
        calls[name] = partial(step, costs[name].call)
    print(f"training on {batch} images {repeats} times with each", flush=True)
    taken = interleaved(calls, repeats)
    return [row(name, batch, taken[name], taken["synchronous"], costs[name]) for name in steps]


def field_rows(run: build.Run, batch: int, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """What the field alone costs the network: one call, and one gradient, with a row for each kind of field."""
    tables = {}
    for what, programs in cases.field_programs(run, batch).items():
        calls, costs = {}, {}
        for name, program in programs.items():
            print(f"compiling {what}, {name}", flush=True)
            given = cases.arguments(run, program)
            costs[name] = compiled(program.fn, *given)
            calls[name] = partial(costs[name].call, *given)
        taken = interleaved(calls, repeats)
        tables[what] = [row(name, batch, taken[name], taken["synchronous"], costs[name]) for name in programs]
    if blocks := cases.block_programs(run, batch):
        tables["one gradient, synchronous, by the network's depth"] = _block_rows(blocks, repeats)
    return tables


def _block_rows(programs: dict[str, tuple[build.Run, Program]], repeats: int) -> list[dict[str, Any]]:
    calls, costs = {}, {}
    for name, (run, program) in programs.items():
        print(f"compiling one gradient, {name}", flush=True)
        given = cases.arguments(run, program)
        costs[name] = compiled(program.fn, *given)
        calls[name] = partial(costs[name].call, *given)
    taken = interleaved(calls, repeats)
    first = next(iter(programs))
    return [speed_row(name, taken[name], costs[name], taken[first], costs[first]) for name in programs]


def benchmark(run: build.Run, batch: int, repeats: int, parts: list[str], *, compile_torch: bool) -> dict[str, Any]:
    """The rows of the parts asked for, and what they were measured on.

    Raises:
        ValueError: settings that do not make sense, or an unknown part.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(f"expected --parts out of {', '.join(PARTS)}, got {', '.join(unknown) or 'none'}")
    if "torch" in parts:
        reference.check(run)
    device = jax.devices()[0]
    calls, renoised = repaint_cost(250)
    make = {
        "sampling": sampling_rows,
        "text": text_rows,
        "training": training_rows,
        "fields": field_rows,
        "torch": partial(versus.compare, compile_torch=compile_torch),
    }
    return {
        "device": f"{device.platform} ({device.device_kind})",
        "jax": jax.__version__,
        "image": run.shape,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
        "dtype": run.config.model.dtype,
        "solver": run.config.sample.solver,
        "batch": batch,
        "repeats": repeats,
        **{part: make[part](run, batch, repeats) for part in PARTS if part in parts},
        "repaint_as_published": {"steps": 250, "model_calls": calls, "renoised_levels": renoised},
    }


def printed(report: dict[str, Any]) -> str:
    """A report's tables, to be read."""
    lines = ["{device}, {parameters:,} parameters, {dtype}, batch {batch}, {repeats} repeats".format(**report)]
    if "sampling" in report:
        about = "RePaint as published: {steps} steps, {model_calls} model calls, {renoised_levels} re-noised levels"
        lines += ["", table(report["sampling"]), about.format(**report["repaint_as_published"])]
    if "text" in report:
        lines += ["", "text network:", table(report["text"])]
    if "training" in report:
        lines += ["", table(report["training"])]
    for what, rows in report.get("fields", {}).items():
        lines += ["", f"{what}:", table(rows)]
    if "torch" in report:
        about = "PyTorch {torch}, {threads} threads; parameters: {parameters[0]:,} here, {parameters[1]:,} there"
        lines += ["", f"{about}; outputs differ by {{difference:.1e}}:".format(**report["torch"])]
        lines += [table(report["torch"]["rows"])]
    return "\n".join(lines)


def network(config: ConfigDict, workdir: str | None, steps: int | None, *, fall_back: bool = True) -> build.Run:
    """A trained run, or the configured network with random weights.

    Raises:
        ValueError: a configuration that does not make sense.
        FileNotFoundError: no run in `workdir`.
    """
    if workdir:
        run = build.load_run(workdir, fall_back=fall_back)
    else:
        run = build.untrained(config, datasets.dataset(config))
        run = run._replace(params=build.init_params(run.model, of_seed(config.seed), run.shape))
    if steps is not None:
        run.config.sample.steps = steps
    trained.check(run)
    return run


def main(config: ConfigDict) -> None:
    values = flags.FLAGS
    outputs.refuse_existing(values.out, values.overwrite)
    run = network(config, values.workdir, values.steps, fall_back=values.fall_back)
    check_writable(values.out)
    cache.stop()
    report = benchmark(run, values.batch, values.repeats, values.parts, compile_torch=values.torch_compile)
    print(f"\n{printed(report)}\n")
    write_json(values.out, report, overwrite=values.overwrite)
    print(f"wrote {values.out}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Benchmark the network of this trained run, instead of --config's.")
    trained.define_fall_back()
    flags.DEFINE_integer("batch", 16, "Images at a time.", lower_bound=1)
    flags.DEFINE_integer("steps", None, "Steps of a synchronous run; config.sample.steps unless given.")
    flags.DEFINE_integer("repeats", 5, "Timed repetitions; the table shows medians.", lower_bound=1)
    flags.DEFINE_list(
        "parts", ["sampling", "text", "training", "fields"], f"What to measure, out of {', '.join(PARTS)}."
    )
    flags.DEFINE_bool("torch_compile", False, "Run PyTorch's network through torch.compile too (slow to compile).")
    flags.DEFINE_string("out", "benchmark.json", "File to write.")
    flags.DEFINE_bool("overwrite", False, "Replace --out.")
    cli.main(main, __doc__)
