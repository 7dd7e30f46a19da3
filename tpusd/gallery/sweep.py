"""A sweep's results, all of them made from its runs' directories.

index.html    the page: any swept field on either axis
grid.png      the same, as one labelled picture for papers and slides
index.jsonl   a line for each image: its manifest line, its run, and the swept values
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.errors import UserError, show_path
from tpusd.gallery.page import Axis, Page, PageRun, facts_of, render
from tpusd.gallery.run import summary
from tpusd.gallery.sweep_grid import GridChoice, SweepImages, axis_labels, draw_grid
from tpusd.gallery.thumbnails import has_thumbnails, write_input_thumbnails, write_thumbnails
from tpusd.records.dropped import read_dropped
from tpusd.records.layout import CONFIG, GRID, INDEX, PAGE
from tpusd.records.manifest import read_images
from tpusd.records.run_json import latest, read_run_if_valid, session_rate
from tpusd.records.saved import read_saved
from tpusd.records.sweep import Sweep, SweepRun

OF_ONE_RUN = ("created", "state", "num_images", "session")  # of run.json: what says nothing of the others
MAX_VALUES = 4  # that the details list of a field in which runs differ


@dataclass(frozen=True, kw_only=True)
class _FinishedRun(SweepImages):
    """facts: its run.json, as `latest` gives it."""

    facts: Mapping[str, Any]


def write_sweep_results(path: Path, sweep: Sweep) -> Path:
    """Writes all of them into the sweep's directory `path`; returns its page. Raises UserError and OSError."""
    runs = list(_read_runs(path, sweep))
    storage.write_chunks(path / INDEX, _index_lines(runs))
    for run in runs:
        write_thumbnails(run.directory, run.records)
        write_input_thumbnails(run.directory, run.records)
    storage.write_file(path / PAGE, render(_page(path, sweep, runs)).encode())
    grid = draw_grid(sweep, runs)
    if grid is not None:
        storage.write_file(path / GRID, grid)
    return path / PAGE


def sweep_page(path: Path, sweep: Sweep) -> Page:
    """The page of the sweep at `path`. Raises UserError and OSError."""
    return _page(path, sweep, list(_read_runs(path, sweep)))


def write_sweep_grid(path: Path, sweep: Sweep, choice: GridChoice, file: Path) -> None:
    """Writes the grid of the sweep at `path` that the user chose. Raises UserError where it would be empty."""
    grid = draw_grid(sweep, list(_read_runs(path, sweep)), choice)
    if grid is None:
        raise UserError(f"{show_path(path)}: has no image with these values; its page shows which there are")
    storage.write_file(file, grid)


def _read_runs(path: Path, sweep: Sweep) -> Iterator[_FinishedRun]:
    for run in sweep.runs:
        directory = path / run.name
        if storage.file_size(directory / CONFIG) is None:
            continue
        config = read_saved(directory)
        records = sorted(read_images(directory, config), key=lambda record: record.key)
        if records:
            facts = latest(read_run_if_valid(directory))
            yield _FinishedRun(run=run, directory=directory, config=config, records=records, facts=facts)


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
    axes = tuple(
        Axis(key=key, values=values, labels=tuple(axis_labels(key, values, runs))) for key, values in sweep.axes.items()
    )

    def at(run: SweepRun) -> tuple[int, ...]:
        return tuple(axis.values.index(run.at[axis.key]) for axis in axes)

    def on_page(finished: _FinishedRun) -> PageRun:
        name = finished.run.name
        return PageRun(
            name=name,
            directory=f"{name}/",
            config=finished.config,
            records=finished.records,
            has_thumbnails=has_thumbnails(finished.records),
            created=str(finished.facts.get("created", "")),
            at=at(finished.run),
            state=str(finished.facts.get("state", "?")),
            rate=session_rate(finished.facts),
            error=finished.run.error,
        )

    names = {finished.run.name for finished in runs}
    records = [record for finished in runs for record in finished.records]
    dropped = sum(len(read_dropped(own.directory, own.config)) for own in runs)
    about = summary(
        [own.config for own in runs], records, [own.facts for own in runs], _rate(runs), num_dropped=dropped
    )
    return Page(
        kind="sweep",
        title=path.name,
        summary=f"{len(runs)} run{'s' if len(runs) != 1 else ''} · {about}" if runs else "no images",
        axes=axes,
        runs=[on_page(finished) for finished in runs],
        facts=_facts(runs),
        failed=[(run.name, at(run), run.error) for run in sweep.runs if run.name not in names and run.error],
    )


def _rate(runs: Sequence[_FinishedRun]) -> float | None:
    """Images/s of the last sessions of all runs together."""
    pairs = [(session_rate(own.facts), own.facts) for own in runs]
    made = [(facts["session"]["num_images"], rate) for rate, facts in pairs if rate]
    seconds = sum(number / rate for number, rate in made)
    return sum(number for number, _ in made) / seconds if seconds > 0 else None


def _facts(runs: Sequence[_FinishedRun]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """run.json of all runs: what they share, and the different values of the rest. The table has each run's numbers."""
    found: dict[str, dict[str, list[Any]]] = {}
    for finished in runs:
        own = {name: value for name, value in finished.facts.items() if name not in OF_ONE_RUN}
        for title, lines in facts_of(own):
            for name, value in lines:
                found.setdefault(title, {}).setdefault(name, []).append(value)
    return [
        ("All runs" if title == "Run" else title, [(name, _shared(values, len(runs))) for name, values in own.items()])
        for title, own in found.items()
    ]


def _shared(values: Sequence[Any], num_runs: int) -> object:
    """The value that all runs have; else the different ones, with the number of runs that have each."""
    counts: dict[str, int] = {}
    for value in values:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        counts[text] = counts.get(text, 0) + 1
    if len(counts) == 1 and len(values) == num_runs:
        return values[0]
    listed = [f"{text[:80]} ({number} of {num_runs} runs)" for text, number in list(counts.items())[:MAX_VALUES]]
    return "; ".join([*listed, f"{len(counts) - MAX_VALUES} more"] if len(counts) > MAX_VALUES else listed)
