"""`python -m tpusd.results runs/DIR`: what makes a run directory pleasant to look at and easy to load.

    index.html  .thumbs/  contact_sheet.png  metadata.jsonl

All of it follows from config.yaml, run.json, manifest.jsonl and the images, so it can be thrown away and made again. A
run writes it at its end. metadata.jsonl is what `datasets.load_dataset("imagefolder", data_dir=DIR)` reads.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tpusd.config.schema import RunConfig, make_config, show, show_path
from tpusd.errors import UserError
from tpusd.process.exit import exit_status, refuse_arguments
from tpusd.records.run_json import latest
from tpusd.storage import local as storage

PAGE, METADATA, THUMBNAILS = "index.html", "metadata.jsonl", ".thumbs"
THUMBNAIL_SIZE = 256  # pixels of the longer side; images no larger stand for themselves
THUMBNAIL_QUALITY = 80
NUM_ENCODERS = 4
NOT_FOR_DATASETS = ("sha256", "num_bytes", "environment", "trace")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tpusd.results",
        description="Makes the page, thumbnails, contact sheet and metadata.jsonl of a run or a sweep again.",
    )
    parser.add_argument("directory", type=Path, help="a run directory, finished or not, or a sweep's")
    with exit_status() as status:
        parser.error = refuse_arguments
        path = parser.parse_args(argv).directory
        from tpusd.records.directory import told_as_user_error
        from tpusd.records.sweep import is_sweep, read_sweep, run_directories

        with told_as_user_error(path, "check the directory's permissions"):
            if is_sweep(path):
                from tpusd.gallery.sweep import write_sweep_results

                for _, directory in run_directories(path):
                    write_results(directory)
                print(write_sweep_results(path, read_sweep(path)))
            else:
                print(write_results(path))
    return status[0]


def write_results(path: Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Everything above for the run directory `path`; returns its page. facts: run.json's, if not written yet."""
    from tpusd.gallery.contact_sheet import write_contact_sheet
    from tpusd.records.directory import read_config, read_manifest

    config = make_config(read_config(path))
    facts = latest(read_facts(path) if facts is None else facts)
    records = list(read_manifest(path))
    num_images = facts.get("num_images", len(records))
    write_contact_sheet(path, records, num_images, len({record["row"] for record in records}))
    write_metadata(path, records)
    storage.write_file(path / PAGE, run_page(path, config, records, facts).encode())
    return path / PAGE


def run_page(path: Path, config: RunConfig, records: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
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


def write_thumbnails(path: Path, config: RunConfig, records: Iterable[Mapping[str, Any]]) -> bool:
    """The missing ones of .thumbs/; returns whether the run has any: small images need none."""
    if max(config.height, config.width) <= THUMBNAIL_SIZE:
        return False
    directory = path / THUMBNAILS
    if not storage.exists(directory):
        storage.make_directory(directory)
    with ThreadPoolExecutor(NUM_ENCODERS, thread_name_prefix="thumbnails") as pool:
        for _ in pool.map(lambda record: _write_thumbnail(path, Path(record["file_name"]).name), records):
            pass
    return True


def write_metadata(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A line an image: the manifest without its digests, which no caption needs."""
    lines = [
        json.dumps({name: value for name, value in record.items() if name not in NOT_FOR_DATASETS}, ensure_ascii=False)
        for record in records
    ]
    storage.write_file(path / METADATA, "".join(f"{line}\n" for line in lines).encode())


def read_facts(path: Path) -> dict[str, Any]:
    """run.json; empty where it is missing or none."""
    from tpusd.records.directory import RUN

    try:
        facts = json.loads(storage.read_file(path / RUN))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def images_per_second(facts: Mapping[str, Any]) -> float | None:
    try:
        return facts["session"]["num_images"] / facts["session"]["seconds"]["generate"]
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def summary(config: RunConfig, facts: Mapping[str, Any], num_images: int) -> str:
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

    from tpusd.records.directory import IMAGES

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


if __name__ == "__main__":
    sys.exit(main())
