"""Reads the text of a compiled program, HLO: which operations run, how often, how long the compiler expects of each."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all"),
    *("collective-broadcast", "ragged-all-to-all", "send", "recv"),
)
KERNELS = ("fusion", "custom-call", "copy", "reduce", "convolution", "dot", "sort", "transpose", "scatter", "gather")
BITS = {"pred": 8, "bf16": 16}  # of a type whose name does not say them
ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+(?:e\d\w*)?)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
CALLED = re.compile(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")

Computations = Mapping[str, list["Op"]]


class Op(NamedTuple):
    """An instruction of a program."""

    name: str
    shape: str
    opcode: str
    rest: str  # operands and attributes

    def attribute(self, pattern: str) -> str | None:
        """What the group of a pattern matches in the attributes."""
        found = re.search(pattern, self.rest)
        return found and found[1]

    @property
    def cycles(self) -> int:
        return max(int(self.attribute(r'"estimated_cycles":"(-?\d+)"') or 0), 0)

    @property
    def collective(self) -> str | None:
        """Its kind, where it is one."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @property
    def is_kernel(self) -> bool:
        return self.opcode in KERNELS or self.collective is not None


class Run(NamedTuple):
    """An op that a program runs."""

    op: Op
    times: float
    usual: bool  # False: in a branch that is not the cheapest of its conditional
    shapes: Mapping[str, str]  # of the ops of its computation

    def operands(self) -> list[str]:
        """Their shapes."""
        names = re.findall(r"%([\w.\-]+)", self.op.rest.partition(")")[0])
        return [self.shapes[name] for name in names if name in self.shapes]


def sizes(shape: str) -> list[tuple[str, int]]:
    """(type, bytes) of each array of a shape."""
    bits = [(kind, BITS.get(kind) or int(re.sub(r"^[a-z]+(\d+).*", r"\1", kind))) for kind, _ in ARRAY.findall(shape)]
    counts = [math.prod(int(x) for x in dims.split(",") if x) for _, dims in ARRAY.findall(shape)]
    return [(kind, size * count // 8) for (kind, size), count in zip(bits, counts, strict=True)]


def nbytes(shape: str) -> int:
    return sum(size for _, size in sizes(shape))


def dims(shape: str) -> list[int]:
    """Of the first array of a shape."""
    found = ARRAY.search(shape)
    return [int(x) for x in found[2].split(",") if x] if found else []


def parse(text: str) -> tuple[Computations, str]:
    """The ops of each computation of a program, and the name of the one that it begins with."""
    computations: dict[str, list[Op]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            current = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif current is not None and (found := INSTRUCTION.match(line)):
            current.append(Op(*found.groups()))
    return computations, entry


def executed(computations: Computations, name: str, times: float = 1, usual: bool = True) -> Iterator[Run]:
    """The ops that a computation runs one by one, those of its loops, calls and conditionals included."""
    ops = computations.get(name, [])
    shapes = {op.name: op.shape for op in ops}
    for op in ops:
        called = CALLED.findall(op.rest)
        if op.opcode == "while":
            body, condition = op.attribute(r"body=%?([\w.\-]+)"), op.attribute(r"condition=%?([\w.\-]+)")
            trips = op.attribute(r'"known_trip_count":\{"n":"?(\d+)') or _bound(computations, str(condition))
            yield from executed(computations, str(body), times * int(trips), usual)
        elif op.opcode == "conditional":
            called += re.findall(r"[\w.\-]+", op.attribute(r"branch_computations=\{([^}]*)\}") or "")
            branches = [list(executed(computations, branch, times, usual)) for branch in called]
            branches.sort(key=lambda runs: (sum(run.times * run.op.cycles for run in runs), len(runs)))
            for i, runs in enumerate(branches):
                yield from (run._replace(usual=usual and i == 0) for run in runs)
        elif op.opcode in ("call", "async-start"):
            for each in called:
                yield from executed(computations, each, times, usual)
        else:
            yield Run(op, times, usual, shapes)


def _bound(computations: Computations, condition: str) -> int:
    """How often a loop runs: the constant that its condition compares with."""
    names, found = [condition], [1]
    for name in names:
        for op in computations.get(name, []):
            names += CALLED.findall(op.rest)
            if op.opcode == "constant" and op.shape.startswith("s32[]"):
                found.append(int(op.rest.partition(")")[0]))
    return max(found)
