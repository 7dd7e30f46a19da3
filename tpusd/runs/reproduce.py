"""A past run, or images of it, made again from its saved config and compared image by image.

The new run directory holds comparison.json, and comparison.png with the pair that differs most.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tpusd import storage
from tpusd.config.executor import LOCAL
from tpusd.config.schema import RunConfig, SavedConfig
from tpusd.config.scores import PUBLISHED
from tpusd.errors import UserError, show, show_path
from tpusd.gallery.drawing import encode_sheet
from tpusd.gallery.grid import contact_sheet
from tpusd.inputs.rows import released
from tpusd.plan.batches import ProgramKey, program_key
from tpusd.plan.specs import make_spec, parse_name, planned
from tpusd.process.report import report, say
from tpusd.records.compare import SAME, TOLERANCES, Comparison, compare, read_pixels, same_start, side_by_side
from tpusd.records.layout import MAKE_ROOM
from tpusd.records.manifest import ImageRecord, manifest_lines, read_manifest
from tpusd.records.older_rules import WEAKENED, weakened
from tpusd.records.provenance import changes
from tpusd.records.run_json import read_run
from tpusd.records.saved import override, read_saved
from tpusd.records.sweep import is_sweep, read_sweep
from tpusd.runs.dry_run import RunToShow, show_plan
from tpusd.runs.executors.local import LoadPipeline, PipelineLike, load_pipeline
from tpusd.runs.not_finite import ImagesNotFinite
from tpusd.runs.prepare import Prepare, PreparedRun, prepare_run
from tpusd.runs.rounding import examine
from tpusd.runs.start import start_run
from tpusd.storage import os_errors_as_user_errors

if TYPE_CHECKING:
    import jax

COMPARISON, PICTURE = "comparison.json", "comparison.png"
SHOWN = 20  # images that get a line of their own; comparison.json has all of them
Records = Mapping[tuple[int, int], ImageRecord]  # (row, copy) -> record
Comparisons = Mapping[tuple[int, int], Comparison]


def reproduce(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    names: Sequence[str] | None = None,
    sample: int | None = None,
    exact: bool = False,
    prepare: Prepare = prepare_run,
    load: LoadPipeline = load_pipeline,
) -> bool:
    """Makes images again, prints how they compare, and returns whether all of them are the same. Raises UserError.

    path: of the past run.
    overrides: fields with new values, in the words of the command line.
    names: only these images, such as 00003-001; None: all.
    sample: only so many of them, spread evenly; None: all.
    exact: whether "within tolerance" does not count as the same.
    prepare, load: see `prepare_run` and `load_pipeline`.
    """
    if is_sweep(path):
        runs = [run.name for run in read_sweep(path).runs]
        example = f", such as {show_path(path / runs[0])}" if runs else ""
        raise UserError(f"{show_path(path)}: is a sweep; give one of its runs{example}")
    saved = read_saved(path)
    records = _chosen(path, saved, names, sample)
    images = None if len(records) == len(planned(saved)) else tuple(record.name for record in records.values())
    base = replace(saved, output=None, executor=LOCAL, scores=(), score_weights=PUBLISHED)  # a cluster may be elsewhere
    config = override(released(base, {word.partition("=")[0] for word in overrides}), overrides)
    if config.shard is not None:
        raise UserError(
            f"shard={show(config.shard)}: reproduce makes all images that it compares; use --images or --sample"
        )
    if config.images is None or images is not None:
        config = replace(config, images=images)
    if config.dry_run:
        show_plan([RunToShow(name="", config=config)], prepare)
        return True
    load = _keeping(load)
    try:
        again = start_run(config, name=f"reproduce_{saved.prompts.name}", prepare=prepare, load=load)
    except ImagesNotFinite as error:  # such images are missing
        report(str(error))
        again = error.path
    made = {record.key: record for record in read_manifest(again)}
    fair = _same_recipe(saved, read_saved(again), records, made)
    tolerance = TOLERANCES[config.precision.unet.dtype]
    comparisons = {
        key: compare(path, record, again, made.get(key), tolerance if key in fair else None)
        for key, record in records.items()
    }
    if all(_is_lossless(one) for one in (saved, config)):

        def pixels(key: tuple[int, int]) -> tuple[np.ndarray | None, np.ndarray | None]:
            return read_pixels(path, records[key]), read_pixels(again, made[key])

        blurred = {key for key, record in records.items() if (record.safety or {}).get("blurred")}
        doubtful = {key: comparisons[key] for key in comparisons if key in fair and key not in blurred}
        comparisons |= examine(read_saved(again), doubtful, pixels, prepare, load)
    changed = what_changed(path, records.values(), again, made.values())
    differing = [records[key] for key, comparison in comparisons.items() if comparison.verdict == "different"]
    if weakened(read_run(path), differing, surely=False):
        changed.append(WEAKENED)
    _print_report(again, comparisons, overrides, changed)
    outcome = {
        "original": str(path.resolve()),
        "overrides": list(overrides),
        "changed": changed,
        "counts": _counts(comparisons),
        "images": [comparison.values() for comparison in comparisons.values()],
    }
    with os_errors_as_user_errors(again, MAKE_ROOM):
        storage.write_file(again / COMPARISON, json.dumps(outcome, indent=1, ensure_ascii=False).encode())
        _write_worst_pair(path, records, again, made, comparisons)
    wanted = SAME[:1] if exact else SAME
    return all(comparison.verdict in wanted for comparison in comparisons.values())


def _chosen(
    path: Path, saved: SavedConfig, names: Sequence[str] | None, sample: int | None
) -> dict[tuple[int, int], ImageRecord]:
    """The records of the images to make again, in order. Lines that are not valid are skipped. Raises UserError."""
    read = (ImageRecord.from_line(line) for _, _, line in manifest_lines(path))
    there = {record.key: record for record in read if record is not None}
    records = {key: there[key] for key in planned(saved) if key in there}
    if not records:
        raise UserError(f"{show_path(path)}: has no images to make again")
    if names is not None:
        keys = [parse_name(name) for name in names]
        for name, key in zip(names, keys, strict=True):
            if key not in records:
                raise UserError(f"--images={show(name)}: the run has no such image; see its manifest.jsonl")
        if not keys:
            raise UserError("--images=: names no image; write names such as 00003-001,00004-000")
        records = {key: records[key] for key in sorted(set(keys))}
    if sample is not None:
        if sample < 1:
            raise UserError(f"--sample={sample}: must be 1 or more")
        keys = list(records)
        number = min(sample, len(keys))
        records = {key: records[key] for key in (keys[i * len(keys) // number] for i in range(number))}
    return records


def _same_recipe(before: SavedConfig, after: SavedConfig, old: Records, new: Records) -> set[tuple[int, int]]:
    """The images that were made from one recipe, so that only rounding may differ.

    before, after: the configs of the two runs.
    old, new: their records.
    """
    if before.precision != after.precision:
        return set()
    return {
        key
        for key, record in old.items()
        if key in new
        and replace(make_spec(before, *key), extra={}) == replace(make_spec(after, *key), extra={})
        and same_start(record.trace, new[key].trace)
    }


def _is_lossless(config: RunConfig) -> bool:
    return config.image_format == "png" or (config.image_format == "webp" and config.image_quality is None)


def _keeping(load: LoadPipeline) -> LoadPipeline:
    """As `load`, for one run: a pipeline that was loaded is used again, so it shares no weights with another."""
    kept: dict[ProgramKey, PipelineLike] = {}

    def loaded(prepared: PreparedRun, devices: "Sequence[jax.Device]", /, *, weights_of: Any = None) -> PipelineLike:
        key = program_key(prepared.config)
        if key not in kept:
            kept[key] = load(prepared, devices)
        return kept[key]

    return loaded


def _counts(comparisons: Comparisons) -> dict[str, int]:
    """Verdict -> number of images."""
    return dict(Counter(comparison.verdict for comparison in comparisons.values()))


def _print_report(again: Path, comparisons: Comparisons, overrides: Sequence[str], changed: Sequence[str]) -> None:
    differing = [comparison for comparison in comparisons.values() if comparison.verdict != "identical"]
    for comparison in differing[:SHOWN]:
        say(comparison)
    if len(differing) > SHOWN:
        say(f"... and {len(differing) - SHOWN} more in {again / COMPARISON}")
    new_values = [line for line in overrides if not line.startswith("output=")]
    for line in [*(f"new value: {show(line)}" for line in new_values), *changed]:
        say(line)
    if not changed:
        say("versions, devices, flags, weights and programs are those of the original")
    say(f"{again}: {', '.join(f'{number} {verdict}' for verdict, number in _counts(comparisons).items())}")


def _write_worst_pair(path: Path, before: Records, again: Path, after: Records, comparisons: Comparisons) -> None:
    """comparison.png: the pair of the lowest PSNR, or the first pair where all are equal."""
    ranked = [(comparison.psnr, key) for key, comparison in comparisons.items() if comparison.psnr is not None]
    if not ranked:
        return
    _, worst = min(ranked, key=lambda pair: pair[0])
    old, new = read_pixels(path, before[worst]), read_pixels(again, after[worst])
    if old is not None and new is not None:
        sheet = contact_sheet(side_by_side(old, new), columns=3, cell=384, note=str(comparisons[worst]))
        storage.write_file(again / PICTURE, encode_sheet(sheet))


def what_changed(path: Path, before: Iterable[ImageRecord], again: Path, after: Iterable[ImageRecord]) -> list[str]:
    """Lines `what: old -> new` for everything in which the environments of two runs differ.

    path, again: run directories.
    before, after: the records whose images are compared.
    """
    old, new, before = _environments(path), _environments(again), list(before)
    if not any(one.environment in old for one in before):
        return ["the original's run.json does not say what made it"]
    made = {record.key: record.environment for record in after}
    pairs = dict.fromkeys((one.environment, made[one.key]) for one in before if one.key in made)
    lines: dict[str, None] = {}
    for was, now in ((old[was], new[now]) for was, now in pairs if was in old and now in new):
        lines |= dict.fromkeys(f"changed: {change}" for change in changes(was, now))
    return list(lines)


def _environments(path: Path) -> dict[str, dict[str, Any]]:
    """The environments of a run, by their names."""
    environments: dict[str, dict[str, Any]] = read_run(path).get("environments", {})
    return environments
