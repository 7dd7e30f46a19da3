"""A sweep's results, all of them made from its runs' directories.

index.html    the page: any swept field on either axis
grid.png      the same, as one labelled picture for papers and slides
index.jsonl   a line for each image: its manifest line, its run, and the swept values
"""

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpusd import storage
from tpusd.config.schema import SavedConfig
from tpusd.gallery.page import Axis, Page, PageRun, facts_of, render
from tpusd.gallery.run import summary
from tpusd.gallery.thumbnails import write_thumbnails
from tpusd.records.layout import CONFIG, GRID, INDEX, PAGE
from tpusd.records.manifest import ImageRecord, read_manifest
from tpusd.records.run_json import images_per_second, latest, read_run_if_valid
from tpusd.records.saved import read_saved
from tpusd.records.sweep import Sweep, SweepRun
from tpusd.storage.pictures import open_picture

if TYPE_CHECKING:
    from PIL import Image

MAX_GRID = 12  # columns and rows of grid.png; the page has them all


@dataclass(frozen=True, kw_only=True)
class _FinishedRun:
    """A run of the sweep that has images. records: its manifest, by row and copy; facts: its run.json."""

    run: SweepRun
    config: SavedConfig
    records: list[ImageRecord]
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """Which field is on which axis of grid.png; None: no field on x, the prompts on y. fixed: the others' values."""

    x: str | None
    y: str | None
    fixed: Mapping[str, str]


def write_sweep_results(path: Path, sweep: Sweep) -> Path:
    """Writes all of them into the sweep's directory `path`; returns its page. Raises UserError and OSError."""
    runs = list(_read_runs(path, sweep))
    storage.write_chunks(path / INDEX, _index_lines(runs))
    storage.write_file(path / PAGE, render(_page(path, sweep, runs)).encode())
    grid = _grid(path, sweep, runs)
    if grid is not None:
        storage.write_file(path / GRID, grid)
    return path / PAGE


def _read_runs(path: Path, sweep: Sweep) -> Iterator[_FinishedRun]:
    for run in sweep.runs:
        directory = path / run.name
        if storage.file_size(directory / CONFIG) is None:
            continue
        records = sorted(read_manifest(directory), key=lambda record: record.key)
        if records:
            config = read_saved(directory)
            yield _FinishedRun(run=run, config=config, records=records, facts=latest(read_run_if_valid(directory)))


def _index_lines(runs: Sequence[_FinishedRun]) -> Iterator[bytes]:
    """Manifest lines, and the swept fields that they lack, with the values of the command line."""
    for finished in runs:
        name, at = finished.run.name, finished.run.at
        for record in finished.records:
            values = record.values()
            line = {"run": name} | values | {"file_name": f"{name}/{record.file_name}"}
            line |= {key: value for key, value in at.items() if key not in values}
            yield json.dumps(line | {"overrides": finished.run.overrides}, ensure_ascii=False).encode() + b"\n"


def _page(path: Path, sweep: Sweep, runs: Sequence[_FinishedRun]) -> Page:
    axes = tuple(Axis(key=key, values=values) for key, values in sweep.axes.items())

    def at(run: SweepRun) -> tuple[int, ...]:
        return tuple(axis.values.index(run.at[axis.key]) for axis in axes)

    def on_page(finished: _FinishedRun) -> PageRun:
        name = finished.run.name
        return PageRun(
            name=name,
            directory=f"{name}/",
            config=finished.config,
            records=finished.records,
            has_thumbnails=write_thumbnails(path / name, finished.config, finished.records),
            at=at(finished.run),
            state=str(finished.facts.get("state", "?")),
            rate=images_per_second(finished.facts),
            error=finished.run.error,
        )

    num_images = sum(len(finished.records) for finished in runs)
    names = {finished.run.name for finished in runs}
    about = summary(runs[0].config, {**runs[0].facts, "session": {}}, num_images) if runs else "no images"
    return Page(
        kind="sweep",
        title=path.name,
        summary=f"{len(runs)} runs · {about}",
        axes=axes,
        runs=[on_page(finished) for finished in runs],
        facts=facts_of({name: v for name, v in runs[0].facts.items() if name != "session"}) if runs else [],
        failed=[(run.name, at(run), run.error) for run in sweep.runs if run.name not in names and run.error],
    )


def _grid(path: Path, sweep: Sweep, runs: Sequence[_FinishedRun]) -> bytes | None:
    """grid.png: the two longest axes, or the only one and the prompts; of every other field its first value.

    None if no run with these first values has images.
    """
    from tpusd.gallery.drawing import encode_sheet
    from tpusd.gallery.grid import labelled_grid

    axes = _grid_axes(sweep)
    kept = [run for run in runs if all(run.run.at[key] == value for key, value in axes.fixed.items())]
    files = _grid_files(path, kept, axes)
    if not files:
        return None
    columns = _in_use(sweep.axes[axes.x] if axes.x else ("",), {column for column, _ in files})
    prompts = dict.fromkeys(row for _, row in files)
    rows = _in_use(sweep.axes[axes.y] if axes.y else prompts, {row for _, row in files})
    sheet = labelled_grid(
        [[_picture(files.get((column, row))) for column in columns] for row in rows],
        column_labels=columns,
        row_labels=rows,
        column_title=axes.x or "",
        row_title=axes.y or "",
        note=_grid_note(kept, axes),
    )
    return encode_sheet(sheet)


def _grid_axes(sweep: Sweep) -> _Axes:
    keys = sorted(sweep.axes, key=lambda key: -len(sweep.axes[key]))
    x, y = (*keys[:2], None, None)[:2]
    return _Axes(x=x, y=y, fixed={key: values[0] for key, values in sweep.axes.items() if key not in (x, y)})


def _grid_files(path: Path, runs: Sequence[_FinishedRun], axes: _Axes) -> dict[tuple[str, str], Path]:
    """(column, row) -> the image there: the first copy of the first prompt, or of each if the prompts are the rows."""
    files: dict[tuple[str, str], Path] = {}
    for finished in runs:
        at = finished.run.at
        first_copies = {record.row: record for record in reversed(finished.records)}
        for index in sorted(first_copies) if axes.y is None else [min(first_copies)]:
            record = first_copies[index]
            place = at[axes.x] if axes.x else "", at[axes.y] if axes.y else record.prompt
            files.setdefault(place, path / finished.run.name / record.file_name)
    return files


def _in_use(values: Iterable[str], used: Container[str]) -> list[str]:
    return [value for value in values if value in used][:MAX_GRID]


def _picture(file: Path | None) -> "Image.Image | None":
    if file is None:
        return None
    with open_picture(file) as image:
        return image.convert("RGB")


def _grid_note(runs: Sequence[_FinishedRun], axes: _Axes) -> str:
    fixed = [f"{key.rsplit('.', 1)[-1]} = {value}" for key, value in axes.fixed.items()]
    return " · ".join([*([runs[0].records[0].prompt] if axes.y else []), *fixed])
