"""A run's page, thumbnails, contact sheet and metadata.jsonl."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.schema import SavedConfig
from tpusd.errors import UserError, show, show_path
from tpusd.records.layout import METADATA, PAGE, THUMBNAILS
from tpusd.records.manifest import ImageRecord, read_manifest
from tpusd.records.run_json import images_per_second, latest, read_run_if_valid
from tpusd.records.saved import read_saved

THUMBNAIL_SIZE = 256  # pixels of the longer side; images no larger stand for themselves
THUMBNAIL_QUALITY = 80
NUM_ENCODERS = 4


def write_results(path: Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Everything above for the run directory `path`; returns its page. facts: run.json's, if not written yet."""
    from tpusd.gallery.contact_sheet import write_contact_sheet

    config = read_saved(path)
    facts = latest(read_run_if_valid(path) if facts is None else facts)
    records = list(read_manifest(path))
    num_images = facts.get("num_images", len(records))
    write_contact_sheet(path, records, num_images, len({record.row for record in records}))
    write_metadata(path, records)
    storage.write_file(path / PAGE, run_page(path, config, records, facts).encode())
    return path / PAGE


def run_page(path: Path, config: SavedConfig, records: Sequence[ImageRecord], facts: Mapping[str, Any]) -> str:
    """The HTML of a run's page; makes the thumbnails that it shows."""
    from tpusd.gallery.page import Page, PageRun, facts_of, render

    run = PageRun(
        name=path.name,
        directory="",
        config=config,
        records=records,
        has_thumbnails=write_thumbnails(path, config, records),
        rate=images_per_second(facts),
    )
    return render(
        Page(
            kind="run", title=path.name, summary=summary(config, facts, len(records)), runs=[run], facts=facts_of(facts)
        )
    )


def write_thumbnails(path: Path, config: SavedConfig, records: Iterable[ImageRecord]) -> bool:
    """The missing ones of .thumbs/; returns whether the run has any: small images need none."""
    if max(config.height, config.width) <= THUMBNAIL_SIZE:
        return False
    directory = path / THUMBNAILS
    if not storage.exists(directory):
        storage.make_directory(directory)
    with ThreadPoolExecutor(NUM_ENCODERS, thread_name_prefix="thumbnails") as pool:
        for _ in pool.map(lambda record: _write_thumbnail(path, record.base_name), records):
            pass
    return True


def write_metadata(path: Path, records: Iterable[ImageRecord]) -> None:
    """A line an image: the manifest without its digests, which no caption needs."""
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


def _write_thumbnail(path: Path, name: str) -> None:
    from PIL import Image

    from tpusd.records.layout import IMAGES

    target = path / THUMBNAILS / f"{Path(name).stem}.webp"
    if storage.file_size(target):
        return
    try:
        with Image.open(path / IMAGES / name) as image:
            image = image.convert("RGB")
            image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=THUMBNAIL_QUALITY)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{show_path(path / IMAGES / name)}: cannot be read as a picture: {show(str(error))}") from None
    storage.write_file(target, buffer.getvalue())
