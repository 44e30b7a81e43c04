"""What a compiled program computes, moves and sends in one run on one chip, with loops as often as they run.

XLA's own totals (`compiled.cost_analysis()`) count the body of a loop once. `count` follows the same rules (XLA's
hlo_cost_analysis.cc) twice, with every loop once and with all its turns: the ratio of the two corrects XLA's totals,
and leaves those of a program without loops as they are.
"""

import re
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np

from launch.compiler.hlo import Array, Computation, Instruction, Program

# what names or forwards a buffer, or runs computations that are counted by themselves; of a pair the first is counted
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *(
        "while",
        "call",
        "conditional",
        "optimization-barrier",
        "add-dependency",
        "domain",
        "async-start",
        "async-update",
    ),
    *("async-done", "copy-done", "slice-done", "send-done", "recv", "recv-done", "all-reduce-done", "all-gather-done"),
    *("collective-permute-done",),
}
_STILL = {  # what computes nothing, or what XLA counts as transcendental and not as FLOPs
    *("broadcast", "reshape", "copy", "copy-start", "transpose", "slice", "dynamic-slice", "dynamic-update-slice"),
    *(
        "concatenate",
        "slice-start",
        "pad",
        "iota",
        "reverse",
        "gather",
        "rng-bit-generator",
        "send",
        "get-dimension-size",
    ),
    *("exponential", "exponential-minus-one", "log", "log-plus-one", "power", "sqrt", "rsqrt", "cbrt", "tanh", "sine"),
    *("cosine", "logistic", "erf", "atan2", "tan"),
}
BETWEEN_SLICES = "between slices"  # the kind of what leaves a slice over the data centre's network
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast|send)"
    r"(-start)?"
)


class Cost(NamedTuple):
    """Multiply-adds are two FLOPs; bytes are those that operations read and write, padded as they lie in memory."""

    flops: float = 0.0
    bytes: float = 0.0
    hbm: float = 0.0  # of the bytes, those outside on-chip memory
    cycles: float = 0.0  # the compiler's own estimates, where it gives one

    def plus(self, other: "Cost", times: float) -> "Cost":
        """self + times * other."""
        return Cost(*(a + times * b for a, b in zip(self, other, strict=True)))


class Collective(NamedTuple):
    """All communication of one kind in one run."""

    count: float
    operands: float  # bytes that each chip puts in
    sent: float  # bytes that each chip sends at least: what a ring of the chips that take part sends


class Count(NamedTuple):
    """What was found in a program."""

    once: Cost  # as XLA counts: the body of every loop once, and what kernels say of their bytes
    total: Cost  # loops as often as they run, and of kernels the bytes of operands and results
    collectives: dict[str, Collective]
    kernels: float  # calls of hand-written kernels
    loops: list[int | None]  # turns of each loop; None: the program does not tell, its body was counted once
    conditionals: int  # of which every branch was counted


def count(program: Program, devices: int) -> Count:
    """Add up one run of a program on `devices` chips."""
    once = total = Cost()
    collectives: dict[str, Collective] = {}
    loops: list[int | None] = []
    kernels, conditionals = 0.0, 0
    inner: dict[str, float] = {}
    for computation, one, times, trips in program.walk():
        repeats = 1 if times is None else times
        cost = _cost(program, computation, one, inner)
        total = total.plus(cost, repeats)
        if one.opcode == "custom-call":
            # XLA believes what a kernel says of itself, and counts nothing of one that says nothing
            cost = cost._replace(bytes=_claimed(one)[1])
        once = once.plus(cost, 1)
        loops += [trips] if one.opcode == "while" else []
        conditionals += one.opcode == "conditional"
        kernels += repeats * ('custom_call_target="tpu_custom_call"' in one.rest)
        for kind, operands, sent in _communication(program, computation, one, devices):
            before = collectives.get(kind, Collective(0, 0, 0))
            more = (repeats, repeats * operands, repeats * sent)
            collectives[kind] = Collective(*(a + b for a, b in zip(before, more, strict=True)))
    return Count(once, total, collectives, kernels, loops, conditionals)


def _cost(program: Program, computation: Computation, one: Instruction, inner: dict[str, float]) -> Cost:
    if one.opcode in _FREE:
        return Cost()
    estimate = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
    moved = [*_read(program, computation, one), *_written(program, one)]
    return Cost(
        _flops(program, computation, one, inner),
        sum(array.padded for array in moved),
        sum(array.padded for array in moved if not array.on_chip),
        float(estimate[1]) if estimate else 0.0,
    )


def _flops(program: Program, computation: Computation, one: Instruction, inner: dict[str, float]) -> float:
    if one.opcode in _FREE or one.opcode in _STILL:
        return 0.0
    if one.opcode == "fusion":
        name = one.called("calls")
        if name not in inner:
            fused = program.computations[name]
            inner[name] = sum(_flops(program, fused, part, inner) for part in fused.instructions.values())
        return inner[name]
    if one.opcode == "custom-call":
        return _claimed(one)[0]
    operands = computation.operands(one)
    if one.opcode == "convolution":
        return _convolution(one, operands[0], operands[1])
    if one.opcode == "dot":
        axes = re.findall(r"\d+", one.attribute("lhs_contracting_dims"))
        return 2.0 * one.shape[0].elements * prod(operands[0].dims[int(axis)] for axis in axes)
    return float(max(array.elements for array in (*operands, *one.shape)))


