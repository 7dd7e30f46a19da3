"""A run's page, thumbnails, contact sheet and metadata.jsonl."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.schema import SavedConfig
from tpusd.gallery.contact_sheet import write_contact_sheet
from tpusd.gallery.page import Page, PageRun, facts_of, render
from tpusd.gallery.thumbnails import write_thumbnails
from tpusd.records.layout import METADATA, PAGE
from tpusd.records.manifest import ImageRecord, read_manifest
from tpusd.records.run_json import images_per_second, latest, read_run_if_valid
from tpusd.records.saved import read_saved


def write_results(path: Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Writes all of them into the run directory `path`; returns its page.

    facts: what run.json will hold, if it is not written yet. Raises UserError and OSError.
    """
    config = read_saved(path)
    facts = latest(read_run_if_valid(path) if facts is None else facts)
    records = list(read_manifest(path))
    num_images = facts.get("num_images", len(records))
    write_contact_sheet(path, records, num_images, len({record.row for record in records}))
    write_metadata(path, records)
    storage.write_file(path / PAGE, run_page(path, config, records, facts).encode())
    return path / PAGE


def run_page(path: Path, config: SavedConfig, records: Sequence[ImageRecord], facts: Mapping[str, Any]) -> str:
    """The HTML of a run's page; makes the thumbnails that it shows.

    path: the run directory.
    config: as saved there.
    records: its manifest.
    facts: its run.json.
    """
    run = PageRun(
        name=path.name,
        directory="",
        config=config,
        records=records,
        has_thumbnails=write_thumbnails(path, config, records),
        rate=images_per_second(facts),
    )
    about = summary(config, facts, len(records))
    return render(Page(kind="run", title=path.name, summary=about, runs=[run], facts=facts_of(facts)))


def write_metadata(path: Path, records: Iterable[ImageRecord]) -> None:
    """A line for each image: the manifest's, without the digests, which no caption needs."""
    lines = [json.dumps(record.for_datasets(), ensure_ascii=False) for record in records]
    storage.write_file(path / METADATA, "".join(f"{line}\n" for line in lines).encode())


def summary(config: SavedConfig, facts: Mapping[str, Any], num_images: int) -> str:
    """The line under a page's title."""
    devices = facts.get("devices", {})
    rate = images_per_second(facts)
    parts = [
        f"{num_images} image{'s' if num_images != 1 else ''}",
        f"{config.model.name}, {config.precision.name}",
        f"{config.width}×{config.height}",
        f"{devices.get('count', '?')} × {devices['kind']}" if "kind" in devices else None,
        f"{rate:.2f} images/s" if rate else None,
        str(facts.get("created", ""))[:16].replace("T", " ") or None,
        "not finished" if facts.get("state") == "running" else None,
    ]
    return " · ".join(part for part in parts if part)
