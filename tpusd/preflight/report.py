"""The figures of a run on a slice: how many batches, whether they fit, and how long they take by the compiler's
estimate."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from tpusd.config.cache import NO_CACHE
from tpusd.config.schema import RunConfig
from tpusd.preflight.compilation import Compilation, Compiler, ProgramReport, largest_batch
from tpusd.preflight.topology import Topology

if TYPE_CHECKING:
    from tpusd.plan.batches import Kind

GiB = 2**30
RESERVED = 1 / 64  # of the memory, which the compiler keeps for itself: it gives programs 15.75 GiB of a v5e's 16


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What was compiled for what. Sizes in pixels."""

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
    guided: bool  # whether any of them has classifier-free guidance
    guided_calls: int  # how many have it
    reused_calls: int  # how many reuse the deep half of the denoiser
    batch_size_per_device: int
    num_images: int
    num_batches: int
    num_compilations: int
    libtpu: str | None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device."""

    weights_bytes: int
    memory_bytes: int  # what programs may use
    peak_bytes: int | None  # None: a program did not compile, and there is no figure
    fits: bool
    reason: str | None  # why a program did not compile
    largest_batch: int | None  # batch_size_per_device; None: not asked for


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Estimates, except of the work and of the compiling, which is measured."""

    flops_per_image: float
    seconds_per_batch: float
    seconds_per_image: float  # of one device's time
    images_per_second: float  # of the slice
    floor_seconds_per_image: float
    compile_seconds: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `preflight` found. costs: None where a program did not compile."""

    setting: Setting
    memory: Memory
    costs: Costs | None
    programs: Mapping[str, ProgramReport]

    def to_json(self) -> dict[str, Any]:
        """One flat JSON object, with the programs in it as objects."""
        no_costs = dict.fromkeys(field.name for field in fields(Costs))
        return {
            **asdict(self.setting),
            **asdict(self.memory),
            **(no_costs if self.costs is None else asdict(self.costs)),
            "programs": {name: asdict(program) for name, program in self.programs.items()},
        }


def preflight(
    config: RunConfig,
    topology: Topology,
    *,
    largest: bool = False,
    hlo: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Compiles the run's programs for the slice.

    config: of the run.
    topology: the slice.
    largest: also look for the largest batch per device that fits.
    hlo: directory for the programs' text.
    tell: gets a line before each program, because compiling takes minutes.
    """
    import jax

    from tpusd.checkpoints.published import find_architecture
    from tpusd.config.schema import saved_config
    from tpusd.plan.batches import Kind, count_batches, kind_of, num_programs
    from tpusd.plan.sizes import image_size
    from tpusd.plan.specs import ImageSize, image_sizes, make_specs
    from tpusd.prompts.rows import run_rows
    from tpusd.records.provenance import versions

    jax.config.update("jax_enable_compilation_cache", False)  # compile times are part of the report
    rows = run_rows(config)
    architecture = find_architecture(config.model)
    architecture.family.check_cache(architecture.configs, config.cache)
    height, width = image_size(config, architecture)
    saved = saved_config(config, rows=rows, height=height, width=width)
    height, width = max(image_sizes(saved), key=math.prod)  # of several, the one that needs the most memory
    specs = list(make_specs(saved))
    family, scheduler_config = architecture.family, architecture.scheduler_config
    tables = {
        (spec.sampler, spec.strength): family.schedule(
            spec.sampler, scheduler_config, height, width, strength=spec.strength
        )
        for spec in specs
    }
    kinds: list[tuple[tuple[ImageSize, Kind], int]] = []
    for spec in specs:
        calls = len(tables[spec.sampler, spec.strength])
        kinds.append((((spec.height, spec.width), kind_of(spec, calls)), calls))
    model_calls = max(map(len, tables.values()))
    sizes = {size: [own for (other, own), _ in kinds if other == size] for size in image_sizes(saved)}
    if len(sizes) > 1:
        tell(f"prompts: images of {len(sizes)} sizes; the programs of {width}x{height} are compiled")
    controls = max((kind.controls for kind in sizes[height, width]), key=len)
    controls = controls or tuple(range(len(architecture.controls)))
    kind = max(sizes[height, width], key=lambda kind: _num_calls(kind, model_calls, guided=True))
    guided_calls = _num_calls(kind, model_calls, guided=True)
    reused = tuple(_num_calls(kind, model_calls, guided=guided, reused=True) for guided in (True, False))
    branch = None if kind.cache is None else kind.cache.branch
    compiler = Compiler(
        architecture=architecture, precision=config.precision, topology=topology, height=height, width=width,
        guided_calls=guided_calls, model_calls=model_calls, branch=branch, reused=(reused[0], reused[1]), hlo=hlo,
        tell=tell, controls=controls,
    )  # fmt: skip
    batch = config.batch_size_per_device
    result = compiler.compile(batch)
    setting = Setting(
        topology=topology.name,
        chip=topology.version,
        num_chips=topology.num_chips,
        num_devices=len(topology.devices),
        model=config.model.name,
        precision=config.precision.name,
        height=height,
        width=width,
        sampler=config.sampler.name,
        model_calls=model_calls,
        guided=guided_calls > 0,
        guided_calls=guided_calls,
        reused_calls=sum(reused),
        batch_size_per_device=batch,
        num_images=len(specs),
        num_batches=count_batches(kinds, len(topology.devices) * batch),
        num_compilations=sum(map(num_programs, sizes.values())),
        libtpu=versions()["libtpu"],
    )
    return Report(
        setting=setting,
        memory=_memory(compiler, result, batch, largest=largest),
        costs=None if result.reason is not None else _costs(result, batch, setting.num_devices),
        programs=result.programs,
    )


def _num_calls(kind: "Kind", model_calls: int, *, guided: bool, reused: bool = False) -> int:
    """How many model calls have guidance, or have none. reused: only those that reuse the deep half."""
    from tpusd.plan.batches import full_calls, guided_pieces

    calls = [call for piece, has_it in guided_pieces(kind.guided, model_calls) if has_it == guided for call in piece]
    if not reused:
        return len(calls)
    full = full_calls(kind.cache or NO_CACHE, kind.guided, model_calls)
    return sum(not full[call] for call in calls)


def _memory(compiler: Compiler, result: Compilation, batch: int, *, largest: bool) -> Memory:
    """result: the compilation at `batch` images per device. largest: compile more, to find the largest batch."""
    chip = compiler.topology.chip
    usable = int(chip.memory / chip.devices * (1 - RESERVED))
    found = None
    if largest:
        found = largest_batch(
            lambda size: compiler.compile(size, ["denoise"]).fits(usable), guess=result.guess_batch(batch, usable)
        )
    return Memory(
        weights_bytes=result.weights,
        memory_bytes=usable,
        peak_bytes=result.peak if result.reason is None else None,
        fits=result.fits(usable),
        reason=result.reason,
        largest_batch=found,
    )


def _costs(result: Compilation, batch: int, num_devices: int) -> Costs:
    """result: all programs at `batch` images per device."""
    programs = result.programs.values()
    seconds = sum(program.seconds for program in programs)
    return Costs(
        flops_per_image=sum(program.flops for program in programs) / batch,
        seconds_per_batch=seconds,
        seconds_per_image=seconds / batch,
        images_per_second=num_devices * batch / seconds,
        floor_seconds_per_image=sum(program.floor_seconds for program in programs) / batch,
        compile_seconds=sum(program.compile_seconds for program in programs),
    )
