"""A run's programs, compiled for a slice that is not there, and what the compiler says of each.

Needs configs alone, no weights.
"""

import functools
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tpusd.config.schema import PrecisionConfig
from tpusd.errors import UserError, show
from tpusd.preflight.topology import Topology

if TYPE_CHECKING:
    import jax

    from tpusd.checkpoints.architecture import Architecture
    from tpusd.engine.blueprint import Blueprint, ProgramSpec
    from tpusd.engine.devices import Devices
    from tpusd.preflight.hlo_cost import Part

SHOWN_OPERATIONS = 8  # the costliest of a program


@dataclass(frozen=True, kw_only=True)
class ProgramReport:
    """One program, one call on one device. Bytes and seconds."""

    calls_per_batch: int
    seconds: float  # of the calls of one batch together, as the compiler estimates
    seconds_of_kernels: float  # of these, hand-written kernels, priced by tpusd.preflight.hlo_cost
    unpriced_kernels: Mapping[str, int]
    floor_seconds: float  # the same, with matrix units at peak rate, or all weights read once a call
    flops: float  # of one batch on one device
    arguments_bytes: int
    temporary_bytes: int
    peak_bytes: int  # with the weights of the other programs, which stay where they are
    compile_seconds: float
    costliest: Mapping[str, float] = field(default_factory=dict)  # operation -> seconds a batch


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """The programs of one batch size. reason: why one of them does not compile; then `programs` lacks it."""

    programs: Mapping[str, ProgramReport]
    weights: int  # bytes of all networks
    reason: str | None

    @property
    def peak(self) -> int:
        """Bytes."""
        return max((program.peak_bytes for program in self.programs.values()), default=self.weights)

    def fits(self, memory: int) -> bool:
        """memory: bytes that programs may use."""
        return self.reason is None and self.peak <= memory

    def guess_batch(self, batch: int, memory: int) -> int:
        """Memory beside the weights grows with the batch, nearly in proportion."""
        if self.reason is not None:
            return max(1, batch // 2)
        return max(1, int((memory - self.weights) / max(1, (self.peak - self.weights) / batch)))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A program to compile.

    Per batch: its calls (None: follows from its time), trips of its loop in all calls, and those of them that reuse the
    deep half of the denoiser.
    """

    name: str
    spec: "ProgramSpec"
    calls: int | None
    trips: int
    reused: int = 0


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """Compiles the programs of one run for a slice, at any batch size. Sizes in pixels.

    model_calls: rows of the sampler's table.
    guided_calls: those of them with classifier-free guidance; where these are not all, the others have a program too.
    branch: of the cache; None: every call computes the whole denoiser.
    reused: the calls that reuse the deep half, with guidance and without it.
    hlo: directory for the programs' text.
    tell: gets a line before each program, because compiling takes minutes.
    controls: the ControlNets that have an effect, by their places.
    """

    architecture: "Architecture"
    precision: PrecisionConfig
    topology: Topology
    height: int
    width: int
    model_calls: int
    guided_calls: int
    branch: int | None
    reused: tuple[int, int]
    hlo: str | None
    tell: Callable[[str], None]
    controls: tuple[int, ...] = ()

    def compile(self, batch: int, names: Sequence[str] | None = None) -> Compilation:
        """batch: images per device. names: which of the programs; None: all."""
        from tpusd.engine.blueprint import Blueprint
        from tpusd.engine.devices import Devices
        from tpusd.engine.pipeline import embedder

        blueprint = Blueprint(
            self.architecture, self.precision, height=self.height, width=self.width, batch_size_per_device=batch
        )
        tasks = {
            "encode": lambda: Task(name="encode", spec=blueprint.encode(), calls=1 + (self.guided_calls > 0), trips=0),
            "denoise": lambda: Task(
                name="denoise",
                spec=blueprint.denoise(guided=self.guided_calls > 0, controls=self.controls, branch=self.branch),
                calls=None,
                trips=self.guided_calls or self.model_calls,
                reused=self.reused[0] if self.guided_calls else self.reused[1],
            ),
            "denoise_unguided": lambda: Task(
                name="denoise_unguided",
                spec=blueprint.denoise(guided=False, controls=self.controls, branch=self.branch),
                calls=None,
                trips=self.model_calls - self.guided_calls,
                reused=self.reused[1],
            ),
            "decode": lambda: Task(name="decode", spec=blueprint.decode(), calls=1, trips=0),
        }
        for place in self.controls:
            name = embedder(place)
            tasks[name] = functools.partial(_embedding_task, name, blueprint, place)
        own = [blueprint.weights(name) for name in ("encode", "denoise", "decode")]
        weights = _bytes((own, blueprint.weights("embed_control", range(len(self.architecture.controls)))))
        devices, programs = Devices(self.topology.devices), {}
        if self.guided_calls in (0, self.model_calls):
            del tasks["denoise_unguided"]
        for name in names or tasks:
            self.tell(f"compiling {name} for {self.topology.name}, batch_size_per_device={batch}")
            try:
                programs[name] = compile_program(tasks[name](), devices, self.topology, weights=weights, hlo=self.hlo)
            except Exception as error:  # XlaRuntimeError's home has moved between releases of jaxlib
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                return Compilation(programs=programs, weights=weights, reason=f"{name}: {_first_sentence(str(error))}")
        return Compilation(programs=programs, weights=weights, reason=None)


def _embedding_task(name: str, blueprint: "Blueprint", place: int) -> Task:
    return Task(name=name, spec=blueprint.embed_control(place), calls=1, trips=0)


def compile_program(
    task: Task, devices: "Devices", topology: Topology, *, weights: int, hlo: str | None
) -> ProgramReport:
    """Compiles and prices one program.

    task: the program.
    devices: of the topology.
    topology: the slice.
    weights: bytes of all networks on a device.
    hlo: directory for the program's text.
    Raises UserError where the compiler cannot show the program.
    """
    from tpusd.engine.pipeline import PIECE_SECONDS
    from tpusd.preflight.flops import count_flops
    from tpusd.preflight.hlo_cost import Part, program_cost

    spec, chip = task.spec, topology.chip
    start = time.monotonic()
    lowered = devices.lower(spec)
    compiled = devices.finish(spec, lowered)
    compile_seconds = time.monotonic() - start
    text = _text(task, devices, lowered, compiled, topology)
    if hlo is not None:
        _keep(hlo, f"{topology.name.replace(':', '-')}-{task.name}.hlo.txt", text)
    cost = program_cost(text, chip)
    calls, trips, reused = task.calls, task.trips, task.reused
    in_trips = Part()
    in_trips.add(cost.per_trip, trips)
    in_trips.add(cost.reused, -reused)
    if calls is None:
        calls = max(1, math.ceil(in_trips.seconds / PIECE_SECONDS))
    work = count_flops(spec.function, *spec.shared, *spec.split)
    own, memory = _bytes(spec.shared), compiled.memory_analysis()
    assert memory is not None, "the TPU compiler gives the memory of every program"
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    flops = calls * work.once + trips * work.per_trip - reused * work.reused
    device_flops, device_bandwidth = chip.peak_flops / chip.devices, chip.bandwidth / chip.devices
    return ProgramReport(
        calls_per_batch=calls,
        seconds=calls * cost.once.seconds + in_trips.seconds,
        seconds_of_kernels=calls * sum(cost.once.kernels.values()) + sum(in_trips.kernels.values()),
        unpriced_kernels=dict(cost.once.unpriced + cost.per_trip.unpriced),
        floor_seconds=max(flops / device_flops, max(calls, trips - reused) * own / device_bandwidth),
        flops=flops,
        arguments_bytes=arguments,
        temporary_bytes=temporary,
        peak_bytes=weights + (arguments - own) + temporary + output + memory.generated_code_size_in_bytes,
        compile_seconds=compile_seconds,
        costliest=_costliest(cost.once, calls, in_trips),
    )


def _text(
    task: Task,
    devices: "Devices",
    lowered: "jax.stages.Lowered",
    compiled: "jax.stages.Compiled",
    topology: Topology,
) -> str:
    """The compiled program's HLO. Raises UserError where the compiler cannot show it."""
    import jax

    from tpusd.preflight.hlo_text import hlo_text

    try:
        return hlo_text(compiled, lambda dump: devices.finish(task.spec, lowered, dump))
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"topology={topology.name}: the compiler made the {task.name} program but cannot show it "
            f"({show(reason)}); try another batch_size_per_device, or another version of libtpu"
        ) from None


