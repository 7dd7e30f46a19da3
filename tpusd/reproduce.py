"""`python -m tpusd.reproduce runs/DIR`: a past run, or images of it, made again from its saved config and compared.

Exit status: 0 if every image is identical or within tolerance, 1 if one is not, 2 for what the user can mend. The new
run directory holds comparison.json, and comparison.png with the pair that differs most.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tpusd.config.schema import RunConfig
from tpusd.errors import UserError, show, show_path
from tpusd.plan.specs import image_name, parse_name, planned
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status
from tpusd.records.saved import override, read_saved
from tpusd.run import run
from tpusd.runs.execute import load_pipeline
from tpusd.runs.prepare import PreparedRun, prepare_run

COMPARISON, PICTURE = "comparison.json", "comparison.png"
EXIT_DIFFERENT = 1
SHOWN = 20  # images that get a line of their own; comparison.json has all of them


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = Parser(
        prog="python -m tpusd.reproduce",
        description="Makes a past run again from its saved config, and says how each image compares.",
        epilog="Exit status: 0 all identical or within tolerance, 1 something differs, 2 it could not be tried.",
    )
    parser.add_argument("directory", type=Path, help="a run directory, such as runs/2026-11-23_12-34-56_portraits")
    parser.add_argument("--images", help="only these, such as 00003-001,00004-000")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, spread evenly over the run")
    parser.add_argument("--exact", action="store_true", help="within tolerance is not enough: status 1")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="fields set anew, as for tpusd.run")
    with exit_status() as status:
        given = parser.parse_intermixed_args(argv)
        names = None if given.images is None else [name.strip() for name in given.images.split(",") if name.strip()]
        same = reproduce(given.directory, given.overrides, names=names, sample=given.sample, exact=given.exact)
        status[0] = 0 if same else EXIT_DIFFERENT
    return status[0]


def reproduce(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    names: Sequence[str] | None = None,
    sample: int | None = None,
    exact: bool = False,
    prepare: Callable[[RunConfig], PreparedRun] = prepare_run,
    load: Callable[..., Any] = load_pipeline,
) -> bool:
    """Makes them again, tells how they compare, and returns whether all of them are the same. Raises UserError."""
    from tpusd.records.compare import TOLERANCES
    from tpusd.records.manifest import read_manifest

    saved = read_saved(path)
    records = _chosen(path, saved, names, sample)
    images = None if len(records) == _num_planned(saved) else tuple(map(image_name, *zip(*records, strict=True)))
    config = override(replace(saved, output=None), overrides)
    if config.images is None or images is not None:
        config = replace(config, images=images)
    again = run(config, name=f"reproduce_{saved.prompts.name}", prepare=prepare, load=load)
    made = {(record["row"], record["copy"]): record for record in read_manifest(again)}
    return _report(path, records, again, made, overrides, exact, TOLERANCES[config.precision.unet.dtype])


def _chosen(
    path: Path, saved: RunConfig, names: Sequence[str] | None, sample: int | None
) -> dict[tuple[int, int], dict[str, Any]]:
    """(row, copy) -> manifest line, of the images to make again, in order."""
    from tpusd.records.manifest import line_key, read_manifest

    records = {}
    for record in read_manifest(path):
        key = line_key(record)
        if key is not None:
            records[key] = record
    records = {key: records[key] for key in planned(saved, len(saved.prompts.rows)) if key in records}
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


def _num_planned(config: RunConfig) -> int:
    return sum(1 for _ in planned(config, len(config.prompts.rows)))


def _report(
    path: Path,
    before: Mapping[tuple[int, int], Mapping[str, Any]],
    again: Path,
    after: Mapping[tuple[int, int], Mapping[str, Any]],
    overrides: Sequence[str],
    exact: bool,
    tolerance: Any,
) -> bool:
    """Prints the verdicts, writes the comparison's files, and returns whether all images are the same."""
    from tpusd.records.compare import SAME, compare
    from tpusd.records.layout import MEND
    from tpusd.storage import local as storage
    from tpusd.storage.local import told_as_user_error

    comparisons = {
        key: compare(image_name(*key), path, record, again, after.get(key), tolerance) for key, record in before.items()
    }
    counts: dict[str, int] = {}
    for comparison in comparisons.values():
        counts[comparison.verdict] = counts.get(comparison.verdict, 0) + 1
    changed = what_changed(path, before.values(), again, after.values())
    differing = [key for key, one in comparisons.items() if one.verdict != "identical"]
    for key in differing[:SHOWN]:
        print(comparisons[key])
    if len(differing) > SHOWN:
        print(f"... and {len(differing) - SHOWN} more in {again / COMPARISON}")
    anew = [one for one in overrides if not one.startswith("output=")]
    for line in [*(f"set anew: {show(one)}" for one in anew), *changed]:
        print(line)
    if not changed:
        print("versions, devices, flags, weights and programs are those of the original")
    print(f"{again}: {', '.join(f'{number} {verdict}' for verdict, number in counts.items())}")
    report = {
        "original": str(path.resolve()),
        "overrides": list(overrides),
        "changed": changed,
        "counts": counts,
        "images": [one.values() for one in comparisons.values()],
    }
    with told_as_user_error(again, MEND):
        storage.write_file(again / COMPARISON, json.dumps(report, indent=1, ensure_ascii=False).encode())
        _write_worst_pair(path, before, again, after, comparisons)
    wanted = SAME[:1] if exact else SAME
    return all(one.verdict in wanted for one in comparisons.values())


