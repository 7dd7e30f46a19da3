"""A run's page, thumbnails, contact sheet and metadata.jsonl."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.schema import SavedConfig
from tpusd.errors import UserError, show_path
from tpusd.gallery.contact_sheet import write_contact_sheet
from tpusd.gallery.page import Page, PageRun, facts_of, render
from tpusd.gallery.thumbnails import has_thumbnails, write_input_thumbnails, write_thumbnails
from tpusd.plan.specs import planned
from tpusd.records.dropped import read_dropped
from tpusd.records.layout import CONTACT_SHEET, MAX_LINE_BYTES, METADATA, PAGE
from tpusd.records.manifest import (
    ImageRecord,
    key_of,
    manifest_lines,
    parse_line,
    read_images,
    read_manifest,
    records_of,
)
from tpusd.records.run_json import latest, read_run_if_valid, session_rate
from tpusd.records.saved import read_saved
from tpusd.records.scores import Scores, column_names, read_scores
from tpusd.records.set_scores import digest_of, read_set_scores
from tpusd.storage.pictures import open_picture

MAX_SHOWN = 20_000  # images of a run's page, its thumbnails and its contact sheet; a browser takes no million


def write_results(path: Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Writes all of them into the run directory `path`; returns its page.

    facts: what run.json will hold, if it is not written yet. Raises UserError and OSError.
    """
    config = read_saved(path)
    facts = latest(read_run_if_valid(path) if facts is None else facts)
    num_lines, records = _shown(path, config)
    num_images = facts.get("num_images", num_lines)
    num_files = num_images - len(read_dropped(path, config))
    write_contact_sheet(path, records, num_files, len({record.row for record in records}))
    write_thumbnails(path, records)
    write_input_thumbnails(path, records, config.resize)
    return _write_page(path, config, num_lines, records, facts)


def write_scored_page(path: Path) -> Path:
    """Writes what shows scores, metadata.jsonl and the page, and opens no picture; returns the page.

    Raises UserError and OSError.
    """
    config = read_saved(path)
    return _write_page(path, config, *_shown(path, config), latest(read_run_if_valid(path)))