def _claimed(one: Instruction) -> tuple[float, float]:
    """FLOPs and bytes that a kernel says it takes; zeros if it says nothing."""
    flops, moved = (re.search(rf'"{name}":"(\d+)"', one.rest) for name in ("flops", "bytes_accessed"))
    return float(flops[1]) if flops else 0.0, float(moved[1]) if moved else 0.0


def _convolution(one: Instruction, x: Array, kernel: Array) -> float:
    """Two for each multiply-add; what meets padding, or holes of a dilated input, is none."""
    of_x, of_kernel, of_out = re.split("_|->", one.attribute("dim_labels"))
    window = dict(part.split("=") for part in one.attribute("window").strip("{}").split())
    pairs = 1
    for axis in (letter for letter in of_x if letter.isdigit()):
        size, taps, out = (
            x.dims[of_x.index(axis)],
            kernel.dims[of_kernel.index(axis)],
            one.shape[0].dims[of_out.index(axis)],
        )

        def along(name: str, default: str, axis: str = axis) -> str:
            return window[name].split("x")[int(axis)] if name in window else default

        stride, spread, holes = (int(along(name, "1")) for name in ("stride", "rhs_dilate", "lhs_dilate"))
        first = int(along("pad", "0_0").split("_")[0])
        at = stride * np.arange(out)[:, None] + spread * np.arange(taps)[None, :] - first
        pairs *= int(np.sum((at >= 0) & (at <= (size - 1) * holes) & (at % holes == 0)))
    features = kernel.dims[of_kernel.index("i")] * kernel.dims[of_kernel.index("o")]
    batch = x.dims[of_x.index("b")] // int(one.attribute("batch_group_count") or 1)
    return 2.0 * features * batch * pairs


def _read(program: Program, computation: Computation, one: Instruction) -> list[Array]:
    """What an operation reads; of an operand that it only takes slices of, those."""
    operands = computation.operands(one)
    if one.opcode == "fusion":
        fused = program.computations[one.called("calls")]
        pairs = zip(operands, fused.parameters, strict=True)
        return [read._replace(on_chip=a.on_chip) for a, inside in pairs for read in _used(program, fused, inside.name)]
    if one.opcode in ("slice", "dynamic-slice", "gather"):
        return [one.shape[0]._replace(on_chip=operands[0].on_chip), *operands[1:]]
    if one.opcode == "slice-start":
        return [one.shape[1]._replace(on_chip=operands[0].on_chip)]
    if one.opcode == "dynamic-update-slice":
        return list(operands[1:])
    return list(operands)


def _used(program: Program, fused: Computation, name: str) -> list[Array]:
    """What a fusion reads of one of its operands: slices, what fusions inside it read, and else the whole, once."""
    parts: list[Array] = []
    whole = False
    for user in fused.users(name):
        first = user.operands[0] == name
        if first and user.opcode in ("slice", "dynamic-slice"):
            parts.append(user.shape[0])
        elif user.opcode == "fusion":
            inner = program.computations[user.called("calls")]
            uses = [at for at, operand in enumerate(user.operands) if operand == name]
            parts += [part for at in uses for part in _used(program, inner, inner.parameters[at].name)]
        else:
            # what is updated in place is not read
            whole = whole or not (first and user.opcode == "dynamic-update-slice")
    return [*parts, *fused.instructions[name].shape] if whole else parts


def _written(program: Program, one: Instruction) -> list[Array]:
    """What an operation writes; of what it updates in place, the update."""
    if one.opcode == "copy-start":
        return [one.shape[0]]
    if one.opcode == "slice-start":
        return [one.shape[1]]
    if one.opcode == "send" or "AllocateBuffer" in one.rest:
        return []
    computation, roots = None, [one]
    if one.opcode == "fusion":
        computation = program.computations[one.called("calls")]
        root = computation.instructions[computation.root]
        roots = [computation.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    written = []
    for array, root in zip(one.shape, roots if len(roots) == len(one.shape) else [one] * len(one.shape), strict=True):
        updates = computation is not None and root.opcode == "dynamic-update-slice"
        written.append(computation.operands(root)[1]._replace(on_chip=array.on_chip) if updates else array)
    return written


def _communication(
    program: Program, computation: Computation, one: Instruction, devices: int
) -> Iterator[tuple[str, float, float]]:
    """(kind, operand bytes, bytes sent) of a collective, and of those inside a fusion."""
    if one.opcode == "fusion":
        fused = program.computations[one.called("calls")]
        for part in fused.instructions.values():
            yield from _communication(program, fused, part, devices)
    found = _COLLECTIVE.fullmatch(one.opcode)
    if not found or (found[1] == "send" and "megascale" not in one.rest):
        return
    kind = found[1]
    operands = sum(array.nbytes for array in computation.operands(one))
    chips = _group(one, devices)
    share = (chips - 1) / chips
    sent = {
        "all-reduce": 2 * share,
        "all-gather": chips - 1,
        "reduce-scatter": share,
        "all-to-all": share,
        "ragged-all-to-all": share,
    }
    yield BETWEEN_SLICES if kind == "send" else kind, operands, operands * sent.get(kind, 1.0)


def _group(one: Instruction, devices: int) -> int:
    """Chips that take part in a collective together."""
    groups = one.attribute("replica_groups")
    if listed := re.match(r"\{\{([\d,]+)\}", groups):
        return len(listed[1].split(","))
    if iota := re.match(r"\[\d+,(\d+)\]", groups):
        return int(iota[1])
    if mesh := re.match(r"mesh\[([^\]]*)\] \{([^}]*)\}", groups):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        # 'axis':(before)size is a part of an axis
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return prod(int(part or sizes[axis]) for axis, part in axes)
    return devices
