"""What the TPU compiler expects a compiled program to cost, read from the text of its optimised HLO.

The TPU backend writes its cost model's figure, `estimated_cycles`, on most instructions; hand-written kernels
(`tpu_custom_call`) have only what their author declared, from which they are priced. An expectation, not a
measurement: it ranks programs of one compiler for one chip. Knows nothing of what the program computes.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tpusd.networks.reuse import REUSED
from tpusd.preflight.chips import Chip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_BOUND = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
_CALLEE = re.compile(r"to_apply=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)")
_KERNEL = re.compile(r'"cost_estimate":(\{[^{}]*\})')
_DECLARED = ("flops", "transcendentals", "bytes_accessed")  # in whatever order the compiler writes them


def _no_seconds() -> defaultdict[str, float]:
    return defaultdict(float)


@dataclass
class Part:
    """Seconds by operation, of one execution of a piece of a program on one device."""

    by_op: defaultdict[str, float] = field(default_factory=_no_seconds)
    kernels: defaultdict[str, float] = field(default_factory=_no_seconds)  # of hand-written kernels: `kernel_seconds`
    unpriced: Counter[str] = field(default_factory=Counter)  # executions of kernels that declare no cost

    @property
    def seconds(self) -> float:
        return sum(self.by_op.values()) + sum(self.kernels.values())

    def add(self, other: "Part", times: int = 1) -> None:
        for mine, theirs in ((self.by_op, other.by_op), (self.kernels, other.kernels)):
            for name, seconds in theirs.items():
                mine[name] += times * seconds
        for name, executions in other.unpriced.items():
            self.unpriced[name] += times * executions


@dataclass(frozen=True)
class ProgramCost:
    """What a program costs.

    once: what runs once a call.
    per_trip: one trip of the loop whose length is an argument (the sampler's).
    reused: what a trip does not cost that reuses the deep half of the denoiser.
    """

    once: Part
    per_trip: Part
    reused: Part


def program_cost(hlo: str, chip: Chip) -> ProgramCost:
    """Adds up the estimates of `hlo`, the text of a compiled TPU program.

    A loop of known length counts as often as it runs, and of a conditional the costliest branch. Raises ValueError if
    the text carries no estimate (it was not compiled for a TPU).
    """
    if "estimated_cycles" not in hlo:
        raise ValueError("no estimated_cycles in this HLO: it was not compiled for a TPU")
    computations, entry = _computations(hlo)
    once, per_trip, reused = Part(), Part(), Part()

    def walk(name: str) -> Part:
        part = Part()
        for line in computations.get(name, ()):
            _price(line, chip, part)
            if loop := _WHILE.search(line):
                trips = _trips(line, computations.get(loop[1], ()))
                if trips is None:
                    per_trip.add(walk(loop[2]))
                else:
                    part.add(walk(loop[2]), trips)
            elif " conditional(" in line:
                found = _BRANCHES.search(line)
                assert found is not None, line
                names = re.findall(r"[\w.\-]+", found[1]) if found[1] else [found[2], found[3]]
                branches = sorted(map(walk, names), key=lambda branch: branch.seconds)
                part.add(branches[-1])
                if REUSED in line:
                    reused.add(branches[-1])
                    reused.add(branches[0], -1)
            elif " call(" in line and (callee := _CALLEE.search(line)):
                part.add(walk(callee[1]))
        return part

    once.add(walk(entry))
    return ProgramCost(once, per_trip, reused)


def kernel_seconds(flops: float, transcendentals: float, bytes_accessed: float, chip: Chip) -> float:
    """The price of a hand-written kernel on one device: the largest of its matrix work at peak rate, its exponentials
    at one lane-wide operation a cycle, and its memory traffic at full bandwidth.

    flops: as the matrix unit pads them, because padding takes its time too.
    """
    per_device = 1 / chip.devices
    exponentials = 8 * 128 * chip.cores * chip.clock
    return max(flops / chip.peak_flops, transcendentals / exponentials, bytes_accessed / chip.bandwidth) / per_device


def _trips(line: str, condition: Sequence[str]) -> int | None:
    """How often a loop runs: as the compiler says, or by the constant that its counter, from 0 on, is held against."""
    if known := _TRIPS.search(line):
        return int(known[1])
    bounds = [int(found[1]) for line in condition if (found := _BOUND.search(line))]
    counted = any("direction=LT" in line for line in condition)
    return bounds[0] if counted and len(bounds) == 1 else None


def _price(line: str, chip: Chip, part: Part) -> None:
    op = _OP_NAME.search(line)
    if cycles := _CYCLES.search(line):
        part.by_op[op[1] if op else "(unnamed)"] += int(cycles[1]) / chip.clock
    elif 'custom_call_target="tpu_custom_call"' in line:
        name = op[1] if op else line.split("=")[0].strip().lstrip("%")
        if found := _KERNEL.search(line):
            cost = json.loads(found[1])
            declared = {what: float(cost.get(what, 0)) for what in _DECLARED}
            part.kernels[name] += kernel_seconds(**declared, chip=chip)
        else:
            part.unpriced[name] += 1


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Name -> instructions, and the entry's name."""
    computations: dict[str, list[str]] = {}
    entry, name = "", None
    for line in hlo.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            computations[name] = []
            entry = name if found[1] else entry
        elif line == "}":
            name = None
        elif name is not None:
            computations[name].append(line)
    return computations, entry