def _write_worst_pair(
    path: Path, before: Any, again: Path, after: Any, comparisons: Mapping[tuple[int, int], Any]
) -> None:
    """comparison.png: the pair of the lowest PSNR, or the first pair where all are equal."""
    from tpusd.gallery.contact_sheet import contact_sheet
    from tpusd.gallery.drawing import encode_sheet
    from tpusd.records.compare import read_pixels, side_by_side
    from tpusd.storage import local as storage

    pairs = [key for key, one in comparisons.items() if one.psnr is not None]
    if not pairs:
        return
    worst = min(pairs, key=lambda key: comparisons[key].psnr)
    pixels = read_pixels(path, before[worst]), read_pixels(again, after[worst])
    if pixels[0] is not None and pixels[1] is not None:
        sheet = contact_sheet(side_by_side(*pixels), columns=3, cell=384, note=str(comparisons[worst]))
        storage.write_file(again / PICTURE, encode_sheet(sheet))


def what_changed(path: Path, before: Any, again: Path, after: Any) -> list[str]:
    """Lines `what: old -> new` for all that the two runs' environments do not share."""
    old, new = _environments(path, before), _environments(again, after)
    if not old:
        return ["the original's run.json does not say what made it"]
    lines: dict[str, None] = {}
    for was in old:
        for now in new:
            for name in sorted(was.keys() | now.keys()):
                # A program that one of the two did not need says nothing.
                needed = not name.startswith("programs.") or (name in was and name in now)
                if needed and was.get(name) != now.get(name):
                    lines[f"changed: {name}: {_short(was.get(name))} -> {_short(now.get(name))}"] = None
    return list(lines)


def _environments(path: Path, records: Any) -> list[dict[str, Any]]:
    """The environments that made these images, as `versions.jax` -> value."""
    from tpusd.records.directory import read_run

    environments = read_run(path).get("environments")
    names = dict.fromkeys(record.get("environment") for record in records)
    if not isinstance(environments, dict):
        return []
    found = (environments.get(name) for name in names if isinstance(name, str))
    return [_flat(one, "") for one in found if isinstance(one, dict)]


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _short(value: Any) -> str:
    text = show(value)
    return text[:12] + "..." if len(text) in (40, 64) else text


if __name__ == "__main__":
    sys.exit(main())
