"""The config.yaml of a run directory, and that config with fields of it changed: where resume and reproduce start."""

import dataclasses
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.grammar import hydra_value
from tpusd.config.packed_rows import PackedRows, pack
from tpusd.config.schema import RunConfig, SavedConfig, config_values, make_config, saved_config
from tpusd.config.typed import flatten
from tpusd.config.yaml_files import parse_yaml
from tpusd.errors import UserError, show, show_path
from tpusd.records.directory import check_run_directory
from tpusd.records.layout import CONFIG, MAX_CONFIG_BYTES
from tpusd.records.manifest import check_columns
from tpusd.records.prompt_file import with_rows
from tpusd.samplers.registry import find_sampler

GROUPS = (
    "model",
    "precision",
    "sampler",
    "cache",
    "executor",
    "safety",
)  # whose saved choice is the start of an override such as sampler.eta=1
LISTS = ("loras", "embeddings")  # fields whose items have fields
# These fields do not decide a pixel, so a run may continue with other values of them.
CHANGEABLE_ON_RESUME = (
    "batch_size_per_device",
    "on_truncate",
    "on_changed_weights",
    "on_nan",
    "on_error",
    "dry_run",
    "loggers",
    "executor",
    "scores",
    "score_weights",
)


def text_fields(config: RunConfig) -> dict[str, object]:
    """The fields that decide how prompts are read, and so pixels. Of `on_truncate` alone `chunk` does."""
    return {
        "prompts.syntax": config.prompts.syntax,
        "prompts.weighting": config.prompts.weighting,
        "on_truncate": "chunk" if config.on_truncate == "chunk" else "not chunk",
    }


def read_config(path: Path) -> Any:
    """The plain values of the config.yaml of the run directory `path`. YAML tags make nothing but data.

    Raises UserError.
    """
    file = path / CONFIG
    try:
        if (storage.file_size(file) or 0) > MAX_CONFIG_BYTES:
            raise UserError(f"{show_path(file)}: is over {MAX_CONFIG_BYTES >> 30} GiB, more than a run writes")
        with storage.open_file(file) as stream:
            values = parse_yaml(stream, show_path(file))
    except OSError as error:
        raise UserError(f"{show_path(file)}: cannot be read: {error.strerror}") from None
    return with_rows(path, values)


def read_saved(path: Path) -> SavedConfig:
    """The config of the run directory `path`. Raises UserError."""
    check_run_directory(path)
    values = read_config(path)
    try:
        config = make_config(values)
        find_sampler(config.sampler.name)
        rows = config.prompts.rows
        if rows is not None and not isinstance(rows, PackedRows):  # packed ones are checked as they are read
            check_columns(rows)
            rows = pack(rows)
    except UserError as error:
        raise UserError(f"{show_path(path / CONFIG)}: {error}") from None
    if rows is None or config.height is None or config.width is None:
        raise UserError(f"{show_path(path / CONFIG)}: prompts.path must be null, and height and width must be set")
    saved = saved_config(config, rows=rows, height=config.height, width=config.width)
    return dataclasses.replace(saved, on_changed_weights="error")  # a one-time "warn" must not become permanent


def override(saved: SavedConfig, argv: Sequence[str]) -> RunConfig:
    """The saved config with the fields that `argv` sets, in the same words as for a run. Raises UserError.

    A group that is chosen again replaces the saved one whole.
    """
    if not argv:
        return saved
    from tpusd.config.choices import group_choices
    from tpusd.config.compose import compose_jobs, refuse_shows

    refuse_shows(argv, "resume=")

    for argument in argv:
        if argument in ("-m", "--multirun"):
            raise UserError(f"{argument}: resume and reproduce work on one run; remove {argument}")
    given = {argument.split("=", 1)[0] for argument in argv}
    chosen = [
        f"{group}={getattr(saved, group).name}"
        for group in GROUPS
        if group not in given and getattr(saved, group).name in group_choices().get(group, ())
    ]
    for name in LISTS:
        if getattr(saved, name) and any(field.startswith(f"{name}.") for field in given):
            chosen.append(f"{name}={hydra_value(config_values(saved)[name])}")
    if saved.model.controlnets and any(name.startswith("model.controlnets.") for name in given):
        chosen.append(f"model.controlnets={hydra_value(config_values(saved)['model']['controlnets'])}")
    jobs = compose_jobs([*chosen, *argv])
    assert jobs is not None, argv
    (job,) = jobs
    values = config_values(saved)
    for line in job.overrides[len(chosen) :]:
        _set(values, job.values, line.split("=", 1)[0])
    return make_config(values)


def _set(values: dict[str, Any], composed: dict[str, Any], key: str) -> None:
    """values[key] = composed[key], for a dotted field or a group. A path into a list takes all of it."""
    parts = key.lstrip("+").split(".")
    if parts[0] in ("prompts", *LISTS):
        parts = parts[:1]
    elif parts[:2] == ["model", "controlnets"]:
        parts = parts[:2]
    target, source = values, composed
    for part in parts[:-1]:
        target, source = target.setdefault(part, {}), source[part]  # a group that is saved only if it is set
    target[parts[-1]] = source[parts[-1]]


def by_number(value: object) -> object:
    """A list of groups as a group of them, each with its number as its name; other values as they are."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return {str(number): item for number, item in enumerate(value)}
    return value


def refuse_other_run(path: Path, there: SavedConfig, asked: SavedConfig, *, advice: str) -> None:
    """Raises UserError where the run directory `path` has the config of another run than `asked`.

    there: the config that it has.
    advice: what to do then.
    """
    old, new = (dict(flatten(_compared(config))) for config in (there, asked))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise UserError(f"{name}={show(new.get(name))}: {show_path(path)} has {show(old.get(name))}; {advice}")
    if there.prompts.rows == asked.prompts.rows:
        return
    rows = zip_longest(there.prompts.rows, asked.prompts.rows)
    for number, (before, after) in enumerate(rows, asked.first_row):
        if before != after:
            texts = ["nothing" if row is None else show(row.prompt) for row in (after, before)]
            raise UserError(f"prompts: row {number} is {texts[0]}, and in {show_path(path)} {texts[1]}; {advice}")


def _compared(config: SavedConfig) -> dict[str, Any]:
    """What is the same in all shards of a run, except its rows."""
    values = config_values(config)
    for name in (*CHANGEABLE_ON_RESUME, "output", "prompts"):
        values.pop(name, None)  # a field that is saved only if it is set
    values |= text_fields(config)
    values["model"] = {name: value for name, value in values["model"].items() if name != "sha256"}
    return {name: by_number(value) for name, value in values.items()}
