"""Reading the text of a compiled program (HLO): its instructions, and how often its loops run."""

import operator
import re
from collections.abc import Callable, Iterator
from math import ceil, prod
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)(.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)[a-z0-9]*\[([\d,]*)\](?:\{([^}]*)\})?")
_LONGEST = 100_000  # turns; a loop that still runs then counts as one of unknown length
_INTEGERS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "maximum": max,
    "minimum": min,
    "and": operator.and_,
    "or": operator.or_,
}
_SAME = {"copy", "bitcast", "convert", "copy-start", "copy-done", "reshape", "optimization-barrier"}

# of an instruction, as far as it is known without running the program: an integer, or a tuple of values
Value = int | tuple["Value", ...] | None


class Array(NamedTuple):
    """An array as it lies in memory."""

    dtype: str  # s32, bf16, pred, ...
    dims: tuple[int, ...]
    order: tuple[int, ...]  # axes from the fastest to the slowest
    tile: tuple[int, ...]  # of the fastest axes, the slower first; sizes are rounded up to it
    on_chip: bool  # in another memory than HBM

    @property
    def elements(self) -> int:
        return prod(self.dims)

    @property
    def nbytes(self) -> float:
        """Bytes of its elements."""
        return self.elements * _width(self.dtype)

    @property
    def padded(self) -> float:
        """Bytes that it takes in memory."""
        dims = [self.dims[axis] for axis in self.order] or [1]
        for axis, tile in enumerate(reversed(self.tile)):
            if axis < len(dims):
                dims[axis] = ceil(dims[axis] / tile) * tile
            else:
                dims.append(tile)
        return prod(dims) * _width(self.dtype)


def _width(dtype: str) -> float:
    bits = re.search(r"\d+", dtype)
    if bits is None:
        return float(dtype == "pred")  # a token is nothing
    return int(bits[0]) / 8


