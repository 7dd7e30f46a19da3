"""`python -m tpusd.run -m ...`: a sweep, all of its runs in one process and one directory.

    command line -> runs -> each prepared -> grouped by program -> made, batches filled across runs -> page and table

A checkpoint is loaded once, and a program compiled once, for all runs that share them. A sweep goes on with
`resume=DIR`; fields given with it replace those of its command line, and only runs that are not there yet are made.
"""

import contextlib
import dataclasses
import functools
import itertools
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from tpusd.config.schema import RunConfig
from tpusd.errors import UserError, show, show_path
from tpusd.plan.batches import num_programs, packed, program_key, weights_key
from tpusd.process.signals import Interrupted
from tpusd.records.sweep import Sweep, is_sweep, read_sweep, write_sweep
from tpusd.runs.execute import load_pipeline, now
from tpusd.runs.prepare import PreparedRun, open_model, prepare_run
from tpusd.runs.requests import Cell, extended, plan_sweep
from tpusd.storage import local as storage

LOG = "sweep.log"
EXIT_FAILED_RUNS = 1
MAX_TABLE_ROWS = 40


def sweep(argv: Sequence[str], **parts: Any) -> int:
    """argv: of `-m`. Returns the exit status: 1 where a run failed. parts: see `make_sweep`."""
    from tpusd.config.compose import compose_jobs, sweep_words

    jobs = compose_jobs(argv)
    if jobs is None:
        return 0
    plan, cells = plan_sweep(jobs, sweep_words(argv))
    if cells[0].config.dry_run:
        return show_plan([(cell.run.name, cell.config) for cell in cells], **parts)
    path = claim_sweep(jobs[0].values["output"], plan)
    return make_sweep(path, plan, cells, **parts)


def resume_sweep(path: Path, argv: Sequence[str], **parts: Any) -> int:
    """Goes on with the sweep at `path`, with the fields of `argv` in the place of its own."""
    from tpusd.config.compose import compose_jobs

    before = read_sweep(path)
    words = extended(before.overrides, [word for word in argv if word not in ("-m", "--multirun")])
    jobs = compose_jobs(["-m", *words])
    if jobs is None:
        raise UserError(f"{show(' '.join(argv))}: only shows something; leave it out")
    plan, cells = plan_sweep(jobs, words, before)
    if cells[0].config.dry_run:
        return show_plan([(cell.run.name, cell.config) for cell in cells], **parts)
    return make_sweep(path, plan, cells, **parts)


def claim_sweep(output: str | None, plan: Sweep) -> Path:
    """A new directory for a sweep, or an empty one that the user named."""
    from tpusd.records.layout import DEFAULT_PARENT, ELSEWHERE
    from tpusd.storage.local import told_as_user_error

    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_sweep_" + "_".join(key.rsplit(".", 1)[-1] for key in plan.axes)
    wanted = Path(output) if output is not None else DEFAULT_PARENT / stem[:80].rstrip("_")
    with told_as_user_error(wanted, ELSEWHERE):
        storage.make_parents(wanted, [])
        for number in itertools.count(1):
            path = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
            try:
                storage.make_directory(path)
                return path
            except FileExistsError:
                if output is None:
                    continue
                if is_sweep(path):
                    raise UserError(
                        f"output={show(output)}: holds a sweep; go on with it by resume={show(output)}, or name a new "
                        "directory"
                    ) from None
                if not path.is_dir() or storage.list_directory(path):
                    raise UserError(f"output={show(output)}: exists and is not empty; name a new directory") from None
                return path


def make_sweep(
    path: Path,
    plan: Sweep,
    cells: Sequence[Cell],
    *,
    prepare: Callable[[RunConfig], PreparedRun] | None = None,
    load: Callable[..., Any] = load_pipeline,
) -> int:
    """Makes what is missing of the sweep into its directory, one process at a time. Returns the exit status.

    prepare: `prepare_run` with checkpoints opened once, unless given. load: see `load_pipeline`.
    """
    from tpusd.gallery.sweep import write_sweep_results
    from tpusd.records.layout import MEND
    from tpusd.storage.local import told_as_user_error

    prepare = prepare or functools.partial(prepare_run, open_model=functools.cache(open_model))
    started = time.monotonic()
    with _locked(path) as log, _advising(path), told_as_user_error(path, MEND):
        write_sweep(path, plan)
        states = _make_runs(path, cells, prepare, load, log)
        plan = _with_errors(plan, states)
        write_sweep(path, plan)
        page = write_sweep_results(path, plan)
    for line in _table(states):
        print(line)
    failed = [state for state in states if state.error is not None]
    made, seconds = sum(state.num_made for state in states), time.monotonic() - started
    print(
        f"{path}: {_count(len(states), 'run')}, {_count(made, 'image')} in {seconds:.1f} s"
        f"{f', {len(failed)} failed' if failed else ''}; see {page}"
    )
    if failed:
        print(f"tpusd: {_how_to_go_on(path)}", file=sys.stderr)
    return EXIT_FAILED_RUNS if failed else 0


