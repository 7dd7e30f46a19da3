"""What makes a sweep pleasant to look at and easy to load, all of it made from its runs' directories.

index.html    the page: any swept field on either axis
grid.png      the same, as one labelled picture for papers and slides
index.jsonl   a line an image: its manifest line, its run, and the swept values
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.schema import SavedConfig
from tpusd.gallery.page import Axis, Page, PageRun, facts_of, render
from tpusd.gallery.run import summary, write_thumbnails
from tpusd.records.layout import CONFIG, GRID, INDEX, PAGE
from tpusd.records.manifest import ImageRecord, read_manifest
from tpusd.records.run_json import images_per_second, latest, read_run_if_valid
from tpusd.records.saved import read_saved
from tpusd.records.sweep import Sweep, SweepRun

MAX_GRID = 12  # columns and rows of grid.png; the page has them all


@dataclass(frozen=True, kw_only=True)
class _Run:
    run: SweepRun
    config: SavedConfig
    records: list[ImageRecord]
    facts: Mapping[str, Any]


def write_sweep_results(path: Path, sweep: Sweep) -> Path:
    """Everything above for the sweep at `path`; returns its page. Raises UserError and OSError."""
    runs = list(_read_runs(path, sweep))
    storage.write_chunks(path / INDEX, _index_lines(runs))
    storage.write_file(path / PAGE, render(_page(path, sweep, runs)).encode())
    grid = _grid(path, sweep, runs)
    if grid is not None:
        storage.write_file(path / GRID, grid)
    return path / PAGE


def _read_runs(path: Path, sweep: Sweep) -> Iterator[_Run]:
    for run in sweep.runs:
        directory = path / run.name
        if storage.file_size(directory / CONFIG) is None:
            continue
        records = sorted(read_manifest(directory), key=lambda record: record.key)
        if records:
            config = read_saved(directory)
            yield _Run(run=run, config=config, records=records, facts=latest(read_run_if_valid(directory)))


def _index_lines(runs: Sequence[_Run]) -> Iterator[bytes]:
    """Swept fields that a manifest line has by that name are as it says; others are added, as the command line says."""
    for one in runs:
        for record in one.records:
            values = record.values()
            line = {"run": one.run.name} | values | {"file_name": f"{one.run.name}/{record.file_name}"}
            line |= {key: value for key, value in one.run.at.items() if key not in values}
            yield json.dumps(line | {"overrides": one.run.overrides}, ensure_ascii=False).encode() + b"\n"


def _page(path: Path, sweep: Sweep, runs: Sequence[_Run]) -> Page:
    axes = tuple(Axis(key=key, values=values) for key, values in sweep.axes.items())

    def at(run: SweepRun) -> tuple[int, ...]:
        return tuple(axis.values.index(run.at[axis.key]) for axis in axes)

    num_images = sum(len(one.records) for one in runs)
    there = {one.run.name for one in runs}
    about = summary(runs[0].config, {**runs[0].facts, "session": {}}, num_images) if runs else "no images"
    return Page(
        kind="sweep",
        title=path.name,
        summary=f"{len(runs)} runs · {about}",
        axes=axes,
        runs=[
            PageRun(
                name=one.run.name,
                directory=f"{one.run.name}/",
                config=one.config,
                records=one.records,
                has_thumbnails=write_thumbnails(path / one.run.name, one.config, one.records),
                at=at(one.run),
                state=str(one.facts.get("state", "?")),
                rate=images_per_second(one.facts),
                error=one.run.error,
            )
            for one in runs
        ],
        facts=facts_of({name: v for name, v in runs[0].facts.items() if name != "session"}) if runs else [],
        failed=[(run.name, at(run), run.error) for run in sweep.runs if run.name not in there and run.error],
    )


def _grid(path: Path, sweep: Sweep, runs: Sequence[_Run]) -> bytes | None:
    """The two longest axes, or the one and the prompts; of all else the first value."""
    from PIL import Image

    from tpusd.gallery.drawing import encode_sheet
    from tpusd.gallery.grid import labelled_grid

    if not runs:
        return None
    keys = sorted((key for key in sweep.axes), key=lambda key: -len(sweep.axes[key]))[:2]
    x = keys[0] if keys else None
    y = keys[1] if len(keys) > 1 else None
    fixed = {key: sweep.axes[key][0] for key in sweep.axes if key not in (x, y)}
    kept = [one for one in runs if all(one.run.at[key] == value for key, value in fixed.items())]
    cells: dict[tuple[str, str], Path] = {}
    for one in kept:
        first_copies = {record.row: record for record in reversed(one.records)}
        for row in sorted(first_copies) if y is None else [min(first_copies)]:
            record = first_copies[row]
            place = (one.run.at[x] if x else "", one.run.at[y] if y else record.prompt)
            cells.setdefault(place, path / one.run.name / record.file_name)
    columns = [value for value in (sweep.axes[x] if x else [""]) if any(c == value for c, _ in cells)][:MAX_GRID]
    rows = (
        list(dict.fromkeys(r for _, r in cells))
        if y is None
        else [v for v in sweep.axes[y] if any(r == v for _, r in cells)]
    )
    rows = rows[:MAX_GRID]

    def picture(column: str, row: str) -> Image.Image | None:
        file = cells.get((column, row))
        if file is None:
            return None
        with Image.open(io.BytesIO(storage.read_file(file))) as image:
            return image.convert("RGB")

    sheet = labelled_grid(
        [[picture(column, row) for column in columns] for row in rows],
        column_labels=columns,
        row_labels=rows,
        column_title=x or "",
        row_title=y or "",
        note=_grid_note(kept, fixed, y),
    )
    return encode_sheet(sheet)


def _grid_note(kept: Sequence[_Run], fixed: Mapping[str, str], y: str | None) -> str:
    if not kept:
        return ""
    parts = [f"{key.rsplit('.', 1)[-1]} = {value}" for key, value in fixed.items()]
    return " · ".join([*([kept[0].records[0].prompt] if y else []), *parts])
