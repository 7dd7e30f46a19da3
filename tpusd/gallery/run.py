"""A run's page, thumbnails, contact sheet and metadata.jsonl."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.schema import SavedConfig
from tpusd.errors import UserError, show_path
from tpusd.gallery.contact_sheet import write_contact_sheet
from tpusd.gallery.page import Page, PageRun, facts_of, render
from tpusd.gallery.thumbnails import has_thumbnails, write_input_thumbnails, write_thumbnails
from tpusd.records.dropped import read_dropped
from tpusd.records.layout import CONTACT_SHEET, METADATA, PAGE
from tpusd.records.manifest import ImageRecord, read_images, read_manifest
from tpusd.records.run_json import latest, read_run_if_valid, session_rate
from tpusd.records.saved import read_saved
from tpusd.records.scores import Scores, read_scores
from tpusd.records.set_scores import digest_of, read_set_scores
from tpusd.storage.pictures import open_picture


def write_results(path: Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Writes all of them into the run directory `path`; returns its page.

    facts: what run.json will hold, if it is not written yet. Raises UserError and OSError.
    """
    config = read_saved(path)
    facts = latest(read_run_if_valid(path) if facts is None else facts)
    records = list(read_images(path, config))
    num_images = facts.get("num_images", len(records))
    num_files = num_images - len(read_dropped(path, config))
    write_contact_sheet(path, records, num_files, len({record.row for record in records}))
    write_thumbnails(path, records)
    write_input_thumbnails(path, records, config.resize)
    return _write_page(path, config, records, facts)


def write_scored_page(path: Path) -> Path:
    """Writes what shows scores, metadata.jsonl and the page, and opens no picture; returns the page.

    Raises UserError and OSError.
    """
    config = read_saved(path)
    return _write_page(path, config, list(read_images(path, config)), latest(read_run_if_valid(path)))


def _write_page(path: Path, config: SavedConfig, records: Sequence[ImageRecord], facts: Mapping[str, Any]) -> Path:
    scores = read_scores(path, records)
    write_metadata(path, records, scores)
    storage.write_file(path / PAGE, render(run_page(path, config, records, facts, scores)).encode())
    return path / PAGE


def results_are_whole(path: Path) -> bool:
    """Whether the page, the contact sheet and metadata.jsonl are there, to their ends."""
    try:
        page = storage.read_file(path / PAGE)
        metadata = storage.read_file(path / METADATA)
        records = list(read_manifest(path))
        wanted = _metadata(records, read_scores(path, records))
        if metadata:  # else all images are dropped
            with open_picture(path / CONTACT_SHEET) as sheet:
                sheet.load()
    except (OSError, UserError):
        return False
    return page.rstrip().endswith(b"</html>") and metadata == wanted


def run_page(
    path: Path, config: SavedConfig, records: Sequence[ImageRecord], facts: Mapping[str, Any], scores: Scores
) -> Page:
    """A run's page.

    path: the run directory.
    config: as saved there.
    records: its manifest.
    facts: its run.json.
    scores: of its images.
    """
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
    about = summary([config], records, [facts], run.rate, num_dropped=len(read_dropped(path, config)))
    shown = [*facts_of(facts), *set_facts(path, records)]
    return Page(kind="run", title=path.name, summary=about, runs=[run], facts=shown)


def set_facts(path: Path, records: Sequence[ImageRecord]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """The scores of the whole run, as the details show them: those of the pictures that are there now."""
    images = digest_of(records)
    lines = [
        (f"{score.metric} against {show_path(score.reference)}", f"{score.value:.5g}")
        for score in read_set_scores(path)
        if score.images == images
    ]
    return [("Scores of all images", lines)] if lines else []


def write_metadata(path: Path, records: Iterable[ImageRecord], scores: Scores) -> None:
    """A line for each image: the manifest's, without the digests, which no caption needs, and its scores."""
    storage.write_file(path / METADATA, _metadata(records, scores))


def _metadata(records: Iterable[ImageRecord], scores: Scores) -> bytes:
    lines = (json.dumps(record.for_datasets() | scores.fields(record), ensure_ascii=False) for record in records)
    return "".join(f"{line}\n" for line in lines).encode()


def summary(
    configs: Sequence[SavedConfig],
    records: Iterable[ImageRecord],
    facts: Sequence[Mapping[str, Any]],
    rate: float | None,
    *,
    num_dropped: int = 0,
) -> str:
    """The line under a page's title, of one run or of all that a sweep has.

    configs, facts: config.yaml and run.json of each run. records: their images. rate: images/s.
    num_dropped: images that the safety checker found and that have no file.
    """
    sizes = [(record.width, record.height) for record in records]
    devices = [run["devices"] for run in facts if isinstance(run.get("devices"), Mapping) and "kind" in run["devices"]]
    created = min((str(run["created"]) for run in facts if "created" in run), default="")
    parts = [
        f"{len(sizes)} image{'s' if len(sizes) != 1 else ''}",
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
