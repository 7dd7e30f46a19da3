"""Run directories of one run, each with some of its images -> one directory. Needs no model."""

import contextlib
import dataclasses
import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from tpusd import storage
from tpusd.config.schema import SavedConfig, config_values
from tpusd.errors import UserError, show_path
from tpusd.gallery.run import write_results
from tpusd.gallery.sweep import write_sweep_results
from tpusd.plan.specs import image_name, planned
from tpusd.process.report import report, say
from tpusd.process.waiting import waiting
from tpusd.records.directory import Claim, DirectoryLog, RunDir, claim_directory, close_quietly, refuse_taken
from tpusd.records.dropped import Key, dropped_lines, read_dropped
from tpusd.records.layout import CHECK_PERMISSIONS, CHOOSE_ANOTHER, CONFIG, DROPPED, HYDRA, MAKE_ROOM, SWEEP_LOG
from tpusd.records.manifest import ImageRecord, read_manifest
from tpusd.records.repair import repair
from tpusd.records.run_json import joined_facts, read_run
from tpusd.records.saved import read_saved, refuse_other_run
from tpusd.records.scores import join_scores
from tpusd.records.shards import join_parts, sorted_lines
from tpusd.records.sweep import is_sweep, read_sweep, refuse_other_sweep, write_sweep
from tpusd.storage import os_errors_as_user_errors

ADVICE = "merge the directories of one run"


def merge(out: Path, sources: Sequence[Path]) -> int:
    """Joins runs, or sweeps, into `out`. Returns how many images are missing. Raises UserError."""
    if any(map(is_sweep, sources)):
        return _merge_sweeps(out, sources)
    configs = _configs(sources)
    missing = _merge_runs(out, sources, configs, output=str(out))
    say(_summary(out, len(planned(configs[0])), missing))
    return missing


def _merge_sweeps(out: Path, sources: Sequence[Path]) -> int:
    sweeps = [read_sweep(source) for source in sources]
    for source, sweep in zip(sources[1:], sweeps[1:], strict=True):
        refuse_other_sweep(source, sweep, sweeps[0])
    with os_errors_as_user_errors(out, CHOOSE_ANOTHER):
        if is_sweep(out):
            refuse_other_sweep(out, read_sweep(out), sweeps[0])
        else:
            claim_directory(Claim(output=out), [], refuse_taken)
    errors = {run.name: run.error for sweep in sweeps for run in sweep.runs if run.error is not None}
    missing = 0
    with contextlib.ExitStack() as stack:
        with os_errors_as_user_errors(out, MAKE_ROOM):
            stack.callback(close_quietly, DirectoryLog(out, SWEEP_LOG, kind="sweep"))
            write_sweep(out, sweeps[0])
        for run in sweeps[0].runs:
            parts = [
                source / run.name for source in sources if storage.file_size(source / run.name / CONFIG) is not None
            ]
            if not parts:
                report(f"{run.name}: no directory has it")
                missing += 1
                continue
            configs = _configs(parts)
            if lacks := _merge_runs(out / run.name, parts, configs, output=None):
                say(_summary(out / run.name, len(planned(configs[0])), lacks))
            else:
                errors.pop(run.name, None)
            missing += lacks
        with waiting("writing the sweep's page"), os_errors_as_user_errors(out, MAKE_ROOM):
            runs = tuple(dataclasses.replace(run, error=errors.get(run.name)) for run in sweeps[0].runs)
            sweep = dataclasses.replace(sweeps[0], runs=runs)
            write_sweep(out, sweep)
            page = write_sweep_results(out, sweep)
    say(f"{out}: {len(sweep.runs)} runs{f', {missing} images or runs missing' if missing else ''}; see {page}")
    return missing


def _configs(sources: Sequence[Path]) -> list[SavedConfig]:
    """The configs of directories, which must be those of one run. Raises UserError."""
    configs = [read_saved(source) for source in sources]
    for source, config in zip(sources, configs, strict=True):
        refuse_other_run(source, config, configs[0], advice=ADVICE)
        sha256, other = config.model.sha256, next((one.model.sha256 for one in configs if one.model.sha256), None)
        if sha256 not in (None, other):
            raise UserError(f"{show_path(source)}: was made with other weights than {show_path(sources[0])}; {ADVICE}")
    return configs


