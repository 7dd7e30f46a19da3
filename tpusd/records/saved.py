"""The config.yaml of a run directory, with fields of it set anew: what resuming and reproducing start from.

Knows nothing of images; tells what in a run may grow and what must stay.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpusd.config.rows import Row, row_values
from tpusd.config.schema import RunConfig, config_values, make_config
from tpusd.errors import UserError, show, show_path
from tpusd.prompts.rows import read_rows
from tpusd.records.directory import check_run_directory, read_config
from tpusd.records.layout import CONFIG

GROUPS = ("model", "precision", "sampler")  # whose saved choice is the start of an override such as sampler.eta=1
# What does not decide a pixel, so that a run may go on with other values of it.
FREE = ("batch_size_per_device", "on_truncate", "on_changed_weights", "on_error", "dry_run", "loggers")


def read_saved(path: Path) -> RunConfig:
    """The config of a run directory as it was saved. Raises UserError."""
    check_run_directory(path)
    values = read_config(path)
    try:
        config = make_config(values)
    except UserError as error:
        raise UserError(f"{show_path(path / CONFIG)}: {error}") from None
    if config.prompts.path is not None or config.height is None or config.width is None:
        raise UserError(
            f"{show_path(path / CONFIG)}: prompts.path must be null, and height and width be set, as in every saved one"
        )
    return dataclasses.replace(config, on_changed_weights="error")  # what was let pass once is not let pass for ever


def override(saved: RunConfig, argv: Sequence[str]) -> RunConfig:
    """The saved config with the fields that `argv` sets, in the same words as for a run. Raises UserError.

    A group that is chosen anew replaces the saved one whole.
    """
    if not argv:
        return saved
    from tpusd.config.compose import compose_jobs, group_choices

    argv = list(argv)
    for argument in argv:
        if argument in ("-m", "--multirun"):
            raise UserError(f"{argument}: one run is made again or gone on with; leave {argument} out")
    given = {argument.split("=", 1)[0] for argument in argv}
    chosen = [
        f"{group}={getattr(saved, group).name}"
        for group in GROUPS
        if group not in given and getattr(saved, group).name in group_choices().get(group, ())
    ]
    jobs = compose_jobs([*chosen, *argv])
    if jobs is None:
        raise UserError(f"{show(' '.join(argv))}: only shows something; leave it out")
    (job,) = jobs
    values = config_values(saved)
    for line in job.overrides[len(chosen) :]:
        _set(values, job.values, line.split("=", 1)[0])
    return make_config(values)


def grown(before: RunConfig, after: RunConfig) -> tuple[RunConfig, tuple[Row, ...]]:
    """`after`, as it is saved, and its rows, where it is `before` or more of it. Raises UserError for what differs."""
    rows_before, rows = read_rows(before.prompts), read_rows(after.prompts)
    for index, row in enumerate(rows_before):
        if index >= len(rows) or rows[index] != row:
            what = "is left out" if index >= len(rows) else f"is now {show(rows[index].prompt)}"
            raise UserError(
                f"prompts: row {index} of the run, {show(row.prompt)}, {what}; a run grows by rows at its end; start a "
                "new run for others"
            )
    prompts = before.prompts
    if len(rows) > len(rows_before):
        prompts = dataclasses.replace(prompts, rows=tuple(row_values(row) for row in rows))
    if after.num_images_per_prompt < before.num_images_per_prompt:
        raise UserError(
            f"num_images_per_prompt={after.num_images_per_prompt}: the run was made with "
            f"{before.num_images_per_prompt}, and a run only grows; start a new run for fewer"
        )
    if after.images is not None and (before.images is None or not set(before.images) <= set(after.images)):
        raise UserError("images: the run was made with others or with all; name those too, or start a new run")
    fixed = {field.name for field in dataclasses.fields(RunConfig)} - {
        *FREE,
        "prompts",
        "num_images_per_prompt",
        "images",
    }
    for name in sorted(fixed):
        _refuse_other(name, config_values(before)[name], config_values(after)[name])
    return dataclasses.replace(after, prompts=prompts), rows


def _refuse_other(name: str, before: Any, after: Any) -> None:
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for key in before:
            _refuse_other(f"{name}.{key}", before[key], after[key])
    elif before != after:
        raise UserError(
            f"{name}={show(after)}: the run was made with {show(before)}, and goes on as it was made; start a new run "
            "for another value"
        )


def _set(values: dict[str, Any], composed: dict[str, Any], key: str) -> None:
    """values[key] = composed[key], for a dotted field or a group. A path into a prompt set takes the whole set."""
    parts = key.lstrip("+").split(".")
    if parts[0] == "prompts":
        parts = parts[:1]
    target, source = values, composed
    for part in parts[:-1]:
        target, source = target[part], source[part]
    target[parts[-1]] = source[parts[-1]]