def _make_runs(path: Path, cells: Sequence[Cell], prepare: Callable, load: Callable, log: Callable) -> list[Any]:
    """Every cell's SweepRunState, made as far as it could be."""
    import jax

    from tpusd.process.progress import Progress
    from tpusd.records.provenance import hash_checkpoint
    from tpusd.runs.make import SweepMaker, SweepRunState, SweepStopped, take_up

    stop_on_error = cells[0].config.on_error == "stop"
    states, warnings = [], {}
    for cell in cells:
        try:
            state = take_up(cell, path, prepare)
            warnings |= dict.fromkeys(state.prepared.warnings if state.prepared else ())
        except UserError as error:
            state = SweepRunState(cell=cell, path=path / cell.run.name, error=str(error))
            print(f"tpusd: {state.name}: failed: {error}", file=sys.stderr)
            log(f"{state.name}: failed: {error}")
            if stop_on_error:
                return [*states, state]
        states.append(state)
    for warning in warnings:
        print(f"tpusd: {warning}", file=sys.stderr)
        log(warning)

    devices = jax.local_devices()
    progress = Progress(sum(s.num_images for s in states), sum(len(s.done) for s in states))
    maker = SweepMaker(devices, progress, stop_on_error=stop_on_error, log=log)
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as background, contextlib.closing(progress):
        for same_weights in _groups([s for s in states if s.prepared], lambda s: weights_key(s.prepared.config)):
            hashing = background.submit(hash_checkpoint, same_weights[0].prepared.checkpoint)
            pipelines: list[Any] = []

            def load_shared(prepared: PreparedRun, devices: Sequence[Any], pipelines: list = pipelines) -> Any:
                pipelines.append(load(prepared, devices, **({"weights_of": pipelines[0]} if pipelines else {})))
                return pipelines[-1]

            try:
                for same_program in _groups(same_weights, lambda s: program_key(s.prepared.config)):
                    maker.make(same_program, load_shared, hashing)
            except SweepStopped:
                break
    return states


def show_plan(
    configs: Sequence[tuple[str, RunConfig]],
    *,
    prepare: Callable[[RunConfig], PreparedRun] | None = None,
    **_: Any,
) -> int:
    """What runs would make, load and compile, on stdout; loads nothing. configs: (name or "", config)."""
    import jax

    from tpusd.plan.specs import make_specs

    prepare = prepare or functools.partial(prepare_run, open_model=functools.cache(open_model))
    prepared = [(name, prepare(config)) for name, config in configs]
    devices = len(jax.local_devices())
    total = loads = compilations = 0
    for name, run in prepared:
        count = sum(1 for _ in make_specs(run.config, run.rows, height=run.height, width=run.width))
        if name:
            print(f"{name}: {_count(count, 'image')}")
        total += count
    for same_weights in _groups(prepared, lambda pair: weights_key(pair[1].config)):
        loads += 1
        for group in _groups(same_weights, lambda pair: program_key(pair[1].config)):
            config = group[0][1].config
            images = [
                (run, spec)
                for _, run in group
                for spec in make_specs(run.config, run.rows, height=run.height, width=run.width)
            ]
            size = devices * config.batch_size_per_device
            batches = sum(1 for _ in packed(images, size, lambda run, spec: len(run.table(spec.sampler))))
            programs = num_programs(spec.uses_cfg for _, spec in images)
            compilations += programs
            print(
                f"model={config.model.name} precision={config.precision.name} {config.width}x{config.height}: "
                f"{_count(len(group), 'run')}, {_count(len(images), 'image')} in {batches} batches of {size}, "
                f"{programs} programs"
            )
    counts = ((len(prepared), "run"), (total, "image"), (loads, "load"), (compilations, "compilation"))
    print(f"{', '.join(_count(number, noun) for number, noun in counts)}; nothing was made")
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _groups(items: Sequence[Any], key: Callable[[Any], Any]) -> list[list[Any]]:
    """Items with equal keys together, in the order in which the keys first come."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Callable[[str], None]]:
    """Yields what appends a line to sweep.log, on which the lock hangs."""
    from tpusd.records.layout import MEND
    from tpusd.storage.local import told_as_user_error

    with told_as_user_error(path, MEND):
        file = storage.LineFile(path / LOG)
    try:
        if not file.lock():
            raise UserError(
                f"{show_path(path)}: another process is working on this sweep; wait until it ends, or stop it"
            )

        def log(line: str) -> None:
            with contextlib.suppress(OSError):
                text = f"{now()} {line}".rstrip().replace("\n", "\n    ")
                file.append(text.encode(errors="backslashreplace"), sync=False)

        yield log
    finally:
        with contextlib.suppress(OSError):
            file.close()


@contextlib.contextmanager
def _advising(path: Path) -> Iterator[None]:
    try:
        yield
    except Interrupted as error:
        error.advice = f"; every image in a manifest is whole; {_how_to_go_on(path)}"
        raise


def _how_to_go_on(path: Path) -> str:
    return f"go on with: python -m tpusd.run resume={shlex.quote(str(path))}"


def _with_errors(plan: Sweep, states: Sequence[Any]) -> Sweep:
    errors = {state.name: state.error for state in states}
    runs = tuple(dataclasses.replace(run, error=errors.get(run.name, run.error)) for run in plan.runs)
    return dataclasses.replace(plan, runs=runs)


def _table(states: Sequence[Any]) -> list[str]:
    """A line a run: name, images that it has, images/s, and what became of it. Of many, those that failed."""
    shown = states if len(states) <= MAX_TABLE_ROWS else [state for state in states if state.error is not None]
    if not shown:
        return []
    width = max(len(state.name) for state in shown)
    lines = [f"{'run':<{width}}  images  images/s"]
    for state in shown[:MAX_TABLE_ROWS]:
        rate = f"{state.num_timed / state.seconds_timed:8.2f}" if state.seconds_timed else f"{'':>8}"
        images = len(state.done) + state.num_made
        note = "failed" if state.error else "was there" if not state.num_made else ""
        lines.append(f"{state.name:<{width}}  {images:6}  {rate}  {note}".rstrip())
    if len(shown) > MAX_TABLE_ROWS:
        lines.append(f"and {len(shown) - MAX_TABLE_ROWS} more; sweep.json has them all")
    return lines
