"""What the text of a compiled TPU program says of its time and its traffic between chips.

The compiler writes the cycles it expects of each operation beside it, but for custom kernels: of
these it gives the final schedule, in a text of its own. A loop whose number of rounds stands in its
condition counts that often; one that runs until something is found, as rejection sampling does,
counts once.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8} | {
    f"{sign}{bits}": bits // 8 for sign in "su" for bits in (8, 16, 32, 64)
}

_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*?)\)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"\b(body|condition|to_apply|calls)=%([\w.\-]+)")
_ROUNDS = re.compile(r"ROOT .* compare\(.*direction=LT")
_KERNEL = re.compile(r'= \w+\[(\d+)\b.*custom_call_target="tpu_custom_call".*"body":"([^"]*)"')
_SCHEDULED = re.compile(r"\t *([\d.]+) scheduled bundles .*%\): (%.*)")

# What moves nothing: names for what is there already.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call")


class Array(NamedTuple):
    """An array of a program."""

    dtype: str
    bytes: int
    near: bool  # in the chip's own fast memory, not in its HBM


class Instruction(NamedTuple):
    """One line of a computation."""

    kind: str  # fusion, copy, while, all-reduce, ...
    results: tuple[Array, ...]
    operands: tuple[Array, ...]
    line: str
    times: int  # how often it runs in a step

    @property
    def cycles(self) -> int:
        """What the compiler expects of all its runs; 0 where it says nothing."""
        found = _CYCLES.search(self.line)
        return int(found[1]) * self.times if found else 0

    @property
    def moved(self) -> int:
        """Bytes that all its runs read from HBM and write to it."""
        if self.kind in _FREE or self.kind.endswith("-done"):
            return 0
        if self.kind.endswith("-start"):  # from the first to the second, a part of one of them
            ends = self.results[:2]
            return self.times * min(a.bytes for a in ends) * sum(not a.near for a in ends)
        arrays = (*self.results, *self.operands)
        return self.times * sum(a.bytes for a in arrays if not a.near)


class Traffic(NamedTuple):
    """What the chips exchange by one kind of collective, each chip in a step."""

    kind: str
    dtype: str
    arrays: int
    bytes: int  # of the results


def instructions(text: str) -> list[Instruction]:
    """All that runs in a step, loops unrolled as a count. What is inside a fusion is not listed."""
    return list(_running(*_computations(text)))


def schedules(texts: Iterable[str]) -> dict[str, int]:
    """Bundles of custom kernels by what is in them, from the compiler's analyses of schedules.

    It makes and tells the schedule of equal kernels once.
    """
    found: dict[str, int] = {}
    for bundles, line in (row for text in texts for row in _SCHEDULED.findall(text)):
        if kernel := _KERNEL.search(line):  # the program that calls it has some bundles for it, too
            found[kernel[2]] = max(round(float(bundles)), found.get(kernel[2], 0))
    return found


def kernels(run: list[Instruction], bundles: Mapping[str, int]) -> tuple[int, int]:
    """(cycles of the custom kernels of a step, how many of them have no schedule).

    A kernel goes through its schedule for every row of its result, without loops of its own, and
    takes a cycle a bundle: what it waits for memory is not in it.
    """
    known, unknown = 0, 0
    for instruction in run:
        if 'custom_call_target="tpu_custom_call"' in instruction.line:
            kernel = _KERNEL.search(instruction.line)
            if kernel and kernel[2] in bundles:
                known += bundles[kernel[2]] * int(kernel[1]) * instruction.times
            else:
                unknown += instruction.times
    return known, unknown


def traffic(text: str) -> list[Traffic]:
    """The collectives of a step, those inside of fusions too, largest first."""
    count: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    for instruction in _running(*_computations(text), into_fusions=True):
        kind = instruction.kind.removesuffix("-start")
        if kind in KINDS:
            for array in _received(instruction):
                count[kind, array.dtype] += instruction.times
                size[kind, array.dtype] += array.bytes * instruction.times
    return [Traffic(*key, count[key], amount) for key, amount in size.most_common()]


def _received(instruction: Instruction) -> tuple[Array, ...]:
    """What a collective gives; one that only starts here names what it takes, too."""
    results, taken = instruction.results, len(instruction.operands)
    starts = instruction.kind.endswith("-start") and instruction.kind != "all-reduce-start"
    return results[taken : 2 * taken] if starts else results


def _arrays(shape: str) -> tuple[Array, ...]:
    """The arrays in a shape as it is written: one, or those of a tuple."""
    return tuple(
        Array(
            dtype,
            math.ceil(BYTES[dtype] * math.prod(int(n) for n in sides.split(",") if n)),
            "S(" in layout,
        )
        for dtype, sides, layout in _ARRAY.findall(shape)
    )


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """(lines by computation, the name of the one that is the program)."""
    computations: dict[str, list[str]] = {}
    entry = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            lines = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("  ") and computations:
            lines.append(line)
    if not entry:
        raise ValueError("no ENTRY in the program's text.")
    return computations, entry


def _running(
    computations: dict[str, list[str]], name: str, times: int = 1, into_fusions: bool = False
) -> Iterator[Instruction]:
    found = [_INSTRUCTION.match(line) for line in computations[name]]
    here = [match for match in found if match]
    shapes = {match[1]: _arrays(match[2]) for match in here}
    for match in here:
        kind, line = match[3], match.string
        operands = [shapes.get(operand, ()) for operand in re.findall(r"%([\w.\-]+)", match[4])]
        yield Instruction(kind, shapes[match[1]], sum(operands, ()), line, times)
        called = dict(_CALLED.findall(line))
        if kind == "while":
            rounds = _rounds(computations[called["condition"]])
            yield from _running(computations, called["body"], times * rounds, into_fusions)
        elif kind == "call":
            yield from _running(computations, called["to_apply"], times, into_fusions)
        elif into_fusions and "calls" in called:
            yield from _running(computations, called["calls"], times, into_fusions)


def _rounds(condition: list[str]) -> int:
    """How often a loop runs, whose counter goes from 0 by 1 up to a constant; 1 for any other."""
    if any(_ROUNDS.search(line) for line in condition):
        for line in condition:
            if limit := re.search(r" = s32\[\]\S* constant\((\d+)\)", line):
                return int(limit[1])
    return 1
