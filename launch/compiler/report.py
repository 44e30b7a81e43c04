"""What the compiler said of a program, as bounds: does it fit, how fast can it be at best, what limits it."""

import math
from typing import Any, NamedTuple

from launch.compiler.cost import BETWEEN_SLICES
from launch.compiler.topology import GIB, Topology


class Bounds(NamedTuple):
    """What one run of a program (a training step, a whole sampler) takes at least. Per chip, unless said otherwise."""

    flops: float
    bytes: float  # read and written, HBM and on-chip memory alike
    seconds: dict[str, float]  # at the chip's peak rates, by what they are spent on
    limit: str  # which of those is the longest
    images_per_second: float  # of all chips
    utilisation: float  # of the chips' peak, by the model's own FLOPs: MFU
    cycles: float  # the compiler's estimate, in sum over operations

    @property
    def least(self) -> float:
        """Seconds of a run."""
        return self.seconds[self.limit]

    def chip_hours(self, images: float, chips: int) -> float:
        """For so many images."""
        return images / self.images_per_second * chips / 3600


def bounds(answer: dict[str, Any], where: Topology) -> Bounds:
    """The roofline (Williams et al. 2009): no program is faster than its slowest resource at its peak rate.

    FLOPs and bytes are XLA's own totals, times what the loops of `launch.compiler.cost` add to them.
    """
    chip, once, total = where.chip, answer["once"], answer["total"]

    def corrected(name: str) -> float:
        return answer["xla"][name] * total[name] / once[name] if once[name] else total[name]

    flops, moved = corrected("flops"), corrected("bytes")
    off_chip = moved * total["hbm"] / total["bytes"] if total["bytes"] else 0.0
    between = sum(one["sent"] for kind, one in answer["collectives"].items() if kind == BETWEEN_SLICES)
    within = sum(one["sent"] for kind, one in answer["collectives"].items() if kind != BETWEEN_SLICES)
    seconds = {
        "arithmetic": flops / chip.flops,
        "HBM": off_chip / chip.bandwidth,
        "links between chips": within / chip.links,
        "network between slices": between / chip.network,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    rate = answer["images"] / seconds[limit] if seconds[limit] else math.inf
    peak = chip.flops * answer["chips"]
    utilisation = answer["model_flops"] / seconds[limit] / peak if seconds[limit] else 0.0
    return Bounds(flops, moved, seconds, limit, rate, utilisation, total["cycles"])


def needs(answer: dict[str, Any]) -> float | None:
    """Bytes of HBM that the program needs at its peak; None if the compiler refused it without a number."""
    return answer["memory"]["peak"] if "memory" in answer else answer["needs"]


def fits(answer: dict[str, Any], where: Topology) -> bool:
    """Whether a chip's memory is enough."""
    return "memory" in answer and answer["memory"]["peak"] <= where.chip.hbm


def text(answer: dict[str, Any], where: Topology, config: dict[str, Any], program: str) -> str:
    """The report of one program."""
    per_chip = answer["images"] / answer["chips"]
    lines = [
        f"{answer['parameters']:,} parameters, {answer['images']} images, {per_chip:g} a chip",
        f"traced in {answer['seconds']['trace']:.0f} s, compiled in {answer['seconds']['compile']:.0f} s, "
        f"{answer['host_bytes'] / GIB:.1f} GiB of this machine's memory",
        *_memory(answer, where),
    ]
    if not fits(answer, where):
        return "\n".join([*lines, *advice(answer, where, config, program)])
    return "\n".join([*lines, *_work(answer), *_communication(answer), *_roofline(answer, where, config, program)])


def _memory(answer: dict[str, Any], where: Topology) -> list[str]:
    hbm = where.chip.hbm
    if "memory" not in answer:
        said = needs(answer)
        if said is None:
            return [f"does not fit: {answer['message']}"]
        return [
            f"does not fit: needs {_gib(said)} of the {_gib(answer['has'])} that the compiler has for programs on a "
            f"{where.chip.name} chip ({_gib(answer['argument_bytes'])} of it arguments)"
        ]
    memory = answer["memory"]
    verdict = "fits" if memory["peak"] <= hbm else "does not fit"
    names = ("arguments", "outputs", "aliased", "temporaries", "code")
    notes = {"aliased": "  (outputs in the place of arguments)"}
    return [
        "memory of a chip",
        *(f"  {name:<12} {_gib(memory[name]):>12}{notes.get(name, '')}" for name in names),
        f"  {'peak':<12} {_gib(memory['peak']):>12}  {verdict}: {memory['peak'] / hbm:.0%} of {_gib(hbm)}",
    ]


def _work(answer: dict[str, Any]) -> list[str]:
    unknown, loops = answer["loops"].count(None), [trips for trips in answer["loops"] if trips is not None]
    notes = []
    if loops:
        notes.append(f"  {len(loops)} loops, their bodies counted {', '.join(map(str, sorted(set(loops))))} times")
    if unknown:
        notes.append(f"  {unknown} loops of unknown length, counted once: the work is more than this")
    if answer["conditionals"]:
        notes.append(f"  {answer['conditionals']} conditionals, all branches counted: the work is at most this")
    if answer["kernels"]:
        notes.append(
            f"  {answer['kernels']:g} calls of kernels: bytes of operands and results, FLOPs as each says of itself"
        )
    return notes


def _communication(answer: dict[str, Any]) -> list[str]:
    if not answer["collectives"]:
        return ["no communication between chips"]
    rows = [
        f"  {kind:<20} {one['count']:>6g} x {_bytes(one['operands']):>10} in, {_bytes(one['sent']):>10} sent by a chip"
        for kind, one in answer["collectives"].items()
    ]
    return ["communication", *rows]


def _roofline(answer: dict[str, Any], where: Topology, config: dict[str, Any], program: str) -> list[str]:
    found = bounds(answer, where)
    times = ", ".join(f"{name} {_seconds(value)}" for name, value in found.seconds.items() if value)
    lines = [
        f"work of a chip: {_count(found.flops)}FLOPs, {_bytes(found.bytes)} read and written",
        f"at least {_seconds(found.least)}, bound by {found.limit} (at peak rates: {times})",
        f"at most {found.images_per_second:,.0f} images/s, {found.utilisation:.0%} of the chips' peak (MFU); "
        f"at least {found.chip_hours(1e6, answer['chips']):,.2f} chip-hours per million images",
    ]
    if program == "train":
        images = config["train"]["steps"] * answer["images"]
        hours = found.chip_hours(images, answer["chips"])
        lines.append(f"all {config['train']['steps']:,} steps: at least {hours:,.1f} chip-hours")
    return lines


def advice(answer: dict[str, Any], where: Topology, config: dict[str, Any], program: str) -> list[str]:
    """What to change so that the program fits, what helps most first."""
    hbm = answer.get("has") or where.chip.hbm
    arguments, peak = answer["argument_bytes"], needs(answer)
    rest = None if peak is None else peak - arguments
    chips, mesh = answer["chips"], config["mesh"]
    smaller, accumulated = [], []
    if program == "train":
        if config["model"]["remat"] != "blocks":
            smaller.append(
                "--config.model.remat=blocks: compute blocks again in the backward pass, a third more arithmetic "
                "(products: only what is between convolutions and matrix products, which saves less)"
            )
        parts = config["optim"].get("accumulate", 1)
        most = answer["images"] // (parts * chips)
        room = hbm - arguments
        wanted = 2 ** math.ceil(math.log2(max(rest / room, 2))) if rest and room > 0 else 2
        if most > 1 and arguments < hbm and "accumulate" in config["optim"]:  # an autoencoder's batch is never split
            accumulated.append(
                f"--config.optim.accumulate={parts * min(wanted, most)}: the same batch in more parts, about "
                f"1/{min(wanted, most)} of the temporaries"
            )
    share = []
    spread = chips // (where.slices * mesh["tensor"])  # slices lie along data
    fsdp = mesh["fsdp"] if mesh["fsdp"] > 0 else chips // (mesh["data"] * mesh["tensor"])
    if fsdp < spread:
        share.append(
            f"--config.mesh.data={where.slices} --config.mesh.fsdp={spread}: each chip keeps 1/{spread // fsdp} of the "
            f"{_gib(arguments)} of arguments, nearly all of them weights and their copies"
        )
    fewer = "--config.train.batch" if program == "train" else "--batch"
    end = [f"a smaller {fewer} (now {answer['images']})", f"more chips than {chips} (--topology), or larger ones"]
    steps = [*smaller, *accumulated, *share] if arguments < hbm / 2 else [*share, *smaller, *accumulated]
    parts = f"{_gib(arguments)} are arguments" + (f", {_gib(rest)} temporaries and outputs" if rest else "")
    return [f"{parts}; what helps, first things first:", *(f"  {step}" for step in [*steps, *end])]


def ratios(answer: dict[str, Any], other: dict[str, Any], where: Topology) -> str:
    """One program over another, line by line."""
    ours, theirs = bounds(answer, where), bounds(other, where)
    rows = {
        "FLOPs": (ours.flops, theirs.flops),
        "bytes": (ours.bytes, theirs.bytes),
        "peak memory": (answer["memory"]["peak"], other["memory"]["peak"]),
        "temporaries": (answer["memory"]["temporaries"], other["memory"]["temporaries"]),
        "images/s (bound)": (ours.images_per_second, theirs.images_per_second),
        "cycles (estimate)": (ours.cycles, theirs.cycles),
        "compile seconds": (answer["seconds"]["compile"], other["seconds"]["compile"]),
    }
    return "\n".join(f"  {name:<20} {a / b:.3f}" for name, (a, b) in rows.items() if b)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _count(value: float) -> str:
    power = min(max(int(math.log10(value) // 3), 0), 5) if value > 0 else 0
    return f"{value / 1000**power:.4g} {' KMGTP'[power].strip()}"


def _bytes(value: float) -> str:
    return f"{_count(value)}B"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