def _costliest(once: "Part", calls: int, in_trips: "Part") -> dict[str, float]:
    operations: defaultdict[str, float] = defaultdict(float)
    for part, times in ((once, calls), (in_trips, 1)):
        for op, value in itertools.chain(part.by_op.items(), part.kernels.items()):
            operations[_operation(op)] += times * value
    return dict(sorted(operations.items(), key=lambda item: -item[1])[:SHOWN_OPERATIONS])


def largest_batch(fits: Callable[[int], bool], *, guess: int, limit: int = 4096) -> int:
    """The largest size up to `limit` that fits, 0 if none does; starts at `guess`, because each probe compiles for
    minutes."""
    low, high, step = 0, limit + 1, 1  # low fits, high does not
    size = min(max(1, guess), limit)
    while high - low > 1:
        if fits(size):
            low = size
            size = low + step if high > limit else (low + high) // 2
        else:
            high = size
            size = high - step if low == 0 else (low + high) // 2
        size = min(max(size, low + 1), high - 1)
        step *= 2
    return low


def _bytes(tree: object) -> int:
    """tree: a pytree of arrays or shapes."""
    import jax

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _operation(name: str) -> str:
    """The same layer at another depth is the same operation: its last two names, without numbers."""
    parts = [part for part in name.split("/") if part and part != "closed_call"]
    return "/".join("".join("N" if c.isdigit() else c for c in part) for part in parts[-2:])


def _first_sentence(text: str) -> str:
    text = " ".join(text.split())
    end = text.find(". ", text.find("Used"))
    return show(text[: end if end > 0 else 200].removeprefix("RESOURCE_EXHAUSTED: "))


def _keep(directory: str, name: str, text: str) -> None:
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / name).write_text(text)
    except OSError as error:
        raise UserError(f"--hlo={show(directory)}: cannot be written: {error.strerror}") from None
