"""The figures: compiles a run's own programs for a slice and reads what the compiler says of them.

Needs no weights: configs alone.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpusd.config.schema import RunConfig
from tpusd.errors import UserError, show
from tpusd.preflight.topology import Topology

GiB = 2**30
RESERVED = 1 / 64  # of the memory, which the compiler keeps for itself: it gives programs 15.75 GiB of a v5e's 16


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
class Report:
    """What `preflight` found. Seconds and images per second are estimates."""

    topology: str
    chip: str
    num_chips: int
    num_devices: int
    model: str
    precision: str
    height: int
    width: int
    sampler: str
    model_calls: int
    guided: bool
    batch_size_per_device: int
    num_images: int
    num_batches: int
    num_compilations: int
    libtpu: str | None
    weights_bytes: int  # per device
    memory_bytes: int  # per device, what programs may use
    peak_bytes: int | None  # None: a program did not fit, and there is no figure
    fits: bool
    reason: str | None
    largest_batch: int | None
    flops_per_image: float | None
    seconds_per_batch: float | None
    seconds_per_image: float | None  # of one device's time
    images_per_second: float | None  # of the slice
    floor_seconds_per_image: float | None
    compile_seconds: float | None
    programs: Mapping[str, ProgramReport]


def preflight(
    config: RunConfig,
    topology: Topology,
    *,
    largest: bool = False,
    hlo: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Compiles the run's programs for the slice. largest: also look for the largest batch per device that fits. hlo:
    directory for the programs' text. tell: is told what is compiled next, for it takes minutes."""
    import jax

    from tpusd.checkpoints.published import find_architecture
    from tpusd.config.schema import saved_config
    from tpusd.plan.batches import count_batches, num_programs
    from tpusd.plan.specs import make_specs
    from tpusd.prompts.rows import read_rows
    from tpusd.records.provenance import versions
    from tpusd.runs.prepare import image_size
    from tpusd.samplers.table import make_table

    jax.config.update("jax_enable_compilation_cache", False)  # compile times are part of the report
    rows = read_rows(config.prompts)
    architecture = find_architecture(config.model)
    height, width = image_size(config, architecture)
    calls = len(make_table(config.sampler, architecture.scheduler_config))
    specs = list(make_specs(saved_config(config, rows=rows, height=height, width=width)))
    guided = any(spec.uses_cfg for spec in specs)
    kinds = ((spec.uses_cfg, calls) for spec in specs)
    num_batches = count_batches(kinds, len(topology.devices) * config.batch_size_per_device)
    memory = int(topology.chip.memory / topology.chip.devices * (1 - RESERVED))

    def compiled(batch: int, names: Sequence[str] | None = None) -> "Compilation":
        return compile_programs(
            config, architecture, topology, height=height, width=width, batch=batch, guided=guided, calls=calls,
            names=names, hlo=hlo, tell=tell,
        )  # fmt: skip

    batch = config.batch_size_per_device
    result = compiled(batch)
    fits = result.reason is None and result.peak <= memory
    found = None
    if largest:
        found = largest_batch(
            lambda size: (attempt := compiled(size, ["denoise"])).reason is None and attempt.peak <= memory,
            guess=result.guess_batch(batch, memory),
        )
    programs = result.programs
    whole = result.reason is None
    seconds = sum(program.seconds for program in programs.values()) if whole else None
    return Report(
        topology=topology.name,
        chip=topology.version,
        num_chips=topology.num_chips,
        num_devices=len(topology.devices),
        model=config.model.name,
        precision=config.precision.name,
        height=height,
        width=width,
        sampler=config.sampler.name,
        model_calls=calls,
        guided=guided,
        batch_size_per_device=batch,
        num_images=len(specs),
        num_batches=num_batches,
        num_compilations=num_programs(spec.uses_cfg for spec in specs),
        libtpu=versions()["libtpu"],
        weights_bytes=result.weights,
        memory_bytes=memory,
        peak_bytes=result.peak if whole else None,
        fits=fits,
        reason=result.reason,
        largest_batch=found,
        flops_per_image=sum(program.flops for program in programs.values()) / batch if whole else None,
        seconds_per_batch=seconds,
        seconds_per_image=seconds / batch if whole else None,
        images_per_second=len(topology.devices) * batch / seconds if whole else None,
        floor_seconds_per_image=sum(p.floor_seconds for p in programs.values()) / batch if whole else None,
        compile_seconds=sum(program.compile_seconds for program in programs.values()) if whole else None,
        programs=programs,
    )


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """The programs of one batch size. reason: why one of them does not compile; then `programs` lacks it."""

    programs: Mapping[str, ProgramReport]
    weights: int
    reason: str | None

    @property
    def peak(self) -> int:
        return max((program.peak_bytes for program in self.programs.values()), default=self.weights)

    def guess_batch(self, batch: int, memory: int) -> int:
        """Memory beside the weights grows with the batch, nearly in proportion."""
        if self.reason is not None:
            return max(1, batch // 2)
        return max(1, int((memory - self.weights) / max(1, (self.peak - self.weights) / batch)))


def compile_programs(
    config: RunConfig,
    architecture: Any,
    topology: Topology,
    *,
    height: int,
    width: int,
    batch: int,
    guided: bool,
    calls: int,
    names: Sequence[str] | None,
    hlo: str | None,
    tell: Callable[[str], None],
) -> Compilation:
    """names: which of encode, denoise and decode; None: all."""
    from tpusd.engine.blueprint import Blueprint
    from tpusd.engine.devices import Devices

    blueprint = Blueprint(architecture, config.precision, height=height, width=width, batch_size_per_device=batch)
    weights = sum(_bytes(blueprint.weights(part)) for part in architecture.parts)
    # Program -> what it is made from, calls a batch (None: as its time asks for), trips of its loop over all calls.
    sources = {
        "encode": (blueprint.encode, 1 + guided, 0),
        "denoise": (lambda: blueprint.denoise(guided=guided), None, calls),
        "decode": (blueprint.decode, 1, 0),
    }
    devices, programs, reason = Devices(topology.devices), {}, None
    for name in names or sources:
        make, times, trips = sources[name]
        tell(f"compiling {name} for {topology.name}, batch_size_per_device={batch}")
        try:
            programs[name] = _compile(
                name, make(), devices, topology, calls=times, trips=trips, weights=weights, hlo=hlo
            )
        except Exception as error:  # XlaRuntimeError's home has moved between releases of jaxlib
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = f"{name}: {_first_sentence(str(error))}"
            break
    return Compilation(programs=programs, weights=weights, reason=reason)


def _compile(name, source, devices, topology, *, calls, trips, weights, hlo) -> ProgramReport:
    import jax

    from tpusd.engine.pipeline import PIECE_SECONDS
    from tpusd.preflight.flops import count_flops
    from tpusd.preflight.hlo_cost import program_cost
    from tpusd.preflight.hlo_text import hlo_text

    chip = topology.chip
    start = time.monotonic()
    lowered = devices.lower(source)
    compiled = devices.finish(source, lowered)
    seconds = time.monotonic() - start
    try:
        text = hlo_text(compiled, lambda dump: devices.finish(source, lowered, dump))
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"topology={topology.name}: the compiler made the {name} program but cannot show it "
            f"({show(reason)}); try another batch_size_per_device, or another version of libtpu"
        ) from None
    if hlo is not None:
        _keep(hlo, f"{topology.name.replace(':', '-')}-{name}.hlo.txt", text)
    cost = program_cost(text, chip)
    if calls is None:
        calls = max(1, math.ceil(trips * cost.per_trip.seconds / PIECE_SECONDS))
    work = count_flops(source.function, *source.shared, *source.split)
    own = _bytes(source.shared)
    memory = compiled.memory_analysis()
    arguments = memory.argument_size_in_bytes
    temporary = memory.temp_size_in_bytes
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    flops = calls * work.once + trips * work.per_trip
    device_flops, device_bandwidth = chip.peak_flops / chip.devices, chip.bandwidth / chip.devices
    operations: Counter[str] = Counter()
    for part, times in ((cost.once, calls), (cost.per_trip, trips)):
        for op, value in (part.by_op + part.kernels).items():
            operations[_operation(op)] += times * value
    total = calls * cost.once.seconds + trips * cost.per_trip.seconds
    return ProgramReport(
        calls_per_batch=calls,
        seconds=total,
        seconds_of_kernels=calls * sum(cost.once.kernels.values()) + trips * sum(cost.per_trip.kernels.values()),
        unpriced_kernels=dict(cost.once.unpriced + cost.per_trip.unpriced),
        floor_seconds=max(flops / device_flops, max(calls, trips) * own / device_bandwidth),
        flops=flops,
        arguments_bytes=arguments,
        temporary_bytes=temporary,
        peak_bytes=weights + (arguments - own) + temporary + output + memory.generated_code_size_in_bytes,
        compile_seconds=seconds,
        costliest=dict(operations.most_common(8)),
    )


def largest_batch(fits: Callable[[int], bool], *, guess: int, limit: int = 4096) -> int:
    """The largest size up to `limit` that fits, 0 if none does; starts at `guess`, for every question is dear."""
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


def _bytes(tree: Any) -> int:
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
    from pathlib import Path

    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / name).write_text(text)
    except OSError as error:
        raise UserError(f"--hlo={show(directory)}: cannot be written: {error.strerror}") from None