def _merge_runs(out: Path, sources: Sequence[Path], configs: Sequence[SavedConfig], *, output: str | None) -> int:
    """Returns how many images are missing then. output: of a new directory's config."""
    sha256 = next((config.model.sha256 for config in configs if config.model.sha256), None)
    model = dataclasses.replace(configs[0].model, sha256=sha256)
    config = dataclasses.replace(configs[0], model=model, output=output)
    with contextlib.ExitStack() as stack:
        run_dir = _open(out, config, sources[0])
        stack.callback(close_quietly, run_dir)
        join_parts(run_dir)
        done = set(repair(run_dir, config).done)
        facts = joined_facts([read_run(source) for source in (out, *sources)])
        facts["num_images"] = len(planned(config))
        run_dir.write_run(facts)  # first, because each line names an environment of it
        for source in sources:
            for record in read_manifest(source):
                if record.key not in done and _copy(run_dir, source, record):
                    done.add(record.key)
        dropped = _copy_dropped(run_dir, (out, *sources), config, frozenset(done))
        missing = len(planned(config)) - len(done | dropped)
        run_dir.rewrite_manifest(sorted_lines(out))
        for source in sources:
            join_scores(out, source, read_manifest(out))
        with waiting(f"making the results of {show_path(out)}"), os_errors_as_user_errors(out, MAKE_ROOM):
            facts["state"] = "running" if missing else "finished"
            write_results(out, facts)
        run_dir.write_run(facts)
        run_dir.log(f"merged from {len(sources)} directories: {len(done)} images, {missing} missing")
    return missing


def _open(out: Path, config: SavedConfig, source: Path) -> RunDir:
    """The directory that a merge writes to: a new one, or one of the same run. source: whose .hydra/ it gets."""
    if storage.file_size(out / CONFIG) is not None:
        refuse_other_run(out, read_saved(out), config, advice=ADVICE)
        return RunDir.open(out)
    run_dir = RunDir.claim(Claim(output=out))
    for name in ("overrides.yaml", "config.yaml", "hydra.yaml"):
        if storage.file_size(source / HYDRA / name) is not None:
            run_dir.write(f"{HYDRA}/{name}", storage.read_file(source / HYDRA / name))
    run_dir.write_config(config_values(config))
    return run_dir


def _copy(run_dir: RunDir, source: Path, record: ImageRecord) -> bool:
    """Whether the image is whole in `source`, and now in the run."""
    try:
        data = storage.read_file(source / record.file_name, record.num_bytes)
    except OSError as error:
        report(f"{show_path(source / record.file_name)}: is left out: {error.strerror}")
        return False
    if hashlib.sha256(data).hexdigest() != record.sha256:
        report(f"{show_path(source / record.file_name)}: is left out: its sha256 is not the manifest's")
        return False
    run_dir.write_image(record.base_name, data)
    run_dir.append_records(record)
    return True


def _copy_dropped(run_dir: RunDir, places: Sequence[Path], config: SavedConfig, done: frozenset[Key]) -> set[Key]:
    """The images without a file that the safety checker found in any of the directories, noted in the merged one."""
    lines: dict[Key, bytes] = {}
    for place in places:
        with os_errors_as_user_errors(place, CHECK_PERMISSIONS, operation="read"):
            for key, line in dropped_lines(place, config):
                if config.safety.is_on and key not in done:
                    lines.setdefault(key, line)
    if lines:
        run_dir.write(DROPPED, b"".join(lines[key] + b"\n" for key in sorted(lines)))
    return set(lines)


def _summary(out: Path, num_images: int, missing: int) -> str:
    if not missing:
        return f"{out}: complete, {num_images} images"
    saved = read_saved(out)
    names = {record.key for record in read_manifest(out)} | read_dropped(out, saved)
    first = next(image_name(*key) for key in planned(saved) if key not in names)
    more = f" and {missing - 1} more" if missing > 1 else ""
    command = f"python -m tpusd.run resume={shlex.quote(str(out))}"
    return f"{out}: {first}{more} of {num_images} images missing; merge another directory, or make them with: {command}"
