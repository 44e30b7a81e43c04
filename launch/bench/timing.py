"""Timing compiled programs so that their ratios hold on a machine that others use too, and tables of the results."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from launch.compiler.flops import model_flops
from launch.compiler.topology import CHIPS


class Compiled(NamedTuple):
    """A program compiled ahead of time, and what is known of it before it runs."""

    call: Callable[..., Any]
    seconds: float  # of tracing and compiling
    mib: float  # memory that it needs
    flops: float  # of matrix products and convolutions, loops as often as they run


def compiled(fn: Any, *arguments: Any, counted: Any = None) -> Compiled:
    """Compile a jitted function for arguments, or for their shapes.

    Args:
        counted: a function of the same arguments whose FLOPs count instead.
    """
    start = time.perf_counter()
    done = fn.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = done.memory_analysis()
    parts = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    mib = (parts - memory.alias_size_in_bytes) / 2**20
    return Compiled(done, seconds, mib, model_flops(counted or fn, *arguments))


class Timed(NamedTuple):
    """Seconds of each repetition: on the clock, and of processors in this process alone, whatever else runs."""

    seconds: list[float]
    processor_seconds: list[float]


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Timed]:
    """What each call takes, `repeats` times in turn, so that a machine that slows down slows all of them alike.

    Every call is made once before, untimed.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    taken = {name: Timed([], []) for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start, busy = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            taken[name].processor_seconds.append(time.process_time() - busy)
            taken[name].seconds.append(time.perf_counter() - start)
    return taken


def ratio(seconds: list[float], baseline: list[float]) -> dict[str, float]:
    """Median, lowest and highest of the ratios within each repetition."""
    ratios = [a / b for a, b in zip(seconds, baseline, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def row(name: str, batch: int, taken: Timed, baseline: Timed, done: Compiled) -> dict[str, Any]:
    """What the tables show of a program, and every single timing."""
    median = statistics.median(taken.seconds)
    peak = peak_flops(jax.devices()[0].device_kind)
    return {
        "name": name,
        "images_per_s": batch / median,
        "ms": 1e3 * median,
        "to_sync": ratio(taken.seconds, baseline.seconds),
        **({"to_sync_processor": ratio(taken.processor_seconds, baseline.processor_seconds)} if on_cpu() else {}),
        "tflops": done.flops / median / 1e12,
        "of_peak": None if peak is None else done.flops / median / peak,
        "compile_s": done.seconds,
        "memory_mib": done.mib,
        **taken._asdict(),
    }


def speed_row(name: str, taken: Timed, done: Compiled, baseline: Timed, first: Compiled) -> dict[str, Any]:
    """The arithmetic of a program in a second, and against another one's in the same repetition.

    On a CPU a second is one of a processor, elsewhere of the clock.
    """
    seconds, others = (one.processor_seconds if on_cpu() else one.seconds for one in (taken, baseline))
    rates, other = ([one.flops / second for second in each] for one, each in ((done, seconds), (first, others)))
    return {
        "name": name,
        "gflop": done.flops / 1e9,
        "gflops": statistics.median(rates) / 1e9,
        "of_first": ratio(rates, other),
        "compile_s": done.seconds,
        "memory_mib": done.mib,
        **taken._asdict(),
    }


def on_cpu() -> bool:
    """Whether the processors' time is what programs take."""
    return jax.devices()[0].platform == "cpu"


# NVIDIA's data sheets: dense bfloat16 on tensor cores, by the beginning of the device's name
_GPUS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
}
_TPUS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def peak_flops(device_kind: str) -> float | None:
    """A device's bfloat16 FLOPs a second at its peak; None for what is not in the table (CPUs)."""
    if device_kind in _TPUS:
        return CHIPS[_TPUS[device_kind]].flops
    return next((peak for name, peak in _GPUS.items() if device_kind.startswith(name)), None)


def share(value: float | None) -> str:
    """A share of the peak in per cent."""
    return "n/a" if value is None else f"{100 * value:.1f} %"


_RATIO = "{0[median]:.3f} ({0[low]:.3f} ... {0[high]:.3f})".format
_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "name": ("", str),
    "steps": ("steps", str),
    "model_calls": ("model calls", "{:g}".format),
    "images_per_s": ("images/s", "{:.4g}".format),
    "ms": ("ms", "{:.4g}".format),
    "ms_per_step": ("ms/step", "{:.4g}".format),
    "to_sync": ("x sync (low ... high)", _RATIO),
    "to_sync_processor": ("of processor time", _RATIO),
    "to_sync_per_call": ("x sync per call", "{:.3f}".format),
    "to_torch": ("x PyTorch (low ... high)", _RATIO),
    "to_torch_processor": ("of processor time", _RATIO),
    "gflop": ("GFLOP", "{:.3g}".format),
    "gflops": ("GFLOP/s", "{:.1f}".format),
    "of_first": ("x the first (low ... high)", _RATIO),
    "tflops": ("TFLOP/s", "{:.3g}".format),
    "of_peak": ("of peak", share),
    "compile_s": ("compile s", "{:.1f}".format),
    "memory_mib": ("memory MiB", "{:.1f}".format),
}


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text: names to the left, numbers to the right."""
    shown = {key: column for key, column in _COLUMNS.items() if key in rows[0]}
    cells = [[title for title, _ in shown.values()]]
    cells += [[text(row[key]) for key, (_, text) in shown.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    line = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    return "\n".join(line.format(*row) for row in cells)
