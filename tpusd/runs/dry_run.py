"""`dry_run=true`: what runs have, and what they would make, load and compile. Nothing is loaded, made or changed."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpusd import storage
from tpusd.config.schema import RunConfig
from tpusd.errors import UserError, show
from tpusd.plan.batches import Kind, count_batches, grouped, num_programs, program_key, weights_key
from tpusd.plan.specs import ImageSize, ImageSpec, Stripe, counted_specs, image_sizes, make_specs, planned
from tpusd.process.report import report, say
from tpusd.records.dropped import read_dropped
from tpusd.records.layout import CONFIG
from tpusd.records.repair import whole_images
from tpusd.records.saved import read_saved
from tpusd.runs.prepare import Prepare, PreparedRun
from tpusd.runs.same_files import JoinRuns

MAX_FAULTS = 20  # that are listed


@dataclass(frozen=True, kw_only=True)
class RunToShow:
    """A run whose plan is shown.

    name: its name in its sweep; empty for a run alone.
    config: what is asked for.
    path: its directory, which may not be there; None: it would get a new one.
    stripe: the images of this process; None: all.
    """

    name: str
    config: RunConfig
    path: Path | None = None
    stripe: Stripe | None = None


@dataclass(frozen=True, kw_only=True)
class _Shown:
    prepared: PreparedRun
    done: frozenset[tuple[int, int]]
    stripe: Stripe | None

    def specs(self, size: ImageSize | None = None) -> Iterator[ImageSpec]:
        """What is missing."""
        return make_specs(self.prepared.config, self.done, size, self.stripe)


def show_plan(runs: Sequence[RunToShow], prepare: Prepare, join: JoinRuns = lambda prepared: prepared) -> None:
    """Prints the plan of runs, and reports the warnings that they would give. Raises UserError.

    join: for runs that are not there yet, see `joining`.
    """
    from tpusd.engine.faults import local_devices

    clusters = [run for run in runs if run.config.executor.name != "local"]
    devices = None if clusters else len(local_devices())  # of a cluster's workers, only a worker knows
    shown: list[_Shown] = []
    warnings: dict[str, None] = {}
    sizes: dict[ImageSize, None] = {}
    total = there = compilations = 0
    faults: list[str] = []
    for run in runs:
        try:
            prepared = prepare(run.config)
            prepared = prepared if _is_there(run.path) else join(prepared)
        except UserError as error:
            if len(runs) == 1:
                raise
            faults.append(f"{run.name}: {error}")
            continue
        one = _Shown(prepared=prepared, done=_images_of(run.path), stripe=run.stripe)
        images = planned(one.prepared.config, one.stripe)
        done = sum(key in images for key in one.done)
        if run.name or done:
            say(f"{run.name or run.path}: {_images(len(images), done)}")
        shown.append(one)
        warnings |= dict.fromkeys(one.prepared.warnings)
        total, there = total + len(images), there + done
    loads = grouped((one for one in shown if _lacks_images(one)), lambda one: weights_key(one.prepared.config))
    for same_weights in loads:
        sized = [
            (one, size)
            for one in same_weights
            for size in image_sizes(one.prepared.config)
            if any(True for _ in one.specs(size))
        ]
        sizes |= dict.fromkeys(size for _, size in sized)
        for group in grouped(sized, lambda one: program_key(one[0].prepared.config, one[1])):
            compilations += _show_group(group, devices)
    for warning in warnings:
        report(warning)
    for fault in faults[:MAX_FAULTS]:
        report(fault)
    counts = [count(len(shown), "run"), _images(total, there)]
    counts += [count(len(sizes), "size")] if len(sizes) > 1 else []
    counts += [count(len(loads), "load"), count(compilations, "compilation")]
    say(f"{', '.join(counts)}; nothing was made")
    if faults:
        more = f", of which the first {MAX_FAULTS} are named above" if len(faults) > MAX_FAULTS else ""
        raise UserError(
            f"dry_run: {len(faults)} of {len(runs)} runs cannot be made{more}; correct them, or leave them out"
        )


def _is_there(path: Path | None) -> bool:
    return path is not None and storage.file_size(path / CONFIG) is not None


def _images_of(path: Path | None) -> frozenset[tuple[int, int]]:
    """(row, copy) of the whole images of a run directory, and of those that are dropped."""
    if path is None or not _is_there(path):
        return frozenset()
    config = read_saved(path)
    return whole_images(path, config) | read_dropped(path, config)


def _lacks_images(one: _Shown) -> bool:
    return any(True for _ in one.specs())


def _images(number: int, there: int) -> str:
    """`12 images`, or `12 images of which 8 are there and 4 are missing`."""
    return f"{count(number, 'image')}{f' of which {there} are there and {number - there} are missing' if there else ''}"


def _show_group(group: Sequence[tuple[_Shown, ImageSize]], num_devices: int | None) -> int:
    """Prints what is missing of images of one program; returns how many programs are compiled for them.

    group: runs, each with the size of these images, which is the same for all.
    num_devices: None: not known.
    """
    config = group[0][0].prepared.config
    height, width = group[0][1]
    kinds = Counter[tuple[Kind, int]]()
    for one, image_size in group:
        for spec, number in counted_specs(one.prepared.config, one.done, image_size, one.stripe):
            kinds[one.prepared.kind(spec), one.prepared.num_calls(spec)] += number
    programs = num_programs(kind for kind, _ in kinds)
    if num_devices is None:
        batches = f"batches of {config.batch_size_per_device} for each device of a worker"
    else:
        size = num_devices * config.batch_size_per_device
        batches = f"{count(count_batches(kinds, size), 'batch')} of {size}"
    say(
        f"model={show(config.model.name)} precision={show(config.precision.name)} {width}x{height}: "
        f"{count(len(group), 'run')}, {count(kinds.total(), 'image')} in {batches}, "
        f"{programs} programs"
    )
    return programs


def count(number: int, noun: str) -> str:
    """`1 image`, `2 images`, `2 batches`."""
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