def _shown(path: Path, config: SavedConfig) -> tuple[int, list[ImageRecord]]:
    """The number of a run's images, and those that its page shows: of a large run, MAX_SHOWN spread evenly."""
    images = planned(config)
    if len(images) <= MAX_SHOWN:
        records = list(read_images(path, config))
        return len(records), records
    places = {number * len(images) // MAX_SHOWN for number in range(MAX_SHOWN)}
    chosen = {key for place, key in enumerate(images) if place in places}
    num_lines, lines = 0, []
    for file, number, line in manifest_lines(path):
        num_lines += 1
        values = parse_line(line)
        if values is None or key_of(values) in chosen:
            lines.append((file, number, line))
    return num_lines, list(records_of(path, lines))


def _write_page(
    path: Path, config: SavedConfig, num_lines: int, records: Sequence[ImageRecord], facts: Mapping[str, Any]
) -> Path:
    """num_lines: images of the run. records: those that the page shows."""
    every: Iterable[ImageRecord] = records if num_lines == len(records) else read_images(path, config)
    if num_lines > len(records) and column_names(path):
        every = list(every)  # its scores are kept by the picture
    scores = read_scores(path, every if isinstance(every, Sequence) else records)
    write_metadata(path, every, scores)
    page = run_page(path, config, records, facts, scores, num_images=num_lines)
    storage.write_file(path / PAGE, render(page).encode())
    return path / PAGE


def results_are_whole(path: Path) -> bool:
    """Whether the page, the contact sheet and metadata.jsonl are there, to their ends."""
    try:
        page = storage.read_file(path / PAGE)
        size = storage.file_size(path / METADATA)
        if size:  # else all images are dropped
            with open_picture(path / CONTACT_SHEET) as sheet:
                sheet.load()
        return page.rstrip().endswith(b"</html>") and size is not None and _metadata_is_whole(path)
    except (OSError, UserError):
        return False


def _metadata_is_whole(path: Path) -> bool:
    """Whether metadata.jsonl has the lines that it should have; of a large run, as many lines. Raises OSError."""
    num_lines = sum(1 for _ in manifest_lines(path))
    lines = storage.read_lines(path / METADATA, MAX_LINE_BYTES)
    if num_lines > MAX_SHOWN:
        return sum(1 for _ in lines) == num_lines and not storage.ends_torn(path / METADATA)
    records = list(read_manifest(path))
    return list(lines) == list(_metadata(records, read_scores(path, records))) and not storage.ends_torn(
        path / METADATA
    )


def run_page(
    path: Path,
    config: SavedConfig,
    records: Sequence[ImageRecord],
    facts: Mapping[str, Any],
    scores: Scores,
    *,
    num_images: int | None = None,
) -> Page:
    """A run's page.

    path: the run directory.
    config: as saved there.
    records: its manifest.
    facts: its run.json.
    scores: of its images.
    num_images: of the run, where `records` are only a sample of its manifest.
    """
    num_images = len(records) if num_images is None else num_images
    run = PageRun(
        name=path.name,
        directory="",
        config=config,
        records=records,
        has_thumbnails=has_thumbnails(records),
        created=str(facts.get("created", "")),
        rate=session_rate(facts),
        scores=scores,
    )
    num_dropped = len(read_dropped(path, config))
    about = summary([config], records, [facts], run.rate, num_dropped=num_dropped, num_images=num_images)
    every = records if num_images == len(records) else read_images(path, config)
    shown = [*facts_of(facts), *set_facts(path, every)]
    return Page(kind="run", title=path.name, summary=about, runs=[run], facts=shown)


def set_facts(path: Path, records: Iterable[ImageRecord]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """The scores of the whole run, as the details show them: those of the pictures that are there now."""
    scores = read_set_scores(path)
    if not scores:
        return []
    images = digest_of(records)
    lines = [
        (f"{score.metric} against {show_path(score.reference)}", f"{score.value:.5g}")
        for score in scores
        if score.images == images
    ]
    return [("Scores of all images", lines)] if lines else []


def write_metadata(path: Path, records: Iterable[ImageRecord], scores: Scores) -> None:
    """A line for each image: the manifest's, without the digests, which no caption needs, and its scores."""
    storage.write_chunks(path / METADATA, (line + b"\n" for line in _metadata(records, scores)))


def _metadata(records: Iterable[ImageRecord], scores: Scores) -> Iterator[bytes]:
    for record in records:
        yield json.dumps(record.for_datasets() | scores.fields(record), ensure_ascii=False).encode()


def summary(
    configs: Sequence[SavedConfig],
    records: Iterable[ImageRecord],
    facts: Sequence[Mapping[str, Any]],
    rate: float | None,
    *,
    num_dropped: int = 0,
    num_images: int | None = None,
) -> str:
    """The line under a page's title, of one run or of all that a sweep has.

    configs, facts: config.yaml and run.json of each run. records: their images. rate: images/s.
    num_dropped: images that the safety checker found and that have no file.
    num_images: of all, where `records` are only those that the page shows.
    """
    sizes = [(record.width, record.height) for record in records]
    devices = [run["devices"] for run in facts if isinstance(run.get("devices"), Mapping) and "kind" in run["devices"]]
    created = min((str(run["created"]) for run in facts if "created" in run), default="")
    number = len(sizes) if num_images is None else num_images
    parts = [
        f"{number} image{'s' if number != 1 else ''}",
        f"this page shows {len(sizes)} of them, spread evenly" if number > len(sizes) else "",
        f"{num_dropped} dropped by the safety checker" if num_dropped else "",
        _alternatives(f"{config.model.name}, {config.precision.name}" for config in configs),
        _alternatives(f"{width}×{height}" for width, height in dict.fromkeys(sizes)),
        _alternatives(f"{one.get('count', '?')} × {one['kind']}" for one in devices),
        f"{rate:.2f} images/s" if rate else "",
        created[:16].replace("T", " "),
        "not finished" if any(run.get("state") == "running" for run in facts) else "",
    ]
    return " · ".join(part for part in parts if part)


def _alternatives(texts: Iterable[str]) -> str:
    """Each different text once, the first three of them."""
    different = list(dict.fromkeys(texts))
    more = [f"{len(different) - 3} more"] if len(different) > 3 else []
    return " / ".join(different[:3] + more)
