"""The runs that the command line of a sweep asks for, and their names. Pure: knows nothing of disks and devices."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpusd.config.compose import Job
from tpusd.config.replace import REPLACE, axis_values, replacements
from tpusd.config.schema import RunConfig, config_values, make_config
from tpusd.errors import UserError
from tpusd.records.saved import CHANGEABLE_ON_RESUME
from tpusd.records.sweep import Sweep, SweepRun, config_digest, run_name

NOT_COMPARED = (*CHANGEABLE_ON_RESUME, "output", "shard")  # runs that differ only in these are the same run


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A run of the sweep that the command line asks for."""

    run: SweepRun
    config: RunConfig
    job: Job


def plan_sweep(
    jobs: Sequence[Job], overrides: Sequence[str], before: Sweep | None = None
) -> tuple[Sweep, list[RunRequest]]:
    """The sweep, and its requests in the order of the command line. Raises UserError.

    jobs: the runs as composed.
    overrides: the command line that a resume starts from.
    before: the sweep that is continued; its runs keep their names.
    """
    assert jobs
    configs = [make_config(job.values) for job in jobs]  # all of them, before the first starts
    outputs = {config.output for config in configs}
    if len(outputs) > 1:
        raise UserError("output: a sweep has one directory, which holds all of its runs; give one value")
    if len({config.executor for config in configs}) > 1:
        raise UserError("executor: a sweep is made in one place; give one value")
    if len({config.shard for config in configs}) > 1:
        raise UserError("shard: a process makes one shard of all runs of a sweep; give one value")
    if len({(config.scores, config.score_weights) for config in configs}) > 1:
        raise UserError("scores: all runs of a sweep have the same scores; give one list, as in 'scores=[a,b]'")
    given = _override_values(jobs)
    swept = [key for key in given[0] if len({values.get(key) for values in given}) > 1]
    keys = list(dict.fromkeys([*(before.axes if before else ()), *swept]))
    old = {} if before is None else {run.digest: run for run in before.runs}
    by_words = {} if before is None else {frozenset(run.overrides): run for run in before.runs}
    runs = {run.name: run for run in before.runs} if before else {}
    requests: list[RunRequest] = []
    seen: set[str] = set()
    for job, config, values in zip(jobs, configs, given, strict=True):
        compared = _compared(config)
        digest = config_digest(compared)
        if digest in seen:  # the same run twice, as in seed=0,0
            continue
        seen.add(digest)
        at = {key: _unquoted(values[key]) if key in values else _value_of(compared, key) for key in keys}
        known = old.get(digest) or by_words.get(frozenset(without_shard(job.overrides)))
        name = known.name if known else run_name(len(runs), at)
        own = without_shard(job.overrides)
        run = SweepRun(name=name, overrides=own, at=at, digest=digest, error=known.error if known else None)
        runs[name] = run
        requests.append(RunRequest(run=run, config=dataclasses.replace(config, output=None), job=job))
    complete = tuple(
        dataclasses.replace(run, at={key: run.at.get(key, "") for key in keys}) if set(run.at) != set(keys) else run
        for run in runs.values()
    )
    axes = {
        key: tuple(dict.fromkeys(run.at[key] for run in [*(request.run for request in requests), *complete]))
        for key in keys
    }
    return Sweep(overrides=without_shard(overrides), axes=axes, runs=complete), requests


def without_shard(words: Sequence[str]) -> tuple[str, ...]:
    """The words of a command that are the same for all shards."""
    return tuple(word for word in words if _key(word) != "shard")


def _compared(config: RunConfig) -> dict[str, Any]:
    """The values by which a run is known."""
    values = {
        name: value for name, value in config_values(config).items() if name not in NOT_COMPARED or value == "chunk"
    }
    changes = [pair for pair in values["prompts"].pop("replace", ()) if len(set(pair)) > 1]
    if changes:  # a word for itself changes nothing
        values["prompts"]["replace"] = changes
    return values


def extended_overrides(overrides: Sequence[str], new: Sequence[str]) -> list[str]:
    """The command line of a sweep that continues with `new` values, which replace the old ones of their fields."""
    keys = {_key(line) for line in new}
    return [*(line for line in overrides if _key(line) not in keys), *new]


def _override_values(jobs: Sequence[Job]) -> list[dict[str, str]]:
    """For each run: field -> its value on the command line. What is put in prompts is named by its words."""
    given = [{_key(line): line.split("=", 1)[1] for line in job.overrides if "=" in line} for job in jobs]
    replaced = axis_values([replacements(f"{REPLACE}={own[REPLACE]}") if REPLACE in own else () for own in given])
    return [
        {key: value for key, value in own.items() if key != REPLACE} | dict(axes)
        for own, axes in zip(given, replaced, strict=True)
    ]


def _key(line: str) -> str:
    return line.split("=", 1)[0].lstrip("+")


def _unquoted(value: str) -> str:
    """A value as people read it: without the quotes that the command line needed."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def _value_of(values: Mapping[str, Any], key: str) -> str:
    """A field's value where the command line did not set it; a group's is its name."""
    found: Any = values
    for part in key.split("."):
        if isinstance(found, list):
            found = found[int(part)] if part.isdigit() and int(part) < len(found) else None
        else:
            found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, Mapping):
        found = found.get("name")
    return (
        "null"
        if found is None
        else str(found).lower()
        if isinstance(found, bool)
        else f"{found:g}"
        if isinstance(found, float)
        else str(found)
    )
