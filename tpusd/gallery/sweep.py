"""A sweep's results, all of them made from its runs' directories.

index.html    the page: any swept field on either axis
grid.png      the same, as one labelled picture for papers and slides
index.jsonl   a line for each image: its manifest line, its run, the swept values and its scores
plot.png      where the images have scores: each setting's score by its seconds per image, and a heat map
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.errors import UserError, show_path
from tpusd.gallery.page import Axis, Page, PageRun, facts_of, render
from tpusd.gallery.run import summary, write_results, write_scored_page
from tpusd.gallery.sweep_grid import GridChoice, SweepImages, axis_labels, draw_grid
from tpusd.gallery.thumbnails import has_thumbnails, write_input_thumbnails, write_thumbnails
from tpusd.records.dropped import read_dropped
from tpusd.records.layout import CONFIG, GRID, INDEX, PAGE, PLOT
from tpusd.records.manifest import read_images
from tpusd.records.run_json import latest, read_run_if_valid, session_rate
from tpusd.records.saved import read_saved
from tpusd.records.scores import Scores, read_scores
from tpusd.records.sweep import Sweep, SweepRun, is_sweep, read_sweep, run_directories

OF_ONE_RUN = ("created", "state", "num_images", "session")  # of run.json: what says nothing of the others
MAX_VALUES = 4  # that the details list of a field in which runs differ


@dataclass(frozen=True, kw_only=True)
class FinishedRun(SweepImages):
    """A run of a sweep. facts: its run.json, as `latest` gives it. scores: of its images."""

    facts: Mapping[str, Any]
    scores: Scores

    @property
    def rate(self) -> float | None:
        """Images/s."""
        return session_rate(self.facts)


def write_all_results(path: Path) -> Path:
    """All results of the run or the sweep at `path`; returns its page. Raises UserError and OSError."""
    if not is_sweep(path):
        return write_results(path)
    for _, directory in run_directories(path):
        write_results(directory)
    return write_sweep_results(path, read_sweep(path))


def write_sweep_results(path: Path, sweep: Sweep) -> Path:
    """Writes all of them into the sweep's directory `path`; returns its page. Raises UserError and OSError."""
    runs = list(read_runs(path, sweep))
    for run in runs:
        write_thumbnails(run.directory, run.records)
        write_input_thumbnails(run.directory, run.records, run.config.resize)
    page = _write_scored(path, sweep, runs)
    grid = draw_grid(sweep, runs)
    if grid is not None:
        storage.write_file(path / GRID, grid)
    return page


def write_scored_results(path: Path) -> Path:
    """Writes what shows scores, of the run or the sweep at `path`, and opens no picture; returns the page.

    metadata.jsonl and index.html of each run; index.jsonl, index.html and plot.png of a sweep.
    Raises UserError and OSError.
    """
    if not is_sweep(path):
        return write_scored_page(path)
    sweep = read_sweep(path)
    runs = list(read_runs(path, sweep))
    for run in runs:
        write_scored_page(run.directory)
    return _write_scored(path, sweep, runs)


def _write_scored(path: Path, sweep: Sweep, runs: Sequence[FinishedRun]) -> Path:
    storage.write_chunks(path / INDEX, _index_lines(runs))
    storage.write_file(path / PAGE, render(_page(path, sweep, runs)).encode())
    if any(run.scores.columns for run in runs):
        from tpusd.gallery.plot import draw_plot  # brings Pillow with it

        if (plot := draw_plot(sweep, runs)) is not None:
            storage.write_file(path / PLOT, plot)
    return path / PAGE


def sweep_page(path: Path, sweep: Sweep) -> Page:
    """The page of the sweep at `path`. Raises UserError and OSError."""
    return _page(path, sweep, list(read_runs(path, sweep)))


def write_sweep_grid(path: Path, sweep: Sweep, choice: GridChoice, file: Path) -> None:
    """Writes the grid of the sweep at `path` that the user chose. Raises UserError where it would be empty."""
    grid = draw_grid(sweep, list(read_runs(path, sweep)), choice)
    if grid is None:
        raise UserError(f"{show_path(path)}: has no image with these values; its page shows which there are")
    storage.write_file(file, grid)


def read_runs(path: Path, sweep: Sweep) -> Iterator[FinishedRun]:
    """The runs of the sweep at `path` that have images. Raises UserError."""
    for run in sweep.runs:
        directory = path / run.name
        if storage.file_size(directory / CONFIG) is None:
            continue
        config = read_saved(directory)
        records = sorted(read_images(directory, config), key=lambda record: record.key)
        if records:
            facts = latest(read_run_if_valid(directory))
            scores = read_scores(directory, records)
            yield FinishedRun(run=run, directory=directory, config=config, records=records, facts=facts, scores=scores)


def _index_lines(runs: Sequence[FinishedRun]) -> Iterator[bytes]:
    """Manifest lines, and the swept fields that they lack, with the values of the command line; and scores."""
    columns = sorted({name for finished in runs for name in finished.scores.columns})
    for finished in runs:
        name, at = finished.run.name, finished.run.at
        for record in finished.records:
            values = record.values()
            line = {"run": name} | values | {"file_name": f"{name}/{record.file_name}"}
            line |= {key: value for key, value in at.items() if key not in values}
            line |= finished.scores.fields(record, columns)
            yield json.dumps(line | {"overrides": finished.run.overrides}, ensure_ascii=False).encode() + b"\n"


def _page(path: Path, sweep: Sweep, runs: Sequence[FinishedRun]) -> Page:
    axes = tuple(
        Axis(key=key, values=values, labels=tuple(axis_labels(key, values, runs))) for key, values in sweep.axes.items()
    )

    def at(run: SweepRun) -> tuple[int, ...]:
        return tuple(axis.values.index(run.at[axis.key]) for axis in axes)

    def on_page(finished: FinishedRun) -> PageRun:
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
            rate=finished.rate,
            error=finished.run.error,
            scores=finished.scores,
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


def _rate(runs: Sequence[FinishedRun]) -> float | None:
    """Images/s of the last sessions of all runs together."""
    pairs = [(own.rate, own.facts) for own in runs]
    made = [(facts["session"]["num_images"], rate) for rate, facts in pairs if rate]
    seconds = sum(number / rate for number, rate in made)
    return sum(number for number, _ in made) / seconds if seconds > 0 else None


def _facts(runs: Sequence[FinishedRun]) -> list[tuple[str, list[tuple[str, Any]]]]:
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
