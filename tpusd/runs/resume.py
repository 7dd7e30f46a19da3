"""`resume=DIR`: continues a run, or extends it, which is the same.

What is whole is kept, what is missing is made, and the directory ends as if nothing had happened. A run that lacks
nothing is recognised without opening its model.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tpusd.config.grammar import hydra_value
from tpusd.config.packed_rows import pack
from tpusd.config.rows import ROW_FIELDS, Row
from tpusd.config.schema import RunConfig, SavedConfig, saved_config
from tpusd.config.typed import plain
from tpusd.errors import UserError, show
from tpusd.inputs.rows import same_rows
from tpusd.plan.specs import row_numbers
from tpusd.process.report import report
from tpusd.prompts.rows import run_rows
from tpusd.records.directory import RunDir, close_quietly
from tpusd.records.saved import CHANGEABLE_ON_RESUME, by_number, override, read_saved, text_fields
from tpusd.records.shards import ShardDir
from tpusd.runs.dry_run import RunToShow, show_plan
from tpusd.runs.executors.local import LoadPipeline, load_pipeline
from tpusd.runs.prepare import Prepare, prepare_run
from tpusd.runs.start import make_alone, score_advising
from tpusd.runs.stripes import stripe_of
from tpusd.runs.take_up import CompleteRun, take_up


def resume_run(
    path: Path,
    argv: Sequence[str] = (),
    *,
    prepare: Prepare = prepare_run,
    load: LoadPipeline = load_pipeline,
    started: float | None = None,
) -> Path:
    """Completes the run at `path`; returns it. Raises UserError.

    argv: fields with new values, which may only extend the run, and `shard`.
    prepare, load: see `prepare_run` and `load_pipeline`.
    started: when the command began, by time.monotonic().
    """
    saved = read_saved(path)  # what is not a run directory is refused before anything in it is touched
    asked = override(saved, argv)
    stripe = stripe_of(asked)
    if asked.dry_run:
        config = extended_config(saved, asked)
        show_plan([RunToShow(name="", config=config, path=path, stripe=stripe)], prepare)
        return path
    run_dir = RunDir.open(path) if stripe is None else ShardDir.join(path, stripe)
    with contextlib.ExitStack() as stack:
        stack.callback(close_quietly, run_dir)
        saved = read_saved(path)  # again: until we held the lock, another process could write it
        config = extended_config(saved, override(saved, argv))
        found = take_up(run_dir, saved, config, prepare, name=path.name)
        if isinstance(found, CompleteRun):
            stack.close()  # scoring takes the lock
            score_advising(path, config, is_shard=stripe is not None)
            found.say()
            return path
        for warning in found.prepared.warnings:
            report(warning)
        stack.pop_all()  # from here on the session closes the directory
        make_alone(found, load, started=started)
    return path


def extended_config(before: SavedConfig, after: RunConfig) -> SavedConfig:
    """`after` as a saved config, where it is `before` or more of it. Raises UserError for what differs."""
    rows = run_rows(after)
    for index, row in () if rows == before.prompts.rows else enumerate(before.prompts.rows):
        if index >= len(rows) or not same_rows(row, rows[index]):
            what = "is removed" if index >= len(rows) else _what_it_is(row, rows[index])
            raise UserError(
                f"prompts: row {index} of the run, {show(row.prompt)}, {what}; a run is extended by rows at its end; "
                "start a new run for others"
            )
    own = before.prompts.rows
    rows = own if len(rows) == len(own) else pack((*own, *rows[len(own) :]))  # with what they say of their pictures
    if after.num_images_per_prompt < before.num_images_per_prompt:
        raise UserError(
            f"num_images_per_prompt={after.num_images_per_prompt}: the run was made with "
            f"{before.num_images_per_prompt}, and a run can only be extended; start a new run for fewer"
        )
    if after.images is not None and (before.images is None or not set(before.images) <= set(after.images)):
        raise UserError("images: the run was made with others or with all; name those too, or start a new run")
    _refuse_others(before, after)
    old, new = row_numbers(before, len(before.prompts.rows)), row_numbers(after, len(rows))
    if not set(old) <= set(new):
        raise UserError(
            f"rows={show(after.rows)} limit={show(after.limit)}: the run has rows {old[0]} to {old[-1]}, and a run can "
            "only be extended; choose those too, or start a new run"
        )
    extended = saved_config(after, rows=rows, height=before.height, width=before.width)
    return dataclasses.replace(extended, prompts=dataclasses.replace(before.prompts, rows=rows))


def _what_it_is(before: Row, after: Row) -> str:
    if before.prompt != after.prompt:
        return f"is now {show(after.prompt)}"
    own = next(name for name in (*ROW_FIELDS, "extra") if getattr(before, name) != getattr(after, name))
    return f"has {own}={show(getattr(after, own))}, not {show(getattr(before, own))}"


def _refuse_others(before: RunConfig, after: RunConfig) -> None:
    """Raises UserError for a field that may not differ in two configs of one run. Rows and images are not compared."""
    may_differ = {*CHANGEABLE_ON_RESUME, "prompts", "num_images_per_prompt", "images", "rows", "limit", "shard"}
    old, new = plain(before, whole=True), plain(after, whole=True)
    for name in sorted(old.keys() - may_differ):
        _refuse_other(name, old[name], new[name])
    for name, value in text_fields(before).items():
        _refuse_other(name, value, text_fields(after)[name])


def _refuse_other(name: str, before: object, after: object) -> None:
    """Raises UserError for the first field that differs, also inside of groups and of lists of groups."""
    if before and after:
        before, after = by_number(before), by_number(after)
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before | after:
            _refuse_other(f"{name}.{key}", before.get(key), after.get(key))
    elif before != after:
        raise UserError(
            f"{name}={_shown(after)}: the run was made with {_shown(before)}, and continues as it was made; "
            "start a new run for another value"
        )


def _shown(value: object) -> str:
    """A value for an error line; groups and lists as on a command line, without the fields that are not set."""
    return show(hydra_value(_set_fields(value)) if isinstance(value, dict | list) else value)


def _set_fields(value: object) -> object:
    if isinstance(value, dict):
        return {name: _set_fields(own) for name, own in value.items() if own is not None}
    return [_set_fields(own) for own in value] if isinstance(value, list) else value