def arrays(text: str) -> tuple[Array, ...]:
    """All arrays of a shape, which may be a tuple."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        order, _, tiles = layout.partition(":")
        tile = re.search(r"T\(([\d,]+)\)", tiles)
        space = re.search(r"S\((\d+)\)", tiles)
        found.append(
            Array(
                dtype,
                _numbers(dims),
                _numbers(order) or tuple(reversed(range(len(_numbers(dims))))),
                _numbers(tile[1]) if tile else (),
                space is not None and space[1] != "0",
            )
        )
    return tuple(found)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    shape: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str  # of the brackets: a constant's value, a parameter's number
    rest: str  # attributes

    def attribute(self, name: str) -> str:
        """Its text up to the next comma that is in no bracket; "" if there is none."""
        start = self.rest.find(f" {name}=")
        if start < 0:
            return ""
        start += len(name) + 2
        depth = 0
        for end in range(start, len(self.rest)):
            letter = self.rest[end]
            depth += (letter in "{[(") - (letter in "}])")
            if depth < 0 or (depth == 0 and letter == ","):
                return self.rest[start:end]
        return self.rest[start:]

    def called(self, name: str) -> str:
        """The computation that the attribute names."""
        return self.attribute(name).lstrip("%")

    @property
    def calls(self) -> bool:
        """Whether it runs other computations."""
        return self.opcode in ("while", "conditional", "call", "async-start")

    @property
    def branches(self) -> list[str]:
        """The computations of a conditional."""
        several = re.findall(r"%([\w.\-]+)", self.attribute("branch_computations"))
        return several or [self.called("true_computation"), self.called("false_computation")]


class Computation(NamedTuple):
    """Its instructions by name in order, and the name of the one whose value it returns."""

    instructions: dict[str, Instruction]
    root: str

    @property
    def parameters(self) -> list[Instruction]:
        """In the order of the arguments."""
        found = [one for one in self.instructions.values() if one.opcode == "parameter"]
        return sorted(found, key=lambda one: int(one.inside))

    def operands(self, one: Instruction) -> list[Array]:
        """The arrays that an instruction takes; those of a tuple one by one."""
        return [array for name in one.operands for array in self.instructions[name].shape]

    def users(self, name: str) -> list[Instruction]:
        return [one for one in self.instructions.values() if name in one.operands]


class Visit(NamedTuple):
    """An instruction that runs."""

    computation: Computation
    instruction: Instruction
    times: int | None  # how often; None in a loop whose length the program does not tell
    trips: int | None = None  # of a loop: turns each time that it runs, if the program tells


class Program(NamedTuple):
    """Computations by name, and the name of the one that runs."""

    computations: dict[str, Computation]
    entry: str

    def walk(self) -> Iterator[Visit]:
        """Every instruction that runs: all branches of a conditional, and nothing of what a fusion is made of."""
        yield from self._walk(self.entry, 1, {})

    def _walk(self, name: str, times: int | None, given: dict[int, Value]) -> Iterator[Visit]:
        computation = self.computations[name]
        value = _Values(self.computations, computation, given)
        for one in computation.instructions.values():
            arguments = [value(operand) for operand in one.operands] if one.calls else []
            if one.opcode == "while":
                body, condition = one.called("body"), one.called("condition")
                trips = self._trips(body, condition, arguments[0])
                yield Visit(computation, one, times, trips)
                turns = None if times is None or trips is None else times * trips
                # what no turn changes, the loops inside may depend on
                kept = {0: self._kept(body, arguments[0])}
                yield from self._walk(body, turns, kept)
                yield from self._walk(condition, turns, kept)
                continue
            yield Visit(computation, one, times)
            if one.opcode == "conditional":
                for branch, argument in zip(one.branches, arguments[1:], strict=True):
                    yield from self._walk(branch, times, {0: argument})
            elif one.calls:
                callee = one.called("to_apply") or one.called("calls")
                yield from self._walk(callee, times, dict(enumerate(arguments)))

    def _trips(self, body: str, condition: str, state: Value) -> int | None:
        """How often the loop runs, by running its counters alone."""
        for turns in range(_LONGEST):
            goes_on = self._returns(condition, state)
            if goes_on is None:
                return None
            if not goes_on:
                return turns
            state = self._returns(body, state)
        return None

    def _kept(self, body: str, state: Value) -> Value:
        if not isinstance(state, tuple):
            return None
        after = self._returns(body, state)
        return tuple(a if a == b else None for a, b in zip(state, after, strict=True))

    def _returns(self, name: str, argument: Value) -> Value:
        computation = self.computations[name]
        return _Values(self.computations, computation, {0: argument})(computation.root)


class _Values:
    """Values of a computation's instructions, given those of its parameters by number."""

    def __init__(self, computations: dict[str, Computation], computation: Computation, given: dict[int, Value]):
        self._computations = computations
        self._instructions = computation.instructions
        self._given = given
        self._known: dict[str, Value] = {}

    def __call__(self, name: str) -> Value:
        if name not in self._known:
            self._known[name] = self._find(self._instructions[name])
        return self._known[name]

    def _find(self, one: Instruction) -> Value:
        if one.opcode == "parameter":
            return self._given.get(int(one.inside))
        if one.opcode == "tuple":
            return tuple(self(operand) for operand in one.operands)
        if one.opcode == "get-tuple-element":
            whole = self(one.operands[0])
            return whole[int(one.attribute("index"))] if isinstance(whole, tuple) else None
        # only counters matter: scalars, and tuples that hold them
        if len(one.shape) == 1 and (one.shape[0].elements != 1 or one.shape[0].dtype.startswith(("f", "bf"))):
            return None
        if one.opcode == "constant":
            return _constant(one.inside)
        if one.opcode in _SAME:
            return self(one.operands[0])
        if one.opcode == "fusion":
            inner = self._computations[one.called("calls")]
            return _Values(self._computations, inner, dict(enumerate(map(self, one.operands))))(inner.root)
        if one.opcode == "compare" or one.opcode in _INTEGERS:
            a, b = map(self, one.operands)
            if not (isinstance(a, int) and isinstance(b, int)):
                return None
            if one.opcode == "compare":
                return int(getattr(operator, one.attribute("direction").lower())(a, b))
            return _INTEGERS[one.opcode](a, b)
        return None


def _constant(text: str) -> int | None:
    text = text.strip("{} ")
    if text in ("true", "false"):
        return int(text == "true")
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def parse(text: str) -> Program:
    """Read what `compiled.as_text()` gives.

    Raises:
        ValueError: it is no program.
    """
    computations: dict[str, Computation] = {}
    entry, name, root = "", "", ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name, instructions = head[2], {}
            entry = name if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            is_root, ident, shape, opcode, inside, rest = found.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            instructions[ident] = Instruction(ident, opcode, arrays(shape), operands, inside, rest)
            root = ident if is_root else root
        elif line.startswith("}") and instructions:  # its thread may follow
            computations[name] = Computation(instructions, root)
    if entry not in computations:
        raise ValueError("expected the text of a compiled program with an ENTRY computation, got none")
    return Program(computations, entry)
