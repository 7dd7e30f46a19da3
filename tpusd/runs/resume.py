"""`resume=DIR`: continues a run, or extends it, which is the same.

What is whole is kept, what is missing is made, and the directory ends as if nothing had happened. A run that lacks
nothing is recognised without opening its model.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tpusd.config.rows import ROW_FIELDS, Row
from tpusd.config.schema import RunConfig, SavedConfig, SavedPrompts, config_values, saved_config
from tpusd.errors import UserError, show
from tpusd.gallery.run import results_are_whole
from tpusd.inputs.rows import same_rows
from tpusd.plan.specs import planned
from tpusd.process.report import report, say
from tpusd.prompts.rows import run_rows
from tpusd.records.directory import RunDir, RunWriter, close_quietly
from tpusd.records.layout import PAGE
from tpusd.records.manifest import read_manifest
from tpusd.records.older_rules import WEAKENED, weakened
from tpusd.records.repair import repair
from tpusd.records.run_json import read_run
from tpusd.records.saved import CHANGEABLE_ON_RESUME, override, read_saved
from tpusd.runs.dry_run import RunToShow, count, show_plan
from tpusd.runs.executors.local import LoadPipeline, load_pipeline
from tpusd.runs.prepare import Prepare, prepare_run
from tpusd.runs.session import RunSession
from tpusd.runs.start import make_alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompleteRun:
    """A run that lacks nothing."""

    path: Path
    num_images: int


def resume_run(
    path: Path,
    argv: Sequence[str] = (),
    *,
    prepare: Prepare = prepare_run,
    load: LoadPipeline = load_pipeline,
    started: float | None = None,
) -> Path:
    """Completes the run at `path`; returns it. Raises UserError.

    argv: fields with new values, which may only extend the run.
    prepare, load: see `prepare_run` and `load_pipeline`.
    started: when the command began, by time.monotonic().
    """
    saved = read_saved(path)  # what is not a run directory is refused before anything in it is touched
    asked = override(saved, argv)
    if asked.dry_run:
        config = extended_config(saved, asked)
        show_plan([RunToShow(name="", config=config, path=path)], prepare)
        return path
    run_dir = RunDir.open(path)
    with contextlib.ExitStack() as stack:
        stack.callback(close_quietly, run_dir)
        saved = read_saved(path)  # again: until we held the lock, another process could write it
        config = extended_config(saved, override(saved, argv))
        found = take_up(run_dir, saved, config, prepare, name=path.name)
        if isinstance(found, CompleteRun):
            say(f"{path}: complete, {count(found.num_images, 'image')}; see {path / PAGE}")
            return path
        for warning in found.prepared.warnings:
            report(warning)
        stack.pop_all()  # from here on the session closes the directory
        make_alone(found, load, started=started)
    return path


def take_up(
    run_dir: RunWriter, saved: SavedConfig, config: SavedConfig, prepare: Prepare, *, name: str
) -> RunSession | CompleteRun:
    """What an existing run has, repaired, and the rest prepared. The directory stays open. Raises UserError.

    saved: the config that the directory holds.
    config: the one to continue with, `saved` or more of it; is written where it is more.
    """
    try:
        repaired = repair(run_dir, saved)
        for note in repaired.notes:
            report(note)
            run_dir.log(note)
        images = planned(config)
        missing = len(images) - sum(key in images for key in repaired.done)
        if not missing and _is_finished(run_dir.path):
            return CompleteRun(path=run_dir.path, num_images=len(repaired.done))
        if missing and _guides_below_one(config) and _weakened(run_dir.path):
            note = f"{WEAKENED} than those that are there; start a new run to have all alike"
            report(note)
            run_dir.log(note)
        session = RunSession(prepare(config), run_dir, name=name, done=repaired.done)
    except UserError as error:
        run_dir.log(f"stopped: {error}")
        raise
    lasting = dataclasses.replace(config, **{field: getattr(saved, field) for field in CHANGEABLE_ON_RESUME})
    if config_values(lasting) != config_values(saved):
        run_dir.write_config(config_values(lasting))
    run_dir.log(f"continues: {len(repaired.done)} images are there and {missing} are missing")
    return session


def extended_config(before: SavedConfig, after: RunConfig) -> SavedConfig:
    """`after` as a saved config, where it is `before` or more of it. Raises UserError for what differs."""
    rows = run_rows(after)
    for index, row in enumerate(before.prompts.rows):
        if index >= len(rows) or not same_rows(row, rows[index]):
            what = "is removed" if index >= len(rows) else _what_it_is(row, rows[index])
            raise UserError(
                f"prompts: row {index} of the run, {show(row.prompt)}, {what}; a run is extended by rows at its end; "
                "start a new run for others"
            )
    rows = (*before.prompts.rows, *rows[len(before.prompts.rows) :])  # with what they say of their pictures
    if after.num_images_per_prompt < before.num_images_per_prompt:
        raise UserError(
            f"num_images_per_prompt={after.num_images_per_prompt}: the run was made with "
            f"{before.num_images_per_prompt}, and a run can only be extended; start a new run for fewer"
        )
    if after.images is not None and (before.images is None or not set(before.images) <= set(after.images)):
        raise UserError("images: the run was made with others or with all; name those too, or start a new run")
    may_differ = {*CHANGEABLE_ON_RESUME, "prompts", "num_images_per_prompt", "images"}
    old, new = config_values(before), config_values(after)
    for name in sorted(old.keys() - may_differ):
        _refuse_other(name, old[name], new[name])
    extended = saved_config(after, rows=rows, height=before.height, width=before.width)
    return dataclasses.replace(extended, prompts=SavedPrompts(name=before.prompts.name, rows=rows))


def _what_it_is(before: Row, after: Row) -> str:
    if before.prompt != after.prompt:
        return f"is now {show(after.prompt)}"
    own = next(name for name in (*ROW_FIELDS, "extra") if getattr(before, name) != getattr(after, name))
    return f"has {own}={show(getattr(after, own))}, not {show(getattr(before, own))}"


def _guides_below_one(config: SavedConfig) -> bool:
    own = (row.guidance_scale for row in config.prompts.rows)
    return any(scale is not None and scale < 1 for scale in (config.guidance_scale, *own))


def _weakened(path: Path) -> bool:
    return weakened(read_run(path), read_manifest(path), surely=True)


def _is_finished(path: Path) -> bool:
    return read_run(path).get("state") == "finished" and results_are_whole(path)


def _refuse_other(name: str, before: object, after: object) -> None:
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for key in before:
            _refuse_other(f"{name}.{key}", before[key], after[key])
    elif before != after:
        raise UserError(
            f"{name}={show(after)}: the run was made with {show(before)}, and continues as it was made; "
            "start a new run for another value"
        )
